"""Quality of a plan (or of the dense model) on long items, and its validation loss."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attlas.bridges import applied
from attlas.pattern import Plan
from attlas.tasks import ItemScore, LongItem, score_items, summarise
from attlas.tune.calibrate import CalibrationItem, response_loss

__all__ = ["Evaluation", "evaluate", "merge_fallbacks", "validation_losses"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of every item, and what fell back to a slower or fuller way: {"what", "why", "count"}."""

    scores: tuple[ItemScore, ...]
    fallbacks: tuple[Mapping[str, Any], ...] = ()

    @property
    def quality(self) -> dict[str, Any]:
        """`tasks.summarise`: text_nll, answer_ce, exact, needles, by_depth."""
        return summarise(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "scores": [score.to_dict() for score in self.scores],
            "fallbacks": [dict(row) for row in self.fallbacks],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Inverse of `to_dict`."""
        return cls(tuple(map(ItemScore.from_dict, data["scores"])), tuple(data["fallbacks"]))


def evaluate(
    model: nn.Module,
    items: Sequence[LongItem],
    plan: Plan | None = None,
    *,
    backend: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score the items (all of one length N) with the plan applied, or dense without one.

    Spans are those of requests of N tokens in all, for the prefill and for the questions that follow it, and
    the questions read the ragged cache that a deployed plan keeps: nothing that it drops is seen.
    """
    lengths = {item.length for item in items}
    if len(lengths) != 1:
        raise ValueError(f"items must all have one length, got {sorted(lengths)}; evaluate each length apart")
    context = nullcontext() if plan is None else applied(model, plan, total=lengths.pop(), backend=backend)
    with context as handle:
        new_cache = None if handle is None else handle.new_cache
        scores = score_items(model, items, new_cache=new_cache, progress=progress)
        fallbacks = tuple(handle.fallbacks) if handle is not None else ()
    return Evaluation(tuple(scores), fallbacks)


def validation_losses(
    model: nn.Module,
    items: Sequence[CalibrationItem],
    plan: Plan | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Mean cross-entropy of the response tokens of every item, by tag (the datasets of MoA's step 9)."""
    found: dict[str, list[float]] = {}
    for item in items:
        context = nullcontext() if plan is None else applied(model, plan, total=item.length)
        with torch.inference_mode(), context:
            found.setdefault(item.tag, []).append(response_loss(model, item).item())
        if progress is not None:
            progress(1)
    return found


def merge_fallbacks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per (what, why) with the counts added."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (str(row["what"]), str(row["why"]))
        counts[key] = counts.get(key, 0) + int(row["count"])
    return [{"what": what, "why": why, "count": count} for (what, why), count in sorted(counts.items())]
