"""Evaluation: dense is a plain forward, a plan masks what it says, timing fills every field."""

import math
from dataclasses import replace

import pytest
import torch

from attlas.bridges import applied, describe
from attlas.pattern import uniform_plan
from attlas.report.run import Timing
from attlas.tasks import ItemScore, QuestionScore, build_items, score_items, split_tokens, tokenise
from attlas.tune import Evaluation, evaluate, validation_losses
from attlas.tune.evaluate import merge_fallbacks
from attlas.tune.timing import Rates, measure, measure_rates
from tasks.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model()
EXACT = tiny_model().double()  # a whole model multiplies rounding errors from layer to layer
SPLITS = split_tokens(tokenise(TOKENIZER, WORDS), {})
CLOSE = 1.3e-6  # of float32, in which the losses are computed
HALF, FULL = (uniform_plan(describe(MODEL), density=density) for density in (0.4, 1.0))


@pytest.fixture(scope="module")
def items():
    return build_items(TOKENIZER, SPLITS["test"], 832, 4, per_item=2)


def test_dense_evaluation_is_the_model_itself(items):
    assert evaluate(MODEL, items).scores == tuple(score_items(MODEL, items))


def test_a_plan_that_keeps_everything_scores_as_dense(items):
    dense, full = evaluate(EXACT, items).quality, evaluate(EXACT, items, FULL).quality
    assert math.isclose(dense["text_nll"], full["text_nll"], rel_tol=CLOSE)
    assert math.isclose(dense["answer_ce"], full["answer_ce"], rel_tol=CLOSE)


def test_a_plan_scores_as_a_forward_over_each_whole_question(items):
    """Prefill and questions are masked as one sequence of length N."""
    found = evaluate(EXACT, items, HALF)
    dense = evaluate(EXACT, items)
    for item, score, full in zip(items, found.scores, dense.scores, strict=True):
        assert not math.isclose(score.text_nll, full.text_nll, rel_tol=1e-3)
        for question, got in zip(item.questions, score.questions, strict=True):
            ids = torch.tensor([[*item.context, *question.suffix, *question.answer]])
            with torch.inference_mode(), applied(EXACT, HALF, total=item.length):
                logits = EXACT(ids, use_cache=False).logits[0, -len(question.answer) - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, torch.tensor(question.answer)).item()
            assert math.isclose(got.answer_ce, expected, rel_tol=CLOSE)


def test_evaluations_survive_json(items):
    found = replace(evaluate(MODEL, items[:1]), fallbacks=({"what": "a", "why": "b", "count": 2},))
    assert Evaluation.from_dict(found.to_dict()) == found
    assert found.quality["needles"] == 2


def test_items_of_several_lengths_are_refused(items):
    more = build_items(TOKENIZER, SPLITS["test"], 896, 2, per_item=2)
    with pytest.raises(ValueError, match=r"items must all have one length, got \[832, 896\]"):
        evaluate(MODEL, [*items, *more])


def scored(text: float, *questions: tuple[float, bool]) -> ItemScore:
    return ItemScore(text, 10, tuple(QuestionScore(0.5, "pin", ce, exact) for ce, exact in questions))


def test_validation_asks_for_what_the_dense_model_finds():
    dense = [scored(20.0, (0.1, True), (3.0, False)), scored(30.0, (4.0, False))]
    plan = [scored(25.0, (0.5, True), (1.0, True)), scored(31.0, (2.0, False))]
    assert validation_losses(plan, dense) == {"needle": [0.5], "passage": [2.5, 3.1]}
    blind = [scored(20.0, (0.1, False), (3.0, False)), scored(30.0, (4.0, False))]
    assert validation_losses(plan, blind) == {"needle": [0.75, 2.0], "passage": [2.5, 3.1]}


def test_fallbacks_are_merged():
    rows = [{"what": "x", "why": "y", "count": 1}, {"what": "a", "why": "b", "count": 2}]
    assert merge_fallbacks([*rows, *rows]) == [
        {"what": "a", "why": "b", "count": 4},
        {"what": "x", "why": "y", "count": 2},
    ]


def test_timing_gives_every_field_and_counts_the_bytes_that_are_held():
    rates = measure_rates(torch.float32)
    assert rates.bandwidth > 1e8 and rates.flops > 1e8
    dense, half = (measure(MODEL, plan, 832, Rates(1e9, 1e9), batch=2, new_tokens=3) for plan in (None, HALF))
    assert set(Timing.__dataclass_fields__) <= set(dense)
    assert all(value > 0 for entry in (dense, half) for value in entry.values())
    # 2 (K, V) x 2 rows x 2 layers x 2 KV heads x 832 tokens x 8 wide x 4 bytes
    assert dense["kv_bytes_bound"] == dense["kv_bytes"] == 2 * 2 * 2 * 2 * 832 * 8 * 4
    assert half["kv_bytes_bound"] == round(HALF.density(832) * dense["kv_bytes"])
    assert math.isclose(half["kv_bytes"], half["kv_bytes_bound"], rel_tol=0.01)
    assert math.isclose(half["decode_bound_ms"], half["kv_bytes_bound"] / 1e6)
    assert half["prefill_bound_seconds"] < dense["prefill_bound_seconds"]
