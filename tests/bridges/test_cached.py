"""Cached decoding, chunked prefill and foreign caches equal the full forward, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.bridges import UnsupportedModel, applied
from attlas.pattern import Pattern, causal, distance, elastic, per_head, per_kv_head, sink, window

CLOSE = {"rtol": 1e-7, "atol": 1e-7}
SHORT = causal() & (window(3) | sink(2))
ELASTIC = causal() & (window(elastic(-4, 0.4, minimum=4)) | sink(2))
LENGTH = 40


@pytest.fixture
def dtype() -> torch.dtype:
    """Whole models multiply rounding errors from layer to layer: in float64 they stay small."""
    return torch.float64


def of_heads(model: Any) -> Pattern:
    """One short and otherwise elastic spans: per KV head, so that groups of different lengths appear."""
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    return per_kv_head([SHORT, *[ELASTIC] * (heads - 1)])


def chunked(model: Any, ids: Tensor, cache: Any, chunks: list[int]) -> Tensor:
    """Logits of a prefill in chunks (1 = decoding)."""
    found, first = [], 0
    for chunk in chunks:
        found.append(model(ids[:, first : first + chunk], past_key_values=cache).logits)
        first += chunk
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("chunks", [[5] + [1] * 35, [3, 14, 1, 1, 13, 8]], ids=["decoding", "chunks"])
@torch.no_grad()
def test_ragged_cache_equals_full_forward(
    model: Any, tokens: Callable[..., Tensor], chunks: list[int]
) -> None:
    ids = tokens(2, LENGTH)
    with applied(model, of_heads(model)) as handle:
        full = model(ids, use_cache=False).logits
        got = chunked(model, ids, handle.new_cache(total=LENGTH), chunks)
    torch.testing.assert_close(got, full, **CLOSE)
    dense = model(ids, use_cache=False).logits
    assert (full - dense).abs().max() > 1e-3, "the pattern must matter for this test to say anything"


@pytest.mark.parametrize(
    "pattern",
    [
        causal(),
        causal() & window(6),
        causal() & (window(2) | sink(7)),
        per_head([SHORT, ELASTIC, causal(), causal() & window(1)]),
        causal() & distance(0, 7) | causal() & distance(20, 25),
        causal() & sink(3),
        causal() & window(0),
        per_head([causal() & window(0), SHORT, causal() & sink(3), causal()]),
        causal() & window(elastic(-90, 0.5, minimum=0)),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_kind_of_pattern_decodes(llama: Any, tokens: Callable[..., Tensor], pattern: Pattern) -> None:
    ids = tokens(2, LENGTH)
    with applied(llama, pattern) as handle:
        full = llama(ids, use_cache=False).logits
        got = chunked(llama, ids, handle.new_cache(total=LENGTH), [9, 6] + [1] * 25)
    torch.testing.assert_close(got, full, **CLOSE)


@torch.no_grad()
def test_one_pattern_per_layer(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, LENGTH)
    with applied(llama, [causal(), SHORT, ELASTIC]) as handle:
        full = llama(ids, use_cache=False).logits
        cache = handle.new_cache(total=LENGTH)
        got = chunked(llama, ids, cache, [20] + [1] * 20)
    torch.testing.assert_close(got, full, **CLOSE)
    kept = LENGTH + (3 + 2) + (12 + 2)
    assert cache.nbytes == kept * 2 * 2 * 8 * 8


@torch.no_grad()
def test_a_pattern_that_is_not_causal_is_made_so(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 20)
    with applied(llama, window(4) | sink(2)):
        loose = llama(ids).logits
    with applied(llama, causal() & (window(4) | sink(2))):
        torch.testing.assert_close(llama(ids).logits, loose)


@torch.no_grad()
def test_all_causal_equals_the_model_itself(model: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, LENGTH)
    dense = model(ids).logits
    with applied(model, causal()):
        torch.testing.assert_close(model(ids).logits, dense, **CLOSE)


@torch.no_grad()
def test_foreign_cache_shared_by_several_questions(model: Any, tokens: Callable[..., Tensor]) -> None:
    context, questions = tokens(1, 30), tokens(3, 10, seed=5)
    with applied(model, of_heads(model), total=LENGTH):
        full = model(torch.cat([context.expand(3, -1), questions], dim=1), use_cache=False).logits
        cache = model(context, use_cache=True).past_key_values
        cache.batch_repeat_interleave(3)
        got = model(questions, past_key_values=cache).logits
    torch.testing.assert_close(got, full[:, 30:], **CLOSE)


@torch.no_grad()
def test_foreign_cache_of_an_elastic_pattern_needs_the_total(
    llama: Any, tokens: Callable[..., Tensor]
) -> None:
    ids = tokens(1, 20)
    with applied(llama, ELASTIC):
        cache = llama(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"spans of layer 0 grow with the length N .* pass total="):
            llama(ids[:, :1], past_key_values=cache)
    with applied(llama, SHORT):
        cache = llama(ids, use_cache=True).past_key_values
        got = llama(ids, past_key_values=cache).logits
        torch.testing.assert_close(got, llama(torch.cat([ids, ids], 1)).logits[:, 20:], **CLOSE)


@torch.no_grad()
def test_total_fixes_the_length(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, LENGTH)
    with applied(llama, ELASTIC, total=4 * LENGTH):
        wide = llama(ids).logits
    with applied(llama, causal() & (window(60) | sink(2))):
        torch.testing.assert_close(wide, llama(ids).logits, **CLOSE)
    with applied(llama, ELASTIC, total=[LENGTH, 4 * LENGTH]):
        torch.testing.assert_close(llama(ids).logits[1], wide[1], **CLOSE)
        assert (llama(ids).logits[0] - wide[0]).abs().max() > 1e-3


@torch.no_grad()
def test_bytes_are_deployed_density_times_dense(llama: Any, tokens: Callable[..., Tensor]) -> None:
    from transformers import DynamicCache

    ids = tokens(2, LENGTH)
    dense = DynamicCache(config=llama.config)
    llama(ids, past_key_values=dense)
    dense_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in dense.layers)
    with applied(llama, of_heads(llama)) as handle:
        cache = handle.new_cache(total=LENGTH)
        llama(ids, past_key_values=cache)
    density = ((3 + 2) + (12 + 2)) / (2 * LENGTH)
    assert cache.nbytes == pytest.approx(density * dense_bytes, rel=0.05)


@torch.no_grad()
def test_latent_attention_runs_on_a_cache_that_keeps_every_key(
    make_tiny: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    from transformers import DynamicCache

    latent = make_tiny(
        "DeepseekV3",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
        first_k_dense_replace=3,
    )
    ids = tokens(2, LENGTH)
    with applied(latent, ELASTIC, total=LENGTH):
        full = latent(ids, use_cache=False).logits
        got = chunked(latent, ids, DynamicCache(config=latent.config), [9, 6] + [1] * 25)
        # float32, as this model's router wants; the third layer's sums differ by their order.
        torch.testing.assert_close(got, full, rtol=1e-4, atol=1e-4)
        kept = DynamicCache(config=latent.config)
        latent.generate(ids, max_new_tokens=1, past_key_values=kept)
        assert kept.get_seq_length() == LENGTH
        with pytest.raises(
            UnsupportedModel, match=r"DeepseekV3Attention reads the cached .*latent.* pass past_key_values="
        ):
            latent.generate(ids[:, :8], max_new_tokens=2)


@torch.no_grad()
def test_a_model_that_only_views_its_attention_is_given_adjacent_heads(
    make_tiny: Callable[..., Any],
    tokens: Callable[..., Tensor],
    padded: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> None:
    viewing = make_tiny("Afmoe", num_key_value_heads=2, head_dim=8, sliding_window=9, num_dense_layers=3)
    rows = [tokens(1, 12)[0], tokens(1, 5, seed=4)[0]]
    ids, mask, at = padded(rows, "left")
    with applied(viewing, SHORT) as handle:
        full = [viewing(row[None], use_cache=False).logits[0] for row in rows]
        cache = handle.new_cache(total=[20, 20])
        got = viewing(ids, attention_mask=mask, position_ids=at, past_key_values=cache).logits
    for row, alone in enumerate(full):
        # Float32 in three layers, in batches of different shapes.
        torch.testing.assert_close(got[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)
