"""Scores equal a plain forward over each question's whole text, and greedy generation."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from attlas.tasks import (
    ItemScore,
    LongItem,
    Question,
    build_items,
    score_items,
    split_tokens,
    summarise,
    tokenise,
)
from attlas.tasks.scoring import QuestionScore, score_item
from tasks.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEST = split_tokens(tokenise(TOKENIZER, WORDS), {})["test"]
MODEL = tiny_model()


@pytest.fixture(scope="module")
def items():
    return build_items(TOKENIZER, TEST, 900, 5, per_item=3)


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_shared_prefill_equals_a_forward_of_its_own_for_each_question(items, batch):
    for item, score in zip(items, score_items(MODEL, items, batch=batch), strict=True):
        for question, got in zip(item.questions, score.questions, strict=True):
            ids = torch.tensor([[*item.context, *question.suffix, *question.answer]])
            with torch.inference_mode():
                logits = MODEL(ids).logits[0, -len(question.answer) - 1 : -1]
            expected = cross_entropy(logits, torch.tensor(question.answer)).item()
            assert math.isclose(got.answer_ce, expected, rel_tol=1e-4)
            assert (got.depth, got.kind) == (question.depth, question.kind)


def test_text_loss_is_that_of_the_haystack_tokens_only(items):
    item = items[0]
    with torch.inference_mode():
        losses = -MODEL(torch.tensor([item.context])).logits[0].log_softmax(-1)
    scored = [place for start, stop in item.haystack for place in range(start + 1, stop)]
    expected = sum(losses[place - 1, item.context[place]].item() for place in scored)
    score = score_item(MODEL, item)
    assert score.text_tokens == len(scored)
    assert math.isclose(score.text_nll, expected, rel_tol=1e-5)


@pytest.mark.parametrize("wrong", [False, True])
def test_exact_match_is_greedy_generation(items, wrong):
    item = items[0]
    suffix = item.questions[0].suffix
    ids = torch.tensor([[*item.context, *suffix]])
    said = MODEL.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=1)[
        0, ids.shape[1] :
    ]
    answer = said.tolist()
    if wrong:
        answer[2] = (answer[2] + 1) % 200
    asked = LongItem(
        item.context, item.haystack, (Question(suffix, tuple(answer), 0.5, "x"),), 0, "needle", (0, 0)
    )
    assert score_item(MODEL, asked).questions[0].exact is not wrong


def test_progress_is_told_after_each_item(items):
    told = []
    score_items(MODEL, items, progress=told.append)
    assert told == [1, 1]


def test_summary_means_and_depth_bins():
    questions = tuple(QuestionScore(depth, "x", depth, depth > 0.5) for depth in (0.0, 0.1, 0.6, 1.0))
    found = summarise([ItemScore(6.0, 3, questions[:1]), ItemScore(2.0, 1, questions[1:])], bins=2)
    assert found["text_nll"] == 2.0 and found["needles"] == 4
    assert math.isclose(found["answer_ce"], 0.425) and found["exact"] == 0.5
    low, high = found["by_depth"]
    assert (low["depth"], low["n"], low["exact"]) == (0.25, 2, 0.0)
    assert (high["depth"], high["n"], high["answer_ce"]) == (0.75, 2, 0.8)


def test_scores_survive_json():
    score = ItemScore(1.5, 2, (QuestionScore(0.25, "code", 0.5, True),))
    assert ItemScore.from_dict(score.to_dict()) == score


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ValueError, match="nothing to summarise: 0 text tokens and 0 questions"):
        summarise([])


def test_a_model_without_cache_is_refused(items):
    class Mute(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MODEL

        def forward(self, input_ids, **more):
            return self.model(input_ids, use_cache=False)

    with pytest.raises(TypeError, match="Mute returned no KV cache; questions need a decoder"):
        score_item(Mute(), items[0])
