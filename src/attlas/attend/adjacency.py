"""Maps of attention weights to adjacencies: stages such as `Softmax() >> SoftThreshold(0.2)`.

Source: Buehler 2025, arXiv 2501.02393. A ≥ 0 are the weights of an earlier stage, θ the threshold: a number,
or a learned tensor of one element or of one per query head. What is off the pattern stays exactly 0, also
where a map of 0 is not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attlas.attend.normaliser import Normaliser, RowContext, zero_where_edges

__all__ = ["Binary", "SoftThreshold", "TopShare"]

_MAPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda x, beta: functional.relu(x),
    "silu": lambda x, beta: x * (beta * x).sigmoid(),
    "softplus": lambda x, beta: functional.softplus(x, beta=beta),
    "sigmoid": lambda x, beta: (beta * x).sigmoid(),
}


@dataclass(frozen=True, eq=False)
class _AtThreshold(Normaliser):
    """A stage with a threshold θ; the gradient of a tensor is exact where the map has one."""

    at: float | Tensor = 0.2

    mergeable = False

    def __post_init__(self) -> None:
        own = type(self).__name__
        if isinstance(self.at, Tensor):
            if self.at.dim() > 1:
                raise ValueError(
                    f"{own}: a threshold tensor must hold one number, or one per query head, got "
                    f"{tuple(self.at.shape)}"
                )
        elif not math.isfinite(self.at):
            raise ValueError(f"{own}: at must be a finite threshold, got {self.at}")

    @property
    def _told(self) -> str:
        return "learned" if isinstance(self.at, Tensor) else f"{self.at:g}"

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.at.reshape(1, -1, 1, 1),) if isinstance(self.at, Tensor) else ()

    def _over(self, weights: Tensor, mask: Tensor, ctx: RowContext, tensors: tuple[Tensor, ...]) -> Tensor:
        """A - θ, 0 off the mask."""
        ctx.statistics.setdefault("lse", zero_where_edges(mask, weights))
        return weights.masked_fill(~mask, 0.0) - (tensors[0] if tensors else self.at)


@dataclass(frozen=True, eq=False)
class SoftThreshold(_AtThreshold):
    """w_ij = f(A_ij - θ): "relu", "silu", "softplus", or "sigmoid", with `sharpness` β.

    silu: x σ(βx), softplus: ln(1 + exp(βx)) / β, sigmoid: σ(βx). saturates: weights above θ become 1, which
    carry no gradient. As a first stage `SoftThreshold(0.0)` is the relu of the logits. Weights of
    softplus and sigmoid are positive on every edge of the pattern, however small A_ij is.
    ValueError: another map, β that is not positive.
    """

    at: float | Tensor = 0.2
    map: str = "relu"
    sharpness: float = 1.0
    saturates: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.map not in _MAPS:
            raise ValueError(f"SoftThreshold: map must be one of {', '.join(_MAPS)}, got {self.map!r}")
        if not (math.isfinite(self.sharpness) and self.sharpness > 0):
            raise ValueError(f"SoftThreshold: sharpness must be a positive number, got {self.sharpness}")

    @property
    def name(self) -> str:
        sharp = "" if self.sharpness == 1.0 else f", sharpness={self.sharpness:g}"
        return f"{self.map}(above {self._told}{sharp}{', 1 above' if self.saturates else ''})"

    @property
    def amplification(self) -> float:  # type: ignore[override]
        # σ(βx) has slope β/4, silu at most 1.1; the others at most 1.
        return max(2.0, self.sharpness / 2)

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        over = self._over(logits, mask, ctx, tensors)
        found = _MAPS[self.map](over, self.sharpness)
        if self.saturates:
            found = torch.where(over > 0, 1.0, found)
        return found.masked_fill(~mask, 0.0)


@dataclass(frozen=True, eq=False)
class Binary(_AtThreshold):
    """w_ij = 1 where A_ij > θ, else 0. No gradient reaches the scores or θ."""

    @property
    def name(self) -> str:
        return f"binary(above {self._told})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        over = self._over(logits, mask, ctx, tensors)
        return ((over > 0) & mask).to(logits.dtype)


@dataclass(frozen=True, eq=False)
class TopShare(Normaliser):
    """w_ij = 1 for the k largest weights of row i, else 0; all its edges where there are fewer than k.

    count: k itself, for all rows. Otherwise k = max(1, floor(share · edges of i)), which under a causal
    pattern follows from the past alone; the paper's floor(share · n) would tell every row how long the
    sequence is. No gradient reaches the scores. Among equals the choice is torch's.
    """

    share: float = 0.1
    count: int | None = None

    mergeable = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"TopShare: share must be above 0 and at most 1, got {self.share}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"TopShare: count must be at least 1, or None for a share, got {self.count}")

    @property
    def name(self) -> str:
        return f"top({self.share:g} of the edges)" if self.count is None else f"top({self.count})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        edges = mask.expand(logits.shape).sum(-1, keepdim=True)
        if self.count is None:
            # In float64: 0.1 * 30 in float32 may fall short of 3.
            wanted = (edges.double() * self.share + 1e-9).floor().long().clamp_min(1)
        else:
            wanted = torch.full_like(edges, self.count)
        order = logits.detach().masked_fill(~mask, -float("inf")).argsort(-1, descending=True)
        place = torch.empty_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        return ((place < wanted) & mask).to(logits.dtype)
