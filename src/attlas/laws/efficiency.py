"""From which length on a linear cost is below a quadratic one.

Source: Zhang et al. 2022 (CAB), arXiv 2210.07661, and its script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["EfficiencyLength", "efficiency_length"]


@dataclass(frozen=True)
class EfficiencyLength:
    """Where two fitted costs cross.

    length: the larger crossing in tokens, None where the curves do not cross or the quadratic one does not
    grow faster; quadratic: (a, b, c) of a n^2 + b n + c, linear: (d, e) of d n + e; fits: R^2 of both.
    cheaper: whether the linear cost, as given and not as fitted, is below the quadratic one at all of the
    lengths, at some or at none: without a crossing it tells which of the two costs less.
    """

    length: float | None
    quadratic: tuple[float, float, float]
    linear: tuple[float, float]
    fits: tuple[float, float]
    cheaper: Literal["always", "partly", "never"]


def efficiency_length(
    lengths: Sequence[float], quadratic: Sequence[float], linear: Sequence[float], *, skip: int = 0
) -> EfficiencyLength:
    """Least squares of both costs over `lengths`, and the larger root of a n^2 + (b - d) n + (c - e) = 0.

    quadratic: costs of softmax attention; linear: of the other, in the same unit. skip: shortest lengths that
    the linear fit leaves out (1 in the source for times, 0 for memory). A length outside of `lengths` is
    an extrapolation. Raises ValueError for lists that do not fit or are too short (a parabola goes through
    any 3 points), numbers that are not finite, and equal lengths.
    """
    n, first, second = (np.asarray(part, dtype=np.float64) for part in (lengths, quadratic, linear))
    if not (n.ndim == 1 and n.shape == first.shape == second.shape):
        raise ValueError(
            "lengths, quadratic and linear must be lists of one length, got shapes "
            f"{n.shape}, {first.shape} and {second.shape}"
        )
    if skip < 0 or len(n) < max(4, skip + 3):
        raise ValueError(
            f"a fit needs at least 4 lengths for the parabola and 3 after skip={skip} for the line, "
            f"got {len(n)} lengths"
        )
    for name, part in (("lengths", n), ("quadratic", first), ("linear", second)):
        if not np.isfinite(part).all():
            raise ValueError(f"{name} must be finite numbers, got {part.tolist()}")
    if len(np.unique(n)) < len(n):
        raise ValueError(f"lengths must differ, one cost for each, got {n.tolist()}")
    order = np.argsort(n)
    n, first, second = n[order], first[order], second[order]
    (a, b, c), fit = _fitted(n, first, 2)
    (d, e), other = _fitted(n[skip:], second[skip:], 1)
    inside = (b - d) ** 2 - 4 * a * (c - e)
    crosses = a > 0 and inside >= 0
    root = float((d - b + inside**0.5) / (2 * a)) if crosses else None
    below = second < first
    return EfficiencyLength(
        length=root if root is not None and root > 0 else None,
        quadratic=(a, b, c),
        linear=(d, e),
        fits=(fit, other),
        cheaper="always" if below.all() else "partly" if below.any() else "never",
    )


def _fitted(n: np.ndarray, cost: np.ndarray, degree: int) -> tuple[tuple[float, ...], float]:
    found = np.polyfit(n, cost, degree)
    left = ((cost - np.polyval(found, n)) ** 2).sum()
    whole = ((cost - cost.mean()) ** 2).sum()
    return tuple(float(one) for one in found), float(1 - left / whole) if whole else 1.0
