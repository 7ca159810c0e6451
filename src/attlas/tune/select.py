"""Choose among Pareto plans by validation at a length that was never profiled (MoA, arXiv 2406.14909)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from attlas.pattern import Plan

__all__ = ["Selection", "select", "spread"]

T = TypeVar("T")
Losses = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class Selection:
    """`best`: index of the chosen plan; `table[i]`: loss of plan i per dataset; `scores[i]`: their mean."""

    best: int
    scores: tuple[float, ...]
    table: tuple[dict[str, float], ...]


def select(
    plans: Sequence[Plan],
    validate: Callable[[Plan], Losses],
    *,
    limits: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """The plan of least validation loss: mean per dataset first, then over datasets; a tie goes to the first.

    `validate(plan)`: {dataset: loss, or the losses of its items}, the mean cross-entropy of response tokens
    at a length that was not profiled. Averaging per dataset first keeps a large dataset from deciding alone.
    Raises ValueError for no plans, different datasets between plans, or a loss that is not finite.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none; search with a larger budget")
    table: list[dict[str, float]] = []
    for done, plan in enumerate(plans):
        row = {name: _mean(name, loss) for name, loss in validate(plan).items()}
        if not row or (table and set(row) != set(table[0])):
            raise ValueError(
                f"validate must return the same datasets for every plan, got {sorted(row)} after "
                f"{sorted(table[0]) if table else 'nothing'}"
            )
        table.append(row)
        if progress is not None:
            progress(done + 1, len(plans))
    scores = tuple(sum(row.values()) / len(row) for row in table)
    excess = [
        max((max(row[name] - most, 0.0) for name, most in (limits or {}).items()), default=0.0)
        for row in table
    ]
    best = min(range(len(scores)), key=lambda index: (excess[index], scores[index]))
    return Selection(best, scores, tuple(table))


def spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most `most` items, evenly spread and with both ends: validates part of a long Pareto front.

    A departure for slow machines; the paper validates every Pareto plan.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    if len(items) <= most:
        return tuple(items)
    if most == 1:
        return (items[len(items) // 2],)
    return tuple(items[round(index * (len(items) - 1) / (most - 1))] for index in range(most))


def _mean(name: str, loss: float | Sequence[float]) -> float:
    values = [float(value) for value in loss] if isinstance(loss, Sequence) else [float(loss)]
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"validate gave {values} for {name!r}; losses must be finite and at least one")
    return sum(values) / len(values)
