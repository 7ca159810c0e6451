"""Splits never share text: ranges are disjoint, and passages stay inside their range."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attlas._common.errors import UsageError
from attlas.tasks import SOURCES, load_source, split_tokens, tokenise
from attlas.tasks.splits import REPEAT, SHARES, without_repeats
from tasks.tiny import tiny_tokenizer


@given(
    total=st.integers(200, 3000),
    lengths=st.tuples(st.integers(1, 60), st.integers(1, 25), st.integers(1, 90)),
    count=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_no_passage_of_one_split_shares_a_token_with_another(total, lengths, count, seed):
    tokens = np.arange(total)
    needs = dict(zip(SHARES, lengths, strict=True))
    seen = {}
    for name, passages in split_tokens(tokens, needs).items():
        for passage in passages.take(count, needs[name], seed):
            assert passage.ids == tuple(range(passage.start, passage.stop))
            assert passages.start <= passage.start and passage.stop <= passages.stop
            assert all(seen.setdefault(token, name) == name for token in passage.ids)


@given(total=st.integers(60, 400), count=st.integers(1, 6), seed=st.integers(0, 3))
def test_passages_overlap_only_if_they_must(total, count, seed):
    passages = split_tokens(np.arange(total), {}, shares={"test": 1.0})["test"]
    length = total // count
    starts = sorted(passage.start for passage in passages.take(count, length, seed))
    assert all(after - before >= length - 1 for before, after in pairwise(starts))


def test_passages_of_another_seed_differ():
    passages = split_tokens(np.arange(5000), {})["test"]
    first, again, other = (passages.take(3, 50, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_too_little_text_says_how_much_is_needed():
    with pytest.raises(UsageError, match=r"book.txt has 100 tokens, at least 203 are needed .* test 100\)"):
        split_tokens(np.arange(100), {"test": 100}, source="book.txt")
    passages = split_tokens(np.arange(100), {})["selection"]
    with pytest.raises(
        UsageError, match=r"a selection passage needs 16 tokens, its share of the text has 15"
    ):
        passages.take(1, 16)


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match=r"needs names the splits \['train'\]"):
        split_tokens(np.arange(100), {"train": 3})


def test_text_that_looks_like_a_special_token_stays_text():
    tokenizer = tiny_tokenizer()
    special = tokenizer.eos_token_id
    assert special not in tokenise(tokenizer, "a </s> b")
    assert tokenizer.decode(tokenise(tokenizer, "a </s> b")) == "a </s> b"


@given(
    pieces=st.lists(
        st.sampled_from([range(0, 40), range(100, 103), range(200, 230), range(5, 30)]), max_size=9
    ),
    run=st.integers(1, 12),
)
def test_no_run_of_tokens_is_left_twice(pieces, run):
    tokens = np.array([token for piece in pieces for token in piece], dtype=np.int64)
    kept = without_repeats(tokens, run)
    runs = [tuple(kept[at : at + run]) for at in range(len(kept) - run + 1)]
    assert len(set(runs)) == len(runs)
    assert set(kept) <= set(tokens)


def test_text_without_repetitions_stays_as_it_is():
    tokens = np.arange(500)
    assert np.array_equal(without_repeats(tokens), tokens)
    assert np.array_equal(without_repeats(np.concatenate([tokens, tokens[100:300]])), tokens)
    with pytest.raises(ValueError, match="run must be at least 1 token, got 0"):
        without_repeats(tokens, 0)


@pytest.mark.parametrize("name", SOURCES)
def test_splits_of_the_shipped_texts_share_no_run_of_words(name):
    words: dict[str, int] = {}
    text = load_source(name).text.split()[:120_000]
    tokens = np.array([words.setdefault(word, len(words)) for word in text])
    owner = {}
    for split, passages in split_tokens(tokens, {}).items():
        for at in range(len(passages.tokens) - REPEAT + 1):
            assert owner.setdefault(tuple(passages.tokens[at : at + REPEAT]), split) == split
    assert owner
