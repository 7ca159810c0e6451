"""Normalisers: from logits to weights, as chains of stages that are defined densely on a block of rows.

A block holds *all* keys that its rows see: logits and mask are (..., rows, keys). Each normaliser owns the
merge of its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.attend.state import Part, State, merge_softmax, merge_sum

__all__ = [
    "Chain",
    "Identity",
    "Normaliser",
    "RowContext",
    "Sigmoid",
    "Softmax",
    "Threshold",
    "zero_where_edges",
]


@dataclass
class RowContext:
    """What a stage may know besides logits and mask, and where it leaves statistics for later stages.

    query_position (..., rows, 1), key_position (..., 1, keys): int64, without the columns of `extra`;
    row_counts (..., rows, 1): edges of each row; statistics: "lse" and "total" (..., rows, 1) as written.
    """

    query_position: Tensor
    key_position: Tensor
    row_counts: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Normaliser:
    """One stage or a chain of stages: `rows(logits, mask, ctx, *tensors) -> weights`.

    Weights are 0 off the mask. A row without edges has weights 0, lse -inf and gradient 0.
    """

    axis = "receivers"
    """Over whose edges it normalises: "receivers" (a query's) or "senders" (a key's; its `rows` then needs
    all rows that see its keys)."""
    causal_safe = True
    """Whether a row's weights depend on that row's edges alone."""
    amplification = 1.0
    """By how much relative errors of the logits' exponentials may grow, for tolerances."""
    mergeable = True
    """Whether parts of a row merge exactly."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def tensors(self) -> tuple[Tensor, ...]:
        """Learned or given tensors, broadcasting to (B, H, N, M); explicit arguments of `rows`."""
        return ()

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def state(self, lse: Tensor, total: Tensor | None) -> State:
        """The State of rows with these statistics (B, H, N)."""
        return State(lse, total, self)

    def merge(self, parts: Sequence[Part]) -> Part:
        raise ValueError(
            f"normaliser {self.name}: parts of a row cannot be merged, since a weight depends on the "
            "whole row; attend to all keys in one call"
        )

    def __rshift__(self, other: "Normaliser") -> "Chain":
        if not isinstance(other, Normaliser):
            return NotImplemented
        return Chain((*self.stages(), *other.stages()))

    def stages(self) -> "tuple[Normaliser, ...]":
        return (self,)


@dataclass(frozen=True, eq=False)
class Softmax(Normaliser):
    """w_ij = exp(l_ij) / (exp(sink) + Σ_n exp(l_in)).

    sink: None; a number; or a tensor (H,) with a learned logit per query head that takes weight and carries
    nothing (gpt-oss; "off by one" is sink=0). The lse of the state never holds the sink.
    """

    sink: float | Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sink, Tensor):
            if self.sink.dim() != 1:
                raise ValueError(
                    f"Softmax: a sink tensor must hold one logit per query head, got {tuple(self.sink.shape)}"
                )
        elif self.sink is not None and not math.isfinite(self.sink):
            raise ValueError(f"Softmax: sink must be finite, got {self.sink}; None means no sink")

    @property
    def name(self) -> str:
        if isinstance(self.sink, Tensor):
            return "softmax(sink per head)"
        return "softmax" if self.sink is None else f"softmax(sink={self.sink:g})"

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.sink.view(1, -1, 1, 1),) if isinstance(self.sink, Tensor) else ()

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        absent = logits.masked_fill(~mask, -float("inf"))
        top = absent.detach().amax(-1, keepdim=True)
        top = torch.where(torch.isfinite(top), top, 0.0)
        power = (absent - top).exp()
        total = power.sum(-1, keepdim=True)
        some = total > 0
        safe = torch.where(some, total, 1.0)
        lse = torch.where(some, safe.log() + top, -float("inf"))
        ctx.statistics["lse"] = lse
        sink = tensors[0] if tensors else self.sink
        if sink is None:
            return power / safe
        sink = torch.as_tensor(sink, dtype=lse.dtype, device=lse.device)
        return power * torch.where(some, top - torch.logaddexp(lse, sink), 0.0).exp()

    def merge(self, parts: Sequence[Part]) -> Part:
        sink = self.sink
        if sink is None:
            return merge_softmax(parts)
        lse = parts[0][1].lse
        if isinstance(sink, Tensor):
            return merge_softmax(parts, sink.view(1, -1, 1))
        return merge_softmax(parts, torch.as_tensor(sink, dtype=lse.dtype, device=lse.device))


@dataclass(frozen=True, eq=False)
class Sigmoid(Normaliser):
    """w_ij = 1 / (1 + exp(-(l_ij + bias))).

    bias: a number (`flash_sigmoid(n)`: -log of the trained length, Ramapuram et al. 2024, arXiv 2409.04431),
    or None for -log(edges of the row); with None a weight depends on the number of edges, and parts do not
    merge. TypeError, ValueError: a bias that is no number, or not finite.
    """

    bias: float | None = None

    def __post_init__(self) -> None:
        if self.bias is None:
            return
        if isinstance(self.bias, bool) or not isinstance(self.bias, int | float):
            raise TypeError(
                f"Sigmoid: bias must be a number, or None for -log(edges of the row), got {self.bias!r}"
            )
        if not math.isfinite(self.bias):
            raise ValueError(
                f"Sigmoid: bias must be finite, got {self.bias}; None means -log(edges of the row)"
            )

    @property
    def name(self) -> str:
        return "sigmoid(-log edges)" if self.bias is None else f"sigmoid(bias={self.bias:g})"

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return self.bias is not None

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        if self.bias is None:
            bias = -ctx.row_counts.clamp_min(1).to(logits.dtype).log()
            shifted = logits + bias
        else:
            shifted = logits + self.bias
        ctx.statistics["lse"] = zero_where_edges(mask, logits)
        return torch.where(mask, shifted.sigmoid(), 0.0)

    def merge(self, parts: Sequence[Part]) -> Part:
        return merge_sum(parts) if self.mergeable else super().merge(parts)


@dataclass(frozen=True, eq=False)
class Identity(Normaliser):
    """w_ij = l_ij: linear attention without a feature map."""

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics["lse"] = zero_where_edges(mask, logits)
        return logits.masked_fill(~mask, 0.0)

    def merge(self, parts: Sequence[Part]) -> Part:
        return merge_sum(parts)


@dataclass(frozen=True, eq=False)
class Threshold(Normaliser):
    """w_ij = w_ij if w_ij >= at, else 0: drops small weights of an earlier stage; follow by `L1()` to
    rescale.

    Discontinuous: a weight within rounding error of the threshold may fall on either side.
    """

    at: float

    mergeable = False

    @property
    def name(self) -> str:
        return f"threshold({self.at:g})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        return torch.where(mask & (logits >= self.at), logits, 0.0)


@dataclass(frozen=True, eq=False)
class Chain(Normaliser):
    """Stages one after the other, made by `first >> second`; each sees the former's weights as logits."""

    links: tuple[Normaliser, ...]

    mergeable = False

    @property
    def name(self) -> str:
        return " >> ".join(stage.name for stage in self.links)

    @property
    def causal_safe(self) -> bool:  # type: ignore[override]
        return all(stage.causal_safe for stage in self.links)

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return math.prod(stage.amplification for stage in self.links)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for stage in self.links for tensor in stage.tensors())

    def stages(self) -> tuple[Normaliser, ...]:
        return self.links

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        taken = 0
        for stage in self.links:
            wanted = len(stage.tensors())
            logits = stage.rows(logits, mask, ctx, *tensors[taken : taken + wanted])
            taken += wanted
        return logits


def zero_where_edges(mask: Tensor, logits: Tensor) -> Tensor:
    """The lse of rows (..., rows, 1) that have none of their own: 0, or -inf without edges."""
    some = mask.expand(torch.broadcast_shapes(mask.shape, logits.shape)).any(-1, keepdim=True)
    return torch.where(some, 0.0, -float("inf")).to(logits.dtype)
