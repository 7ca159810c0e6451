"""Stages that look at the number of a row's edges, n_i: under a causal pattern the place of the row from 1.

The rows of a window, of a neighbourhood or of a packed document count the edges that they have. Parts of a
row do not merge: each would count its own.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from attlas.attend.normaliser import Normaliser, RowContext, zero_where_edges

__all__ = ["OverCount", "TimesLogCount"]


@dataclass(frozen=True)
class TimesLogCount(Normaliser):
    """l_ij -> l_ij log n_i: sharper in rows with more edges, so that large ones do not fade.

    For a normaliser that follows it, `TimesLogCount() >> L1("softplus")`. A row of one edge has logit 0.
    Source: the scale of LSSA, arXiv 2501.13428.
    """

    mergeable = False

    @property
    def name(self) -> str:
        return "times_log_count"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        # Where there is no edge the logit may be -inf, and 0 * -inf is NaN.
        factor = ctx.row_counts.clamp_min(1).to(logits.dtype).log()
        return (logits.masked_fill(~mask, 0.0) * factor).masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class OverCount(Normaliser):
    """w_ij -> w_ij / n_i^power, after an elementwise stage: `Sigmoid(0.0) >> OverCount(1.0)`.

    Source: baselines in the code of arXiv 2409.04431 (powers 1 and 1/2). ValueError: a power that is not
    finite.
    """

    power: float = 1.0

    mergeable = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise ValueError(f"OverCount: power must be a finite number, got {self.power}")

    @property
    def name(self) -> str:
        return f"over_count({self.power:g})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        factor = ctx.row_counts.clamp_min(1).to(logits.dtype) ** -self.power
        return logits.masked_fill(~mask, 0.0) * factor
