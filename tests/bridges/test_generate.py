"""`generate` inside `applied`: greedy, sampling, beams, several sequences, padded prompts, chunked
prefill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.bridges import UnsupportedModel, applied
from attlas.cache import RaggedCache
from attlas.pattern import causal, distance, elastic, sink, window

ELASTIC = causal() & (window(elastic(-4, 0.4, minimum=4)) | sink(2))
NEW = 24


def test_greedy_equals_greedy_without_a_cache(model: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 11)
    # N is the same in every step only if it is stated: without a cache each step is a request of its own.
    with applied(model, ELASTIC, total=11 + NEW) as handle:
        cached = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        assert isinstance(handle.cache, RaggedCache)
        assert handle.cache.get_seq_length() == 11 + NEW - 1
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, use_cache=False
        )
    assert torch.equal(cached, plain)


def test_n_is_the_prompt_and_the_new_tokens_of_each_row(
    llama: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any]
) -> None:
    rows = [tokens(1, length, seed=length)[0] for length in (5, 12, 9)]
    ids, mask, _ = padded(rows, "left")
    with applied(llama, ELASTIC) as handle:
        together = llama.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        assert handle.cache is not None and handle.cache.clock.totals == [5 + NEW, 12 + NEW, 9 + NEW]
        for row, prompt in enumerate(rows):
            alone = llama.generate(
                prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=NEW, do_sample=False
            )
            assert handle.cache.clock.totals == [len(prompt) + NEW]
            assert torch.equal(together[row, 12:], alone[0, len(prompt) :])


def test_beam_search_equals_beam_search_without_a_cache(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 11)
    settings = {"max_new_tokens": NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    with applied(llama, ELASTIC, total=11 + NEW):
        cached = llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        plain = llama.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
    assert cached.shape == (4, 11 + NEW)
    assert torch.equal(cached, plain)


def test_sampling_several_sequences(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 11)
    settings = {"max_new_tokens": NEW, "num_return_sequences": 3, "do_sample": True, "top_k": 20}
    with applied(llama, ELASTIC, total=11 + NEW):
        drawn = []
        for use_cache in (True, False):
            torch.manual_seed(11)
            mask = torch.ones_like(ids)
            drawn.append(llama.generate(ids, attention_mask=mask, use_cache=use_cache, **settings))
    assert drawn[0].shape == (6, 11 + NEW)
    assert torch.equal(*drawn)


def test_chunked_prefill_of_generate(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 30)
    with applied(llama, ELASTIC):
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(
            llama.generate(ids, prefill_chunk_size=7, **settings), llama.generate(ids, **settings)
        )


def test_a_cache_made_by_hand_is_used_as_it_is(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 12)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with applied(llama, ELASTIC, total=18) as handle:
        expected = llama.generate(ids, **settings)
        cache = handle.new_cache()
        with torch.no_grad():
            llama(ids[:, :7], past_key_values=cache)
        assert torch.equal(llama.generate(ids, past_key_values=cache, **settings), expected)
        assert cache.get_seq_length() == 17


def test_too_small_a_total_is_an_error(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 12)
    with (
        applied(llama, ELASTIC, total=14),
        pytest.raises(ValueError, match=r"row 0 would hold 15 tokens, but the cache was built for total=14"),
    ):
        llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cache_implementation": "static"},
            r"cache_implementation='static' cannot be combined with applied\(\)",
        ),
        (
            {"prompt_lookup_num_tokens": 2},
            r"assisted generation takes tokens back, which a ragged cache cannot",
        ),
    ],
)
def test_what_generate_cannot_do_is_said(
    llama: Any, tokens: Callable[..., Tensor], settings: dict[str, Any], message: str
) -> None:
    ids = tokens(1, 12)
    with applied(llama, ELASTIC), pytest.raises(UnsupportedModel, match=message):
        llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, **settings
        )


def test_fallbacks_are_told(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 12)
    pattern = causal() & distance(0, 5) | causal() & distance(8, 10)
    with applied(llama, pattern) as handle:
        llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert "layer 2 keeps every token" in {note["what"] for note in handle.fallbacks}
