"""Bilinear scores: a matrix per head between query and key."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.score.base import Edge, Lowering, PairResult, Score

__all__ = ["Bilinear"]


@dataclass(frozen=True, eq=False)
class Bilinear(Score):
    """logit = scale * q_i^T G k_j, scale = 1/sqrt(D) unless given; G = 1 is `Dot`.

    matrix: (D, D), (H, D, D) or (B, H, D, D), one per query head (with grouped queries too); axes of length 1
    broadcast. Gradients reach it. Lowers to a dot product by folding G into the query once: N D^2 FLOPs a
    head, no pair costs more than in `Dot`. A float32 matrix stays float32 until it is folded, also under
    bfloat16 queries. Source: power law graph attention, Gokden 2021, arXiv 2107.02039.
    """

    matrix: Tensor
    scale: float | None = None

    def __post_init__(self) -> None:
        matrix = self.matrix
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"Bilinear: matrix must be a floating-point tensor, got {kind}")
        if matrix.dim() not in (2, 3, 4) or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(
                "Bilinear: matrix must be square, (width, width), (heads, width, width) or "
                f"(batch, heads, width, width), got shape {tuple(matrix.shape)}"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(
                f"Bilinear: scale must be a finite number other than 0 or None, got {self.scale}"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"bilinear{tuple(self.matrix.shape)}"

    @property
    def _four(self) -> Tensor:
        return self.matrix.reshape((1,) * (4 - self.matrix.dim()) + tuple(self.matrix.shape))

    def _scale(self) -> float:
        return 1.0 / math.sqrt(self.matrix.shape[-1]) if self.scale is None else self.scale

    def tensors(self) -> tuple[Tensor, ...]:
        """(B, H, 1, 1, D, D): no axis of rows or keys."""
        return (self._four[:, :, None, None],)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        folded = _folded(query, tensors[0])
        return PairResult(torch.einsum("...d,...d->...", folded * self._scale(), key), value)

    def lowers(self, dtype: torch.dtype) -> bool:
        return True

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering:
        return Lowering(_folded(query, self._four[:, :, None]), key, self._scale())


def _folded(query: Tensor, matrix: Tensor) -> Tensor:
    """q^T G of every row, in the wider of both types, then in the query's."""
    if query.shape[-1] != matrix.shape[-1]:
        raise ValueError(
            f"Bilinear: matrix must have the queries' width {query.shape[-1]}, "
            f"got shape {tuple(matrix.shape)}"
        )
    dtype = torch.promote_types(query.dtype, matrix.dtype)
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("...d,...de->...e", query.to(dtype), matrix.to(dtype)).to(query.dtype)
