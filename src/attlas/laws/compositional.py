"""CAB's compositional index: scores of several tasks with metrics of their own made comparable.

Source: Zhang et al. 2022, arXiv 2210.07661, and its script.
"""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Index", "compositional_index"]

Direction = Literal["higher", "lower"]
Table = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Index:
    """Standard deviations above the mean: of each task, and their mean, None where a task is missing."""

    tasks: Mapping[str, float]
    average: float | None


def compositional_index(
    table: Table, directions: Mapping[str, Direction], exclude: Collection[str] = ()
) -> dict[str, Index]:
    """CI of each attention of one pattern: +-(x - mean) / std per metric, mean over metrics, then over tasks.

    table: attention -> task -> metric -> value; an attention may lack a task, not a metric of one.
    directions: of every metric, whether "higher" or "lower" is better. exclude: attentions that get an index
    and do not count in mean and sample standard deviation (FlashAttention in the published tables, which is
    softmax attention once more). A metric in which all are equal gives 0.

    Raises ValueError for fewer than two attentions with a task, a metric without a direction, a missing
    metric, and values that are not finite.
    """
    unknown = sorted(set(exclude) - set(table))
    if unknown:
        raise ValueError(f"exclude must name attentions of the table, got {', '.join(unknown)}")
    tasks = list(dict.fromkeys(task for row in table.values() for task in row))
    scores: dict[str, dict[str, float]] = {name: {} for name in table}
    for task in tasks:
        rows = {name: row[task] for name, row in table.items() if task in row}
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        per_metric = [_standardised(task, metric, rows, directions, exclude) for metric in metrics]
        for name in rows:
            scores[name][task] = statistics.fmean(found[name] for found in per_metric)
    return {
        name: Index(found, statistics.fmean(found.values()) if len(found) == len(tasks) else None)
        for name, found in scores.items()
    }


def _standardised(
    task: str,
    metric: str,
    rows: Mapping[str, Mapping[str, float]],
    directions: Mapping[str, Direction],
    exclude: Collection[str],
) -> dict[str, float]:
    if directions.get(metric) not in ("higher", "lower"):
        raise ValueError(
            f"directions must say whether 'higher' or 'lower' {metric} is better, got "
            f"{directions.get(metric)!r}"
        )
    for name, row in rows.items():
        if metric not in row or not math.isfinite(row[metric]):
            raise ValueError(f"{name} must have a finite {metric} in {task}, got {row.get(metric)}")
    counted = [row[metric] for name, row in rows.items() if name not in exclude]
    if len(counted) < 2:
        raise ValueError(f"{task} needs at least 2 attentions to compare {metric}, got {len(counted)}")
    mean, spread = statistics.fmean(counted), statistics.stdev(counted)
    sign = 1 if directions[metric] == "higher" else -1
    return {name: sign * (row[metric] - mean) / spread if spread else 0.0 for name, row in rows.items()}
