"""Calibration items: exact lengths, the model's own greedy answers, wordings and text of their split."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from attlas._common.errors import UsageError
from attlas.tasks import INSTRUCTIONS, split_tokens, tokenise
from attlas.tune import CalibrationItem, build_calibration, response_loss
from attlas.tune.calibrate import _sentence, _useful, greedy_answers
from tasks.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model()
SPLITS = split_tokens(tokenise(TOKENIZER, WORDS), {})


def build(split="calibration", length=1024, **options):
    options = {"needle": 2, "text": 1, "per_item": 2, "answer_tokens": 12, **options}
    return build_calibration(MODEL, TOKENIZER, SPLITS[split], length, **options)


@pytest.fixture(scope="module")
def items():
    torch.set_num_threads(1)
    return build()


@pytest.mark.parametrize("length", [832, 1024, 1300])
def test_items_fill_their_length_exactly(length):
    assert [item.length for item in build(length=length)] == [length] * 3


def test_tags_come_in_order(items):
    assert [item.tag for item in items] == ["needle", "needle", "text"]


def test_response_positions_are_those_of_the_answers(items):
    for item in items:
        text = TOKENIZER.decode(item.ids)
        assert text.count("<s>assistant:") == 2
        for start, _ in item.response:
            begun = TOKENIZER.decode(item.ids[:start]).rsplit("<s>assistant:", 1)[1]
            # The sentence of a hidden fact is begun for the model, an answer about the text is not.
            assert "<s>" not in begun and "</s>" not in begun
            assert bool(begun) == (item.tag == "needle")
        assert item.positions.tolist() == [place for range_ in item.response for place in range(*range_)]


def test_text_and_wordings_are_those_of_the_split(items):
    text = TOKENIZER.decode(items[0].ids)
    assert INSTRUCTIONS["calibration"] in text and INSTRUCTIONS["selection"] not in text
    other = TOKENIZER.decode(build("selection")[0].ids)
    assert INSTRUCTIONS["selection"] in other


def test_both_ends_of_the_passage_survive_the_cut_and_hidden_facts_too():
    (item,) = build(needle=1, text=0, seed=5)
    passage = SPLITS["calibration"].take(1, 1024, 5)[0]
    text, whole = TOKENIZER.decode(item.ids), TOKENIZER.decode(passage.ids)
    after = text.split(INSTRUCTIONS["calibration"])[1]
    assert after.startswith(whole[:30])
    values = [
        word.strip(".") for word in text.split() if word.strip(".").isdigit() and len(word.strip(".")) == 5
    ]
    assert len(values) >= 2


def test_greedy_answers_equal_generate_for_each_prompt_alone():
    context, prompts = [0, *range(5, 60)], [[7, 8, 9], [40], [30, 31, 32, 33, 34]]
    answers = greedy_answers(MODEL, TOKENIZER, context, prompts, [6, 3, 8])
    for prompt, answer, most in zip(prompts, answers, (6, 3, 8), strict=True):
        ids = torch.tensor([[*context, *prompt]])
        said = MODEL.generate(ids, max_new_tokens=most, do_sample=False, pad_token_id=1)
        assert list(answer) == said[0, ids.shape[1] :].tolist()


class Says(torch.nn.Module):
    """Row r of the batch answers with the tokens of texts[r]."""

    def __init__(self, *texts):
        super().__init__()
        self.model, self.said, self.step = MODEL, [TOKENIZER(text).input_ids for text in texts], -1

    def forward(self, input_ids, past_key_values=None, use_cache=True, **more):
        out = self.model(input_ids, past_key_values=past_key_values, use_cache=True)
        if self.step >= 0:
            tokens = torch.tensor([[said[min(self.step, len(said) - 1)]] for said in self.said])
            out.logits = torch.nn.functional.one_hot(tokens, 258).float()
        self.step += 1
        return out


@pytest.mark.parametrize(("chat", "expected"), [(False, ["ab", "abcd"]), (True, ["ab\nc", "abcd"])])
def test_answers_end_before_a_line_break_without_a_chat_template(chat, expected):
    tokenizer = tiny_tokenizer(chat=chat)
    answers = greedy_answers(Says("ab\ncd", "abcd"), tokenizer, [5, 6], [[1], [2]], [4, 4])
    assert [tokenizer.decode(answer) for answer in answers] == expected


def test_answers_end_before_the_end_of_sequence():
    tokenizer = tiny_tokenizer()
    model = Says("ab", "abcdef")
    model.said[0].append(tokenizer.eos_token_id)
    answers = greedy_answers(model, tokenizer, [5, 6], [[1], [2]], [9, 5])
    assert [tokenizer.decode(answer) for answer in answers] == ["ab", "abcde"]


def test_the_loss_is_that_of_the_response_tokens(items):
    item = items[0]
    with torch.inference_mode():
        logits = MODEL(torch.tensor([item.ids])).logits[0]
        places = item.positions
        expected = cross_entropy(logits[places - 1], torch.tensor(item.ids)[places])
        torch.testing.assert_close(response_loss(MODEL, item), expected)


def test_items_survive_json_and_seeds_repeat(items):
    assert [CalibrationItem.from_dict(item.to_dict()) for item in items] == items
    assert build() == items
    assert build(seed=1) != items


def test_progress_is_told_after_each_item():
    told = []
    build(needle=1, text=1, progress=told.append)
    assert told == [1, 1]


def test_impossible_requests_are_refused():
    with pytest.raises(
        UsageError, match=r"length 384 is too short for calibration: \d+ tokens are prompt and q"
    ):
        build(length=384)
    with pytest.raises(
        ValueError, match=r"passages must be of the splits \['calibration', 'selection'\], got 'test'"
    ):
        build("test")
    with pytest.raises(ValueError, match=r"answer_tokens must lie in 1..128, got 200"):
        build(answer_tokens=200)


def test_only_the_value_of_a_fact_supervises_not_what_is_rambled_on():
    answer = tuple(TOKENIZER("71204. And so on", add_special_tokens=False).input_ids)
    assert TOKENIZER.decode(_sentence(TOKENIZER, answer, "71204")) == "71204."
    assert _sentence(TOKENIZER, answer, None) == answer
    assert _sentence(TOKENIZER, answer, "99999") == answer


def test_an_item_without_a_found_fact_is_left_out_unless_there_is_no_other():
    def item(tag: str, found: bool) -> CalibrationItem:
        return CalibrationItem((1, 2, 3), ((1, 2),), tag, found)

    good, bad, text = item("needle", True), item("needle", False), item("text", True)
    assert _useful([good, bad, text]) == [good, text]
    assert _useful([bad, bad, text]) == [bad, bad, text]
