"""Calibration items: long-range questions on given text, answered by the dense model itself (MoA, step 2).

arXiv 2406.14909, section 4.1: a long context, questions whose answers lie far back, and as supervision the
dense model's own greedy answers ("model alignment"), never a human's. Departures: several questions share one
context as a chat, so that one profiled item supervises several answers (each given to its question alone);
facts are hidden in the text beside questions about the text itself; an item fills its length exactly, so that
nothing is padded.
"""

import inspect
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attlas._common.errors import UsageError
from attlas.tasks import INSTRUCTIONS, Passages, encode, prompt_pieces
from attlas.tasks.needles import draw_facts, split_answer

__all__ = ["CalibrationItem", "build_calibration", "greedy_answers", "response_logits", "response_loss"]

# Enough for a value and the end of its sentence.
FACT_TOKENS = 12
# Questions about the text, per split: the first asks for what stands at one place, the others for the whole.
TEXT_QUESTIONS = {
    "calibration": (
        "What does the document say about {topic}?",
        "Summarise the document in a few sentences.",
    ),
    "selection": (
        "Explain what can be learned above regarding {topic}.",
        "Give a short overview of this text.",
    ),
}


@dataclass(frozen=True)
class CalibrationItem:
    """`length` tokens; `response`: ranges [start, stop) of `ids` that are supervised, the model's answers.

    `found`: the model found at least one of the hidden facts (always so where none is hidden).
    """

    ids: tuple[int, ...]
    response: tuple[tuple[int, int], ...]
    tag: str
    found: bool = True

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.ids)

    @property
    def positions(self) -> Tensor:
        """Positions of the response tokens, (r,)."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.response])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CalibrationItem":
        """Inverse of `to_dict`."""
        response = tuple((int(start), int(stop)) for start, stop in data["response"])
        return cls(tuple(data["ids"]), response, str(data["tag"]), bool(data["found"]))


@dataclass(frozen=True)
class _Turn:
    """A question, how its answer begins, and what it must contain to supervise (None: anything)."""

    question: str
    lead: tuple[int, ...]
    wanted: str | None
    most: int


def build_calibration(
    model: Any,
    tokenizer: Any,
    passages: Passages,
    length: int,
    *,
    needle: int = 4,
    text: int = 2,
    passage: int = 0,
    per_item: int = 4,
    answer_tokens: int = 48,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[CalibrationItem]:
    """`needle` items with `per_item` hidden facts, `text` about the text, `passage` of the text alone.

    Each has `length` tokens; those of a passage are all supervised, by the text itself (a departure: the
    paper supervises answers only, which lets the loss of plain text rise).

    The model answers greedily: the value of a fact, whose sentence is begun for it (left to itself a small
    model summarises instead, and its wrong answers teach nothing about reach), or `answer_tokens` (at most
    128) about the text. A fact that the dense model does not find does not supervise; an item without any
    found fact is left out, unless there is no other. Then the *middle of the context*
    is cut (hidden facts excepted) until all fits `length`. Wordings and text are those of `passages.split`.
    Raises UsageError if `length` leaves no room. Cost: a prefill and the answers' tokens per item.
    """
    if passages.split not in TEXT_QUESTIONS:
        raise ValueError(f"passages must be of the splits {sorted(TEXT_QUESTIONS)}, got {passages.split!r}")
    if not 1 <= answer_tokens <= 128:
        raise ValueError(f"answer_tokens must lie in 1..128, got {answer_tokens}")
    tags = ["needle"] * needle + ["text"] * text + ["passage"] * passage
    draw = random.Random(f"calibration-{passages.split}-{length}-{seed}")
    facts = iter(draw_facts(passages.split, needle * per_item, per_item, "needle", draw) if needle else ())
    items = []
    for tag, drawn_text in zip(tags, passages.take(len(tags), length, seed), strict=True):
        if tag == "passage":
            items.append(CalibrationItem(tuple(drawn_text.ids[:length]), ((1, length),), tag))
            if progress is not None:
                progress(1)
            continue
        turns, hidden = [], []
        if tag == "needle":
            drawn = next(facts)
            hidden = [(fact.depth, fact.needle) for fact in drawn]
            leads = [split_answer(tokenizer, fact.lead, fact.value)[0] for fact in drawn]
            turns = [
                _Turn(fact.question, lead, fact.value, FACT_TOKENS)
                for fact, lead in zip(drawn, leads, strict=True)
            ]
            draw.shuffle(turns)
        else:
            topic = _topic(tokenizer.decode(drawn_text.ids[: length // 3]), draw)
            texts = [question.format(topic=topic) for question in TEXT_QUESTIONS[passages.split]]
            turns = [_Turn(question, (), None, answer_tokens) for question in texts]
        items.append(_answered(model, tokenizer, passages.split, drawn_text.ids, hidden, turns, length, tag))
        if progress is not None:
            progress(1)
    return _useful(items)


def _sentence(tokenizer: Any, answer: tuple[int, ...], wanted: str | None) -> tuple[int, ...]:
    """The answer up to the token after the wanted value: what the model rambles on about is not about it."""
    ends = (end for end in range(1, len(answer)) if wanted and wanted in tokenizer.decode(answer[:end]))
    return answer[: next(ends, len(answer)) + 1]


def _useful(items: Sequence[CalibrationItem]) -> list[CalibrationItem]:
    """The items with a found fact; of a tag without any, all: wrong answers are better than none."""
    with_found = {item.tag for item in items if item.found}
    return [item for item in items if item.found or item.tag not in with_found]


def _answered(
    model: Any,
    tokenizer: Any,
    split: str,
    haystack: Sequence[int],
    hidden: Sequence[tuple[float, str]],
    turns: Sequence[_Turn],
    length: int,
    tag: str,
) -> CalibrationItem:
    """Let the model answer each turn, string them into one chat, and fit it to `length`."""
    pieces = prompt_pieces(tokenizer, len(turns))
    opening = pieces[0] + encode(tokenizer, INSTRUCTIONS[split])
    needles = [(depth, encode(tokenizer, text)) for depth, text in hidden]
    asked = [encode(tokenizer, turn.question) for turn in turns]
    asked[0] = encode(tokenizer, "\n\n" + turns[0].question)
    prompts = [(*asked[0], *pieces[1])]
    prompts += [(*pieces[2 * index], *asked[index], *pieces[2 * index + 1]) for index in range(1, len(turns))]
    prompts = [(*prompt, *turn.lead) for prompt, turn in zip(prompts, turns, strict=True)]
    fixed = len(opening) + sum(len(ids) for _, ids in needles) + sum(map(len, prompts))
    room = length - fixed
    if room < sum(turn.most for turn in turns):
        raise UsageError(
            f"length {length} is too short for calibration: {fixed} tokens are prompt and questions, and "
            f"up to {sum(turn.most for turn in turns)} are answers; use longer lengths"
        )
    context, free = _hide(haystack[:room], needles)
    first = [(*question, *pieces[1], *turn.lead) for question, turn in zip(asked, turns, strict=True)]
    answers = greedy_answers(model, tokenizer, [*opening, *context], first, [turn.most for turn in turns])
    answers = [_sentence(tokenizer, answer, turn.wanted) for answer, turn in zip(answers, turns, strict=True)]
    told = [tokenizer.decode(answer) for answer in answers]
    right = [turn.wanted is None or turn.wanted in said for turn, said in zip(turns, told, strict=True)]
    ids, response = [*opening, *_cut_middle(context, free, sum(map(len, answers)))], []
    for prompt, answer, keep in zip(prompts, answers, right, strict=True):
        ids += prompt
        if keep or not any(right):
            response.append((len(ids), len(ids) + len(answer)))
        ids += answer
    return CalibrationItem(tuple(ids), tuple(response), tag, any(right))


def _hide(
    haystack: Sequence[int], needles: Sequence[tuple[float, Sequence[int]]]
) -> tuple[list[int], list[bool]]:
    """The haystack with the needles at their depths, and which tokens are haystack."""
    context: list[int] = []
    free: list[bool] = []
    done = 0
    for depth, needle in (*needles, (1.0, ())):
        upto = round(depth * len(haystack))
        context += [*haystack[done:upto], *needle]
        free += [True] * (upto - done) + [False] * len(needle)
        done = upto
    return context, free


def _cut_middle(context: Sequence[int], free: Sequence[bool], excess: int) -> list[int]:
    """Drop `excess` free tokens around the middle: the first and last halves of what remains stay whole."""
    places = [index for index, is_free in enumerate(free) if is_free]
    first = (len(places) - excess) // 2
    dropped = set(places[first : first + excess])
    return [token for index, token in enumerate(context) if index not in dropped]


def _topic(text: str, draw: random.Random) -> str:
    """One of the most frequent long words of the text."""
    counts = Counter(re.findall(r"[^\W\d_]{7,}", text))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:5]
    return f'"{draw.choice(common)}"' if common else "its main subject"


@torch.inference_mode()
def greedy_answers(
    model: Any, tokenizer: Any, context: Sequence[int], prompts: Sequence[Sequence[int]], most: Sequence[int]
) -> list[tuple[int, ...]]:
    """The model's greedy continuation of context + prompt for each prompt, 1 to `most` tokens each.

    An answer ends before an end-of-sequence token, or before a line break where the tokenizer has no chat
    template. The context is read once; the prompts follow on copies of its cache as one batch, padded on the
    left (masked, positions as without padding), so that a step costs about as much as for one.
    """
    device = next(model.parameters()).device
    stops, lines = _stop_tokens(model, tokenizer), not getattr(tokenizer, "chat_template", None)
    last = {"logits_to_keep": 1} if _keeps_logits(model) else {}
    cache = model(
        input_ids=torch.tensor([list(context)], device=device), use_cache=True, **last
    ).past_key_values
    cache.batch_repeat_interleave(len(prompts))
    width = max(map(len, prompts))
    step = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    seen = torch.ones(len(prompts), len(context), dtype=torch.long, device=device)
    mask = torch.cat([seen, torch.tensor(real, device=device)], dim=1)
    answers: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    while True:
        places = (mask.cumsum(1) - 1)[:, -step.shape[1] :]
        out = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            **last,
        )
        logits = out.logits[:, -1].float()
        if not answers[0]:
            logits[:, [token for token in stops if token < logits.shape[1]]] = -torch.inf
        chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            breaks = lines and len(answers[row]) > 0 and "\n" in tokenizer.decode([token])
            going[row] = going[row] and not breaks and token not in stops
            if going[row]:
                answers[row].append(token)
                going[row] = len(answers[row]) < most[row]
        if not any(going):
            return [tuple(answer) for answer in answers]
        step = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)


def _stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    found = {tokenizer.eos_token_id}
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found |= set(given) if isinstance(given, list | tuple) else {given}
    return {int(token) for token in found if token is not None}


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def response_logits(model: Any, item: CalibrationItem) -> tuple[Tensor, Tensor]:
    """Logits (r, vocabulary) that predict the response tokens, and these tokens (r,); one forward."""
    device = next(model.parameters()).device
    ids = torch.tensor([item.ids], device=device)
    positions = item.positions.to(device)
    if _keeps_logits(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=positions - 1).logits[0]
    else:
        logits = model(input_ids=ids, use_cache=False).logits[0, positions - 1]
    return logits, ids[0, positions]


def response_loss(model: Any, item: CalibrationItem) -> Tensor:
    """Mean cross-entropy over the response tokens (nats, float32), differentiable."""
    logits, targets = response_logits(model, item)
    return cross_entropy(logits.float(), targets)
