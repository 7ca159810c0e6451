"""Normalisers that divide a feature of the logits by its sum over the row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attlas.attend.normaliser import Normaliser, RowContext, zero_where_edges
from attlas.attend.state import Part, merge_mean

__all__ = ["L1", "Ratio"]

_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "softplus": functional.softplus,
    "relu": functional.relu,
    "exp": torch.exp,
    "taylor": lambda x: torch.addcmul(1 + x, x, x, value=0.5),
}


@dataclass(frozen=True, eq=False)
class L1(Normaliser):
    """w_ij = f(l_ij) / Σ_n |f(l_in)|, 0 where the sum is 0.

    feature: "identity" (the default: rescales what an earlier stage gave), "softplus", "relu", "exp" (without
    softmax's protection against overflow) or "taylor" (1 + l + l^2/2, exp to second order, at least 1/2).
    Where f may be negative the sum of absolute values is used.
    """

    feature: str = "identity"

    amplification = 2.0

    def __post_init__(self) -> None:
        _known_feature("L1", self.feature)

    @property
    def name(self) -> str:
        return f"l1({self.feature})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        feature = _featured(self.feature, logits, mask)
        total = feature.abs().sum(-1, keepdim=True)
        ctx.statistics["total"] = total
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        return feature / torch.where(total == 0, 1.0, total)

    def merge(self, parts: Sequence[Part]) -> Part:
        return merge_mean(parts)


@dataclass(frozen=True, eq=False)
class Ratio(Normaliser):
    """w_ij = f(l_ij) / (eps + Σ_n f(l_in)): the divisor of linear attention, kept from 0 by eps > 0.

    feature: "relu", "softplus", "exp", "taylor", or "identity" (the default, for scores that are products of
    positive features: Katharopoulos et al. 2020, arXiv 2006.16236); where f may be negative the sum may come
    close to -eps, and the weights grow without bound (unlike `L1`, which divides by the sum of absolute
    values).
    ValueError: an unknown feature, eps that is not positive.
    """

    feature: str = "identity"
    eps: float = 1e-6

    amplification = 2.0

    def __post_init__(self) -> None:
        _known_feature("Ratio", self.feature)
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(
                f"Ratio: eps must be a positive number, got {self.eps}; L1() divides without one"
            )

    @property
    def name(self) -> str:
        return f"ratio({self.feature}, eps={self.eps:g})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        feature = _featured(self.feature, logits, mask)
        total = feature.sum(-1, keepdim=True)
        ctx.statistics["total"] = total
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        return feature / (total + self.eps)

    def merge(self, parts: Sequence[Part]) -> Part:
        return merge_mean(parts, self.eps)


def _known_feature(owner: str, feature: str) -> None:
    if feature not in _FEATURES:
        raise ValueError(f"{owner}: feature must be one of {', '.join(_FEATURES)}, got {feature!r}")


def _featured(feature: str, logits: Tensor, mask: Tensor) -> Tensor:
    return _FEATURES[feature](logits.masked_fill(~mask, 0.0)).masked_fill(~mask, 0.0)
