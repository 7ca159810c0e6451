"""Needle items: exact lengths, even depths, wordings that splits do not share, rightly judged answers."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attlas._common.errors import UsageError
from attlas.tasks import WORDINGS, build_items, encode, prompt_pieces, split_tokens, tokenise
from attlas.tasks.needles import depth_grid, draw_facts, split_answer
from attlas.tasks.wordings import INSTRUCTIONS
from tasks.tiny import WORDS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEST = split_tokens(tokenise(TOKENIZER, WORDS), {})["test"]


@pytest.mark.parametrize("length", [999, 1024, 1500])
@pytest.mark.parametrize("task", ["needle", "multi_key"])
def test_items_have_exactly_the_asked_length(length, task):
    for item in build_items(TOKENIZER, TEST, length, 7, per_item=3, task=task):
        longest = max(len(question.suffix) + len(question.answer) for question in item.questions)
        assert len(item.context) + longest == item.length == length


def test_the_haystack_is_the_passage_and_the_needles_are_in_it():
    item = build_items(TOKENIZER, TEST, 1400, 4)[0]
    haystack = [token for start, stop in item.haystack for token in item.context[start:stop]]
    first, last = (place - TEST.start for place in item.source)
    assert haystack == TEST.tokens[first:last].tolist()
    text = TOKENIZER.decode(item.context)
    values = [TOKENIZER.decode(question.answer).strip() for question in item.questions]
    assert len(set(values)) == 4
    places = [text.index(value) / len(text) for value in values]
    assert places == sorted(places)
    for question, place in zip(item.questions, places, strict=True):
        assert abs(question.depth - place) < 0.25


def test_questions_follow_the_chat_template():
    question = build_items(TOKENIZER, TEST, 1000, 1, per_item=1)[0].questions[0]
    shown = TOKENIZER.decode(question.suffix)
    assert shown.startswith("\n\nWhat") and "?</s><s>assistant:The " in shown
    assert len(TOKENIZER.decode(question.answer).strip()) == 5


def test_without_a_chat_template_questions_are_plain():
    tokenizer = tiny_tokenizer(chat=False)
    question = build_items(tokenizer, TEST, 1000, 1, per_item=1)[0].questions[0]
    assert "?\nAnswer:The " in tokenizer.decode(question.suffix)


def test_kinds_within_a_context_differ_and_multi_keys_do_not():
    for item in build_items(TOKENIZER, TEST, 1400, 16):
        assert len({question.kind for question in item.questions}) == 4
    for item in build_items(TOKENIZER, TEST, 1400, 8, per_item=2, task="multi_key"):
        assert len({question.kind for question in item.questions}) == 1
        assert len({question.suffix for question in item.questions}) == 2


def test_kinds_are_asked_equally_often():
    facts = draw_facts("test", 40, 4, "needle", random.Random(0))
    kinds = [fact.wording.kind for drawn in facts for fact in drawn]
    assert {kinds.count(kind) for kind in kinds} == {5}


@given(needles=st.integers(1, 40), per_item=st.integers(1, 5), seed=st.integers(0, 9))
def test_depths_fill_the_haystack_evenly(needles, per_item, seed):
    grid = depth_grid(needles, per_item, random.Random(seed))
    depths = sorted(itertools.chain(*grid))
    assert len(depths) == needles and all(0 < depth < 1 for depth in depths)
    assert all(row == sorted(row) for row in grid)
    if needles % per_item == 0:
        assert np.allclose(depths, (np.arange(needles) + 0.5) / needles)


def test_splits_share_no_wording():
    for one, other in itertools.combinations(WORDINGS, 2):
        assert not {w.kind for w in WORDINGS[one]} & {w.kind for w in WORDINGS[other]}
        assert not {name for w in WORDINGS[one] for name in w.who} & {
            name for w in WORDINGS[other] for name in w.who
        }
        for mine, theirs in itertools.product(WORDINGS[one], WORDINGS[other]):
            assert mine.question != theirs.question and mine.lead != theirs.lead
            assert _close(mine.needle) != _close(theirs.needle)
    assert len(set(INSTRUCTIONS.values())) == len(WORDINGS)


def _close(needle: str) -> str:
    return needle.split("{value}.")[1]


@pytest.mark.parametrize("wording", [*itertools.chain(*WORDINGS.values())], ids=lambda wording: wording.kind)
def test_every_wording_names_whom_and_what(wording):
    assert "{who}" in wording.needle and "{value}" in wording.needle
    assert "{who}" in wording.question and "{value}" not in wording.question
    assert wording.needle.startswith(f" {wording.lead} {{value}}.")


def test_the_answer_is_cut_where_a_model_would_generate():
    lead, answer = split_answer(TOKENIZER, "The code is", "12345")
    assert TOKENIZER.decode(lead) == "The code is " and TOKENIZER.decode(answer) == "12345"


def test_seeds_repeat_and_differ():
    first, again = (build_items(TOKENIZER, TEST, 1200, 4, seed=3) for _ in range(2))
    assert first == again
    assert first != build_items(TOKENIZER, TEST, 1200, 4, seed=4)


def test_impossible_requests_are_refused():
    with pytest.raises(
        UsageError, match=r"length 200 is too short: \d+ tokens are prompt, needles and question"
    ):
        build_items(TOKENIZER, TEST, 200, 4)
    with pytest.raises(UsageError, match=r"per_item must be at most 8, the number of kinds of needle"):
        build_items(TOKENIZER, TEST, 4000, 9, per_item=9)
    with pytest.raises(ValueError, match=r"task must be 'needle' or 'multi_key', got 'passkey'"):
        build_items(TOKENIZER, TEST, 1200, 4, task="passkey")
    with pytest.raises(ValueError, match=r"needles and per_item must be >= 1, got 0 and 4"):
        build_items(TOKENIZER, TEST, 1200, 0)


def test_prompt_pieces_rebuild_the_rendered_chat():
    pieces = prompt_pieces(TOKENIZER, 2)
    said = [encode(TOKENIZER, text) for text in ("u1", "a1", "u2", "a2")]
    built = [
        *pieces[0],
        *itertools.chain(*(text + piece for text, piece in zip(said, pieces[1:], strict=True))),
    ]
    roles = ("user", "assistant", "user", "assistant")
    chat = [
        {"role": role, "content": text} for role, text in zip(roles, ("u1", "a1", "u2", "a2"), strict=True)
    ]
    whole = TOKENIZER.apply_chat_template(chat, tokenize=False)
    assert tuple(built) == encode(TOKENIZER, whole, special=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages[0]['content'] }}",
            "drops, repeats or reorders messages; set tokenizer.chat_template = None",
        ),
        (
            "{{ raise_exception('no chat') }}",
            "chat template fails: no chat; set tokenizer.chat_template = None",
        ),
    ],
)
def test_unusable_chat_templates_are_refused(template, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=message):
        prompt_pieces(tokenizer, 1)
