"""Scores that add to, replace or rescale logits."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attlas.score.base import Edge, Lowering, PairResult, Score, times

__all__ = ["DistanceBias", "EdgeBias", "Given", "RowScale", "ScaledScore"]

# Factors that enter a dot product as numbers of the input's dtype: half precision would round the bias
# itself.
HUGE = 1e30
_LOWERED = (torch.float32, torch.float64)


def _four_axes(what: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{what}: values must be a floating-point tensor, got {kind}")
    if values.dim() not in (2, 3, 4):
        raise ValueError(
            f"{what}: values must have axes (queries, keys), (heads, queries, keys) or "
            f"(batch, heads, queries, keys), got shape {tuple(values.shape)}"
        )
    return values.reshape((1,) * (4 - values.dim()) + tuple(values.shape))


@dataclass(frozen=True, eq=False)
class EdgeBias(Score):
    """logit = values_ij, a table over pairs that is added to another score: `Dot() + EdgeBias(values)`.

    values: (N, M), (H, N, M) or (B, H, N, M); axes of length 1 broadcast; -inf removes the pair. The gradient
    of `values` is exact. Lowers to a dot product when it depends on the key alone or on the query alone.
    """

    values: Tensor

    def __post_init__(self) -> None:
        _four_axes("EdgeBias", self.values)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"bias{tuple(self.values.shape)}"

    def tensors(self) -> tuple[Tensor, ...]:
        return (_four_axes("EdgeBias", self.values),)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(tensors[0], value)

    def lowers(self, dtype: torch.dtype) -> bool:
        values = self.tensors()[0].detach()
        row_or_key = values.shape[3] == 1 or (values.shape[2] == 1 and values.shape[1] == 1)
        # The shape first: to look at every number of a whole table would cost N x M more of them.
        # Huge numbers stand for absent edges: beside them a dot product in float32 keeps nothing else.
        return dtype in _LOWERED and row_or_key and bool((values.abs() <= HUGE).all())

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        """Query-only: a shift of the lse. Key-only: one more key column, met by a query column of ones."""
        if not self.lowers(query.dtype):
            return None
        values = self.tensors()[0].to(query.dtype)
        if values.shape[3] == 1:
            return Lowering(query[..., :0], key[..., :0], 1.0, values.squeeze(3))
        column = values.transpose(-1, -2).expand(key.shape[0], key.shape[1], key.shape[2], 1)
        largest = float(values.detach().abs().max()) if values.numel() else 0.0  # a call without keys
        return Lowering(torch.ones_like(query[..., :1]), column, 1.0, None, largest, 1)


@dataclass(frozen=True, eq=False)
class Given(EdgeBias):
    """logit = logits_ij, given from outside; queries and keys are not looked at. Shapes as for `EdgeBias`."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"given{tuple(self.values.shape)}"


@dataclass(frozen=True, eq=False)
class DistanceBias(Score):
    """Linear penalty of distance: logit = -slope_h * (i - j), by positions, to be added to another score.

    slopes: (H,), one for each query head. Source: ALiBi, Press et al. 2022, arXiv 2108.12409 (causal form:
    keys after the query would be rewarded; combine with `causal()`). Lowers to one more column of positions,
    centred so that the factors stay small; never lowered below float32.
    """

    slopes: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.slopes, Tensor) or self.slopes.dim() != 1:
            got = tuple(self.slopes.shape) if isinstance(self.slopes, Tensor) else type(self.slopes).__name__
            raise ValueError(
                f"DistanceBias: slopes must be a tensor with one number per query head, got {got}"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"distance_bias(heads={self.slopes.numel()})"

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.slopes.view(1, -1, 1, 1),)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        distance = (edge.query_position - edge.key_position).to(query.dtype)
        return PairResult(-tensors[0] * distance, value)

    def lowers(self, dtype: torch.dtype) -> bool:
        return dtype in _LOWERED

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        if not self.lowers(query.dtype):
            return None
        slopes = self.slopes.to(query.dtype).view(1, -1, 1, 1)
        places = edge.key_position
        centre = (places.min() + places.max()) // 2 if places.numel() else 0
        at_query = (edge.query_position - centre).to(query.dtype)
        at_key = (edge.key_position - centre).to(query.dtype)
        column = at_key.transpose(-1, -2).expand(key.shape[0], key.shape[1], key.shape[2], 1)
        factor = slopes.expand(query.shape[0], query.shape[1], query.shape[2], 1)
        shift = (-slopes * at_query).squeeze(-1)
        return Lowering(factor, column, 1.0, shift, float(at_key.abs().max()) if places.numel() else 0.0, 1)


@dataclass(frozen=True, eq=False)
class RowScale:
    """A factor per query row, for `RowScale(values) * score`: a learned or per-row temperature.

    values: (N,), (H, N) or (B, H, N); axes of length 1 broadcast.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor) or self.values.dim() not in (1, 2, 3):
            got = tuple(self.values.shape) if isinstance(self.values, Tensor) else type(self.values).__name__
            raise ValueError(f"RowScale: values must be a tensor (N,), (H, N) or (B, H, N), got {got}")

    def __mul__(self, score: Score) -> "ScaledScore":
        if not isinstance(score, Score):
            return NotImplemented
        return ScaledScore(self, score)


@dataclass(frozen=True, eq=False)
class ScaledScore(Score):
    """logit_ij = factor_i * inner_ij; made by `RowScale(values) * score`. An inner -inf stays absent."""

    factor: RowScale
    inner: Score

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"row_scale * ({self.inner.name})"

    @cached_property
    def _factor(self) -> Tensor:
        values = self.factor.values
        return values.reshape((1,) * (3 - values.dim()) + tuple(values.shape)).unsqueeze(-1)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self._factor, *self.inner.tensors())

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return self.inner.edge_tensors()

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        result = self.inner.pair(query, key, value, edge, *tensors[1:])
        return result._replace(logit=times(tensors[0], result.logit))

    def lowers(self, dtype: torch.dtype) -> bool:
        return dtype in _LOWERED and self.inner.lowers(dtype)

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        inner = self.inner.lower(query, key, edge)
        if inner is None:
            return None
        factor = self._factor.to(query.dtype)
        shift = None if inner.shift is None else inner.shift * factor.squeeze(-1)
        return Lowering(inner.query * factor, inner.key, inner.scale, shift, inner.largest, inner.extra)
