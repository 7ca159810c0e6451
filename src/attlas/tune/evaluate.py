"""Quality of a plan (or of the dense model) on long items, and its validation loss."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from attlas.bridges import applied
from attlas.pattern import Plan
from attlas.tasks import ItemScore, LongItem, score_items, summarise

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


def validation_losses(scores: Sequence[ItemScore], dense: Sequence[ItemScore]) -> dict[str, list[float]]:
    """Losses by dataset, one per item: "needle", mean answer cross-entropy; "passage", loss per text token.

    `dense`: the dense model's scores of the same items; a fact that it does not find is not asked of a plan
    (its answers supervise, as in the profile), unless it finds none.
    """
    any_found = any(question.exact for score in dense for question in score.questions)
    needles, passages = [], []
    for score, whole in zip(scores, dense, strict=True):
        asked = [
            question.answer_ce
            for question, known in zip(score.questions, whole.questions, strict=True)
            if known.exact or not any_found
        ]
        if asked:
            needles.append(sum(asked) / len(asked))
        passages.append(score.text_nll / score.text_tokens)
    return {"needle": needles, "passage": passages}


def merge_fallbacks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per (what, why) with the counts added."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (str(row["what"]), str(row["why"]))
        counts[key] = counts.get(key, 0) + int(row["count"])
    return [{"what": what, "why": why, "count": count} for (what, why), count in sorted(counts.items())]
