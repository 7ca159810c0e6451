"""LSSA and LSSAR: softplus attention with the length in its scale, and with weights above the mean alone.

Source: Gao et al. 2025, arXiv 2501.13428. n_i is the number of keys that row i sees: under a causal pattern
i from 1, under any other one its own.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from attlas.attend.counts import TimesLogCount
from attlas.attend.normaliser import Normaliser, RowContext, zero_where_edges
from attlas.attend.ratio import L1, Ratio
from attlas.score import Cosine, Score

__all__ = ["PortedPower", "Scoring", "ShiftPower", "lssa", "lssar", "lssar_port", "offsets"]

FREE = 3
"""Rows of up to so many edges keep all of them: nothing is taken off their weights."""
PORT_EPS = 1e-8
LEVEL = 64.0
"""A row whose largest n A - 1 is below so many units of rounding has equal weights."""


class Scoring(TypedDict):
    """A score and the normaliser that belongs to it: `attend(q, k, v, **lssa(64))`."""

    score: Score
    normaliser: Normaliser


@dataclass(frozen=True)
class ShiftPower(Normaliser):
    """Keeps what lies above the mean: w_ij -> (x_ij / max_k x_ik)^p, x_ij = max(0, n_i w_ij - o_i).

    For weights that sum to 1 and before `L1()`: `LSSA >> ShiftPower(15) >> L1()`, or `Softmax() >> ...`. The
    mean of n_i w_ij is 1, and o_i = 1 except in rows of up to 3 edges, where it is 0. A row whose weights are
    all equal (to 64 units of rounding) has nothing above the mean: its o_i is 0 too, so that it keeps its
    weights. Division by the largest x before the power changes nothing after L1, and keeps the sum at least
    1: no epsilon takes weight away.

    power: at least 1; 3 did best at the trained length, 15 beyond it. ValueError otherwise. Parts of a row do
    not merge: x needs the sum over the whole row, and only then could the powers be added (two rounds).
    """

    power: float = 15.0

    mergeable = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power >= 1):
            raise ValueError(f"ShiftPower: power must be a finite number of at least 1, got {self.power}")

    @property
    def amplification(self) -> float:  # type: ignore[override]
        # Of x near its maximum; n A = x + 1 is rounded, not x.
        return 4.0 * self.power

    @property
    def name(self) -> str:
        return f"shift_power({self.power:g})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        counts = ctx.row_counts.to(logits.dtype)
        times = logits.masked_fill(~mask, 0.0) * counts
        top = times.amax(-1, keepdim=True)
        offset = offsets(counts, top.detach() - 1.0)
        largest = top - offset
        largest = torch.where(largest > 0, largest, 1.0)
        excess = (times - offset).clamp_min(0.0) / largest
        return excess.pow(self.power).masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class PortedPower(Normaliser):
    """max(0, n_i w_ij - o_i)^p as it is, without `ShiftPower`'s division by its largest.

    A port of LSSAR (On-Point-RND/transformer-architecture-generalization, models/lssar.py) divides this by
    its sum plus 1e-8: `PortedPower(15) >> Ratio("identity", 1e-8)`. Where nothing exceeds the mean by much,
    the powers are of the size of 1e-8 and the row loses its weight. For comparison alone. ValueError: a power
    below 1.
    """

    power: float = 15.0

    mergeable = False

    def __post_init__(self) -> None:
        ShiftPower(self.power)

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return ShiftPower(self.power).amplification

    @property
    def name(self) -> str:
        return f"ported_power({self.power:g})"

    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        ctx.statistics.setdefault("lse", zero_where_edges(mask, logits))
        offset = (ctx.row_counts > FREE).to(logits.dtype)
        excess = (logits.masked_fill(~mask, 0.0) * ctx.row_counts - offset).clamp_min(0.0)
        return excess.pow(self.power).masked_fill(~mask, 0.0)


def offsets(counts: Tensor, excess: Tensor) -> Tensor:
    """o of rows with `counts` edges and a largest n A - 1 of `excess`: 1, or 0 where nothing is taken off."""
    level = LEVEL * torch.finfo(excess.dtype).eps
    return ((counts > FREE) & (excess > level)).to(excess.dtype)


def lssa(width: int) -> Scoring:
    """Length-scaled softplus attention, for heads of `width`: a score and its normaliser.

        u_ij = softplus(log width log n_i cos(q_i, k_j)),   w_ij = u_ij / Σ_k u_ik

    Absent pairs are left out of the sum, as a 0/1 mask after the softplus leaves them. Runs on the strip
    kernel in one sweep, in float32 (bfloat16 is widened). ValueError: a width that is no whole number, or
    below 2, whose logarithm is not positive.
    """
    if not (isinstance(width, int) and not isinstance(width, bool) and width >= 2):
        raise ValueError(f"lssa: width must be that of a head, a whole number of at least 2, got {width!r}")
    return {"score": Cosine(math.log(width)), "normaliser": TimesLogCount() >> L1("softplus")}


def lssar(width: int, power: float = 15.0) -> Scoring:
    """LSSA and then `ShiftPower(power) >> L1()`: what lies above the mean of a row, to a power, rescaled.

    Runs on the strip kernel in two sweeps over the keys; parts of a row do not merge (see `ShiftPower`).
    """
    found = lssa(width)
    return {"score": found["score"], "normaliser": found["normaliser"] >> ShiftPower(power) >> L1()}


def lssar_port(width: int, power: float = 15.0) -> Scoring:
    """LSSAR as a port that circulates computes it, for comparison (see `PortedPower`)."""
    return {
        "score": lssa(width)["score"],
        "normaliser": (
            TimesLogCount()
            >> Ratio("softplus", PORT_EPS)
            >> PortedPower(power)
            >> Ratio("identity", PORT_EPS)
        ),
    }
