"""Dot-product scores."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.score.base import Edge, Lowering, PairResult, Score

__all__ = ["Cosine", "Dot"]


def _inner(query: Tensor, key: Tensor) -> Tensor:
    # einsum turns the broadcast axes of a tile into one matrix product, and stays elementwise for edges.
    return torch.einsum("...d,...d->...", query, key)


@dataclass(frozen=True)
class Dot(Score):
    """Scaled dot product: logit = scale * q_i . k_j, scale = 1/sqrt(D) unless given.

    Source: Vaswani et al. 2017, arXiv 1706.03762. Cost: 2 D FLOPs a pair.
    """

    scale: float | None = None

    kernel = "dot"

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f"Dot: scale must be a finite number other than 0 or None, got {self.scale}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return "dot" if self.scale is None else f"dot(scale={self.scale:g})"

    def scale_for(self, width: int) -> float:
        """The factor that is used for queries and keys of this width."""
        return 1.0 / math.sqrt(width) if self.scale is None else self.scale

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(_inner(query * self.scale_for(query.shape[-1]), key), value)

    def lowers(self, dtype: torch.dtype) -> bool:
        return True

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering:
        return Lowering(query, key, self.scale_for(query.shape[-1]))


@dataclass(frozen=True)
class Cosine(Score):
    """Cosine of the angle between query and key: logit = scale * q_i . k_j / (|q_i| |k_j|).

    A zero vector has cosine 0 with everything. Source: query-key normalisation, Henry et al. 2020,
    arXiv 2010.04245 (there the scale is learned: multiply by a `RowScale`). Lowers to a dot product.
    """

    scale: float = 10.0

    kernel = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f"Cosine: scale must be a finite number other than 0, got {self.scale}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"cosine(scale={self.scale:g})"

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(_inner(_unit(query) * self.scale, _unit(key)), value)

    def lowers(self, dtype: torch.dtype) -> bool:
        return True

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering:
        return Lowering(_unit(query), _unit(key), self.scale)


def _unit(vector: Tensor) -> Tensor:
    square = vector.square().sum(-1, keepdim=True)
    safe = torch.where(square > 0, square, 1.0)
    return vector * safe.rsqrt()
