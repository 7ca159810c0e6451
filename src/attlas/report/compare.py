"""Plain comparisons between the methods of a run: on them rest the verdict and the key numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

from attlas.report.run import Method, Quality

__all__ = ["agree", "apart", "beats", "fewest_needles", "kept_share", "may_be_chance", "outcome"]

EQUAL_DENSITY = 0.02  # relative difference of deployed densities up to which two methods cost the same


def agree(better: Iterable[bool | None]) -> bool | None:
    """True where all are True, False where all are False, else None; None of nothing."""
    found = set(better)
    return found.pop() if len(found) == 1 else None


def outcome(one: Quality, two: Quality) -> bool | None:
    """Whether `one` is better than `two`: True lower answer CE and no fewer exact matches, False the reverse.

    None: lower in one, better in the other, or no answer CE to compare.
    """
    if one.answer_ce is None or two.answer_ce is None:
        return None
    gained = 0.0 if one.exact is None or two.exact is None else one.exact - two.exact
    lower = one.answer_ce < two.answer_ce
    if lower and gained >= 0:
        return True
    return None if lower or gained > 0 else False


def beats(plan: Method, other: Method, lengths: Sequence[int]) -> bool | None:
    """`outcome` at every length where both have an answer CE, if it is the same at all of them, else None."""
    pairs = [(p, o) for n in lengths if (p := plan.quality.get(n)) and (o := other.quality.get(n))]
    return agree(outcome(p, o) for p, o in pairs if p.answer_ce is not None and o.answer_ce is not None)


def kept_share(dense: Method, other: Method, lengths: Sequence[int]) -> float | None:
    """Exact match of `other` as a share of dense's, needles of all `lengths` pooled; None if undefined."""
    pairs = [
        (a.exact, b.exact, a.needles or 1)
        for n in lengths
        if (a := dense.quality.get(n)) and (b := other.quality.get(n))
    ]
    known = [(a * n, b * n) for a, b, n in pairs if a is not None and b is not None]
    found = sum(a for a, _ in known)
    return sum(b for _, b in known) / found if found else None


def fewest_needles(methods: Iterable[Method | None], lengths: Sequence[int]) -> int | None:
    """The smallest number of needles behind any exact match of these methods at these lengths."""
    counts = [
        q.needles
        for m in methods
        if m is not None
        for n in lengths
        if (q := m.quality.get(n)) is not None and q.exact is not None and q.needles
    ]
    return min(counts, default=None)


def apart(one: Method, two: Method, lengths: Sequence[int]) -> tuple[float, float] | None:
    """The deployed densities that differ most, where two methods do not cost the same; else None."""
    pairs = [(a, b) for n in lengths if (a := one.density_at(n)) and (b := two.density_at(n))]
    unequal = [(a, b) for a, b in pairs if abs(a - b) > EQUAL_DENSITY * a]
    return max(unequal, key=lambda pair: abs(pair[0] - pair[1]), default=None)


def may_be_chance(one: Quality, two: Quality) -> bool:
    """Whether two different shares differ by less than two standard errors of their difference (binomial).

    The variance is that of (k + 1) / (n + 2): none or all of a few needles is no certainty.
    """
    if one.exact is None or two.exact is None or not one.needles or not two.needles:
        return False
    variance = 0.0
    for exact, needles in ((one.exact, one.needles), (two.exact, two.needles)):
        share = (exact * needles + 1) / (needles + 2)
        variance += share * (1 - share) / needles
    return 0 < abs(one.exact - two.exact) <= 2 * sqrt(variance)
