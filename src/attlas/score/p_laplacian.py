"""The score of a p-Laplacian step: known edge weights, changed by how far apart their nodes' features are.

Source: Wu et al. 2023, arXiv 2312.10613; wuhy68/p-Adapter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.score.base import Edge, PairResult, Score, times

__all__ = ["PLaplacian", "log_edge_weight"]

CLOSE = 8.0
"""Features are one where |F_i - F_j|² is at most this many units of rounding of |F_i|² + |F_j|²."""


def log_edge_weight(log_weight: Tensor, square: Tensor, p: Tensor, *, least: Tensor | float = 0.0) -> Tensor:
    """log(A g^(p-2)) = (p/2) log A + (p/2 - 1) log |F_i - F_j|², elementwise; -inf is an edge of weight 0.

    log_weight: log A; square: |F_i - F_j|²; least: its rounding error, 0 where the difference was taken
    first. Squares up to it count as 0: such an edge has weight 0, but A at p = 2, where g counts for nothing.
    (For p < 2 the power itself would be infinite.)
    """
    same = square <= least
    apart = (p / 2 - 1) * torch.where(same, 1.0, square).log()
    logit = times(p / 2, log_weight) + apart
    return torch.where(same & (p != 2), -float("inf"), logit)


@dataclass(frozen=True, eq=False)
class PLaplacian(Score):
    """logit_ij = (p/2) log A_ij + (p - 2) log ||F_i - F_j||, so that exp(logit) = A_ij g_ij^(p-2).

    The first `width` columns of queries and keys are the nodes' features F; the others are those of `inner`,
    whose logits less `lse` are log A: a softmax map, made anew pair by pair (`Dot(scale)`, lse (B, H, N, 1)
    from `attend(..., return_state=True)`), or a given one (`Given(A.log())`, no more columns, no lse).
    p: a tensor of one element, above 0; p = 2 leaves A. Edges of equal features: see `log_edge_weight`.
    Squared differences are formed from inner products: subtract what all features have in common first, or
    differences below some sqrt(8 eps) of their norms are lost.
    Softmax over these logits with one more edge of logit log(2 μ / p) and value F_i is the p-Laplacian step.
    ValueError: width below 1, p of several elements.
    """

    inner: Score
    p: Tensor
    width: int
    lse: Tensor | None = None

    kernel = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"PLaplacian: width must be at least 1 column of features, got {self.width}")
        if self.p.numel() != 1:
            raise ValueError(f"PLaplacian: p must be one number, got a tensor {tuple(self.p.shape)}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"p_laplacian({self.inner.name})"

    def tensors(self) -> tuple[Tensor, ...]:
        shift = () if self.lse is None else (self.lse,)
        return self.p.reshape(1, 1, 1, 1), *shift, *self.inner.tensors()

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return self.inner.edge_tensors()

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        p, *rest = tensors
        shift = rest.pop(0) if self.lse is not None else None
        found = self.inner.pair(query[..., self.width :], key[..., self.width :], value, edge, *rest)
        log_weight = found.logit
        if shift is not None:
            # A row without edges has lse -inf, and nothing to weigh.
            log_weight = log_weight - torch.where(torch.isfinite(shift), shift, 0.0)
        mine, theirs = query[..., : self.width], key[..., : self.width]
        norms = mine.square().sum(-1) + theirs.square().sum(-1)
        square = (norms - 2 * torch.einsum("...d,...d->...", mine, theirs)).clamp_min(0.0)
        least = CLOSE * torch.finfo(square.dtype).eps * norms
        return found._replace(logit=log_edge_weight(log_weight, square, p, least=least))
