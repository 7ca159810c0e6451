"""Needles in a haystack: facts hidden in a long text at known depths, several questions on one context."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from attlas._common.errors import UsageError
from attlas.tasks.prompts import encode, prompt_pieces
from attlas.tasks.splits import Passages
from attlas.tasks.wordings import INSTRUCTIONS, WORDINGS, Wording

__all__ = ["Fact", "LongItem", "Question", "build_items", "depth_grid", "draw_facts", "split_answer"]

DIGITS = 5


@dataclass(frozen=True)
class Question:
    """Asked after the context: `suffix` (question and start of the answer), then `answer`.

    `depth` is where its needle stands in the haystack: 0 at the start, 1 at the end.
    """

    suffix: tuple[int, ...]
    answer: tuple[int, ...]
    depth: float
    kind: str


@dataclass(frozen=True)
class LongItem:
    """One context with its questions; context + longest (suffix + answer) = `length` tokens.

    `haystack`: ranges [start, stop) of context positions that hold the passage (no prompt, no needle).
    `source`: the passage's range [start, stop) in the text.
    """

    context: tuple[int, ...]
    haystack: tuple[tuple[int, int], ...]
    questions: tuple[Question, ...]
    length: int
    task: str
    source: tuple[int, int]


class Fact(NamedTuple):
    """What one needle says: of whom, which value, and where it is hidden."""

    wording: Wording
    who: str
    value: str
    depth: float

    @property
    def needle(self) -> str:
        """The hidden sentence."""
        return self.wording.needle.format(who=self.who, value=self.value)

    @property
    def question(self) -> str:
        """Asks for the value."""
        return self.wording.question.format(who=self.who)

    @property
    def lead(self) -> str:
        """The start of the answer, up to the value."""
        return self.wording.lead.format(who=self.who)


def build_items(
    tokenizer: Any,
    passages: Passages,
    length: int,
    needles: int,
    *,
    per_item: int = 4,
    task: str = "needle",
    seed: int = 0,
) -> list[LongItem]:
    """Items of exactly `length` tokens that hide `needles` facts, `per_item` in each context.

    task "needle": the facts of a context are of different kinds (a model can tell them apart);
    "multi_key": of one kind, told apart only by whom they belong to.
    Depths form a stratified grid over [0, 1] (`depth_grid`). Wordings and text are those of `passages.split`.
    Raises UsageError if `length` leaves no room for the haystack.
    """
    if task not in ("needle", "multi_key"):
        raise ValueError(f"task must be 'needle' or 'multi_key', got {task!r}")
    if needles < 1 or per_item < 1:
        raise ValueError(f"needles and per_item must be >= 1, got {needles} and {per_item}")
    draw = random.Random(f"{task}-{passages.split}-{length}-{seed}")
    facts = draw_facts(passages.split, needles, per_item, task, draw)
    drafts = [_draft(tokenizer, passages.split, of_item, length) for of_item in facts]
    items = []
    room = [draft.room for draft in drafts]
    # One take for all: passages of the longest haystack, each cut to its own item's room.
    for draft, passage in zip(drafts, passages.take(len(drafts), max(room), seed), strict=True):
        items.append(draft.item(passage.ids[: draft.room], passage.start, task))
    return items


def depth_grid(needles: int, per_item: int, draw: random.Random) -> list[list[float]]:
    """Depths in ascending order per item; together they fill [0, 1] evenly, one in each of `needles` strata.

    Item i of n gets one depth in each of its own `per_item` bands, at the i-th place of the band (permuted).
    """
    sizes = [min(per_item, needles - first) for first in range(0, needles, per_item)]
    columns = []
    for band in range(per_item):
        owners = [item for item, size in enumerate(sizes) if band < size]
        places = list(range(len(owners)))
        draw.shuffle(places)
        pairs = zip(owners, places, strict=True)
        columns.append({item: (place + 0.5) / len(owners) for item, place in pairs})
    return [[(band + columns[band][item]) / size for band in range(size)] for item, size in enumerate(sizes)]


def draw_facts(split: str, needles: int, per_item: int, task: str, draw: random.Random) -> list[list[Fact]]:
    """`needles` facts for contexts of `per_item`, with depths by `depth_grid`, in the wordings of `split`.

    Kinds take turns over the contexts, so that each is asked about equally often.
    """
    wordings, found, turn = WORDINGS[split], [], 0
    for depths in depth_grid(needles, per_item, draw):
        if task == "multi_key":
            wording = wordings[turn % len(wordings)]
            turn += 1
            _check_room(len(depths), len(wording.who), "needles of one kind")
            chosen = [(wording, who) for who in draw.sample(wording.who, len(depths))]
        else:
            _check_room(len(depths), len(wordings), "kinds of needle")
            kinds = [wordings[(turn + index) % len(wordings)] for index in range(len(depths))]
            turn += len(depths)
            draw.shuffle(kinds)
            chosen = [(wording, draw.choice(wording.who)) for wording in kinds]
        values = draw.sample(range(10 ** (DIGITS - 1), 10**DIGITS), len(depths))
        drawn = zip(chosen, values, depths, strict=True)
        found.append([Fact(wording, who, str(value), depth) for (wording, who), value, depth in drawn])
    return found


def _check_room(asked: int, known: int, what: str) -> None:
    if asked > known:
        raise UsageError(f"per_item must be at most {known}, the number of {what} there are, got {asked}")


@dataclass(frozen=True)
class _Draft:
    """An item of which only the haystack is missing; `room` = its length in tokens."""

    opening: tuple[int, ...]
    needles: tuple[tuple[float, tuple[int, ...]], ...]
    questions: tuple[Question, ...]
    length: int
    room: int

    def item(self, haystack: tuple[int, ...], start: int, task: str) -> LongItem:
        context, ranges = list(self.opening), []
        done = 0
        for depth, needle in (*self.needles, (1.0, ())):
            upto = len(haystack) if not needle else round(depth * len(haystack))
            if upto > done:
                ranges.append((len(context), len(context) + upto - done))
            context += haystack[done:upto]
            context += needle
            done = upto
        source = (start, start + len(haystack))
        return LongItem(tuple(context), tuple(ranges), self.questions, self.length, task, source)


def _draft(tokenizer: Any, split: str, facts: Sequence[Fact], length: int) -> _Draft:
    start, middle, _ = prompt_pieces(tokenizer, 1)
    opening = start + encode(tokenizer, INSTRUCTIONS[split])
    needles, questions = [], []
    for fact in facts:
        needles.append((fact.depth, encode(tokenizer, fact.needle)))
        lead, answer = split_answer(tokenizer, fact.lead, fact.value)
        asked = encode(tokenizer, "\n\n" + fact.question)
        questions.append(Question(asked + middle + lead, answer, fact.depth, fact.wording.kind))
    fixed = len(opening) + sum(len(ids) for _, ids in needles)
    fixed += max(len(question.suffix) + len(question.answer) for question in questions)
    if length - fixed < 1:
        raise UsageError(f"length {length} is too short: {fixed} tokens are prompt, needles and question")
    return _Draft(opening, tuple(needles), tuple(questions), length, length - fixed)


def split_answer(tokenizer: Any, lead: str, value: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of `lead` and of the answer `value` that follows it, cut where a model would generate.

    Tokenizers join a space with what follows or not: "lead value" is encoded whole, cut after the tokens it
    shares with "lead"; a space that stands alone is part of the lead, so that only the value is judged.
    """
    whole, start = encode(tokenizer, f"{lead} {value}"), encode(tokenizer, lead)
    cut = 0
    while cut < min(len(start), len(whole) - 1) and whole[cut] == start[cut]:
        cut += 1
    while cut < len(whole) - 1 and not tokenizer.decode([whole[cut]]).strip():
        cut += 1
    return whole[:cut], whole[cut:]
