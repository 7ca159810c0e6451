"""Scores of a model on long items: text loss, answer loss, exact match; one prefill per item."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from attlas.tasks.needles import LongItem, Question

__all__ = ["ItemScore", "QuestionScore", "score_item", "score_items", "summarise"]

# Rows of logits turned to float32 at a time: 256 x 50k = 50 MB.
_ROWS = 256
DEPTH_BINS = 5


@dataclass(frozen=True)
class QuestionScore:
    """`answer_ce`: mean cross-entropy over the answer's tokens (nats); `exact`: all are the arg-max."""

    depth: float
    kind: str
    answer_ce: float
    exact: bool


@dataclass(frozen=True)
class ItemScore:
    """`text_nll`: sum over `text_tokens` haystack tokens (nats)."""

    text_nll: float
    text_tokens: int
    questions: tuple[QuestionScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"questions": [asdict(question) for question in self.questions]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ItemScore":
        """Inverse of `to_dict`."""
        questions = tuple(QuestionScore(**question) for question in data["questions"])
        return cls(float(data["text_nll"]), int(data["text_tokens"]), questions)


def score_items(
    model: Any,
    items: Iterable[LongItem],
    *,
    batch: int | None = None,
    new_cache: Callable[[], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ItemScore]:
    """`score_item` of each, then `progress(1)`. Knows nothing of plans: call it within `bridges.applied`."""
    scores = []
    for item in items:
        scores.append(score_item(model, item, batch=batch, new_cache=new_cache))
        if progress is not None:
            progress(1)
    return scores


@torch.inference_mode()
def score_item(
    model: Any, item: LongItem, *, batch: int | None = None, new_cache: Callable[[], Any] | None = None
) -> ItemScore:
    """Prefill the context once, then let all questions follow on copies of its KV cache.

    new_cache() makes the empty cache (default: the model's own kind), so that what is scored is what a
    deployed cache remembers.

    Exact match by teacher forcing equals greedy generation: up to the first wrong token both see one past.
    Questions run `batch` (default: all) at a time, padded on the right, which a causal model never sees.
    Losses in float32 whatever the model's type. Cost: one forward of item.length tokens plus the suffixes.
    """
    device = next(model.parameters()).device
    context = torch.tensor([item.context], device=device)
    empty = None if new_cache is None else new_cache()
    out = model(input_ids=context, past_key_values=empty, use_cache=True)
    cache = out.past_key_values
    if item.questions and cache is None:
        raise TypeError(f"{type(model).__name__} returned no KV cache; questions need a decoder")
    text_nll, text_tokens = _haystack_loss(out.logits[0], context[0], item.haystack)
    del out
    scored: list[QuestionScore] = []
    size = batch or max(len(item.questions), 1)
    for first in range(0, len(item.questions), size):
        questions = item.questions[first : first + size]
        last = first + size >= len(item.questions)
        scored += _ask(model, cache if last else copy.deepcopy(cache), questions, device)
    return ItemScore(text_nll, text_tokens, tuple(scored))


def _ask(model: Any, cache: Any, questions: Sequence[Question], device: torch.device) -> list[QuestionScore]:
    if len(questions) > 1:
        cache.batch_repeat_interleave(len(questions))
    # The last answer token is judged, never fed.
    rows = [(*question.suffix, *question.answer[:-1]) for question in questions]
    width = max(map(len, rows))
    ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    scores = []
    for row, question in enumerate(questions):
        target = torch.tensor(question.answer, device=device)
        first = len(question.suffix) - 1
        answer = logits[row, first : first + len(target)].float()
        loss = cross_entropy(answer, target).item()
        exact = bool((answer.argmax(-1) == target).all())
        scores.append(QuestionScore(question.depth, question.kind, loss, exact))
    return scores


def _haystack_loss(
    logits: torch.Tensor, ids: torch.Tensor, ranges: Sequence[tuple[int, int]]
) -> tuple[float, int]:
    """Summed loss of the haystack tokens; the first of each range follows none and is left out."""
    where = [torch.arange(start + 1, stop) for start, stop in ranges if stop - start > 1]
    if not where:
        return 0.0, 0
    targets = torch.cat(where).to(ids.device)
    total = 0.0
    for part in targets.split(_ROWS):
        total += cross_entropy(logits[part - 1].float(), ids[part], reduction="sum").item()
    return total, len(targets)


def summarise(scores: Sequence[ItemScore], *, bins: int = DEPTH_BINS) -> dict[str, Any]:
    """Means: text_nll per token, answer_ce and exact per needle, both also by depth (bin centres)."""
    tokens = sum(score.text_tokens for score in scores)
    asked = [question for score in scores for question in score.questions]
    if not tokens or not asked:
        raise ValueError(f"nothing to summarise: {tokens} text tokens and {len(asked)} questions")
    by_depth = []
    for index in range(bins):
        inside = [question for question in asked if min(int(question.depth * bins), bins - 1) == index]
        if inside:
            by_depth.append({"depth": round((index + 0.5) / bins, 4), "n": len(inside), **_means(inside)})
    text = sum(score.text_nll for score in scores) / tokens
    return {"text_nll": text, "needles": len(asked), **_means(asked), "by_depth": by_depth}


def _means(questions: Sequence[QuestionScore]) -> dict[str, float]:
    count = len(questions)
    return {
        "answer_ce": sum(question.answer_ce for question in questions) / count,
        "exact": sum(question.exact for question in questions) / count,
    }
