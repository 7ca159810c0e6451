"""Padding on either side changes nothing: every row equals its unpadded self."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.bridges import applied
from attlas.pattern import causal, elastic, per_kv_head, sink, window

CLOSE = {"rtol": 1e-7, "atol": 1e-7}
ELASTIC = causal() & (window(elastic(-4, 0.4, minimum=4)) | sink(2))
LENGTHS = (6, 25, 14)
NEW = 15


@pytest.fixture
def dtype() -> torch.dtype:
    """Whole models multiply rounding errors from layer to layer: in float64 they stay small."""
    return torch.float64


def rows_of(tokens: Callable[..., Tensor]) -> list[Tensor]:
    return [tokens(1, length + NEW, seed=length)[0] for length in LENGTHS]


def real(logits: Tensor, row: int, mask: Tensor) -> Tensor:
    return logits[row][mask[row].bool()]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_forward(model: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any], side: str) -> None:
    rows = rows_of(tokens)
    rows = [row[:length] for row, length in zip(rows, LENGTHS, strict=True)]
    ids, mask, positions = padded(rows, side)
    with applied(model, ELASTIC):
        alone = [model(row[None], use_cache=False).logits[0] for row in rows]
        logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for row, expected in enumerate(alone):
            torch.testing.assert_close(real(logits, row, mask), expected, **CLOSE)
        assert logits.isfinite().all()


@pytest.mark.parametrize("foreign", [False, True], ids=["ragged", "dynamic"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_decoding_after_a_padded_prefill(
    model: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any], side: str, foreign: bool
) -> None:
    rows = rows_of(tokens)
    ids, mask, positions = padded([row[:length] for row, length in zip(rows, LENGTHS, strict=True)], side)
    totals = [length + NEW for length in LENGTHS]
    if foreign and getattr(model.config, "sliding_window", None):
        side, (ids, mask, positions) = (
            "left",
            padded([row[:n] for row, n in zip(rows, LENGTHS, strict=True)], "left"),
        )
    with applied(model, ELASTIC, total=totals) as handle:
        cache = None if foreign else handle.new_cache()
        output = model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        steps = []
        for step in range(NEW):
            new = torch.stack([row[length + step] for row, length in zip(rows, LENGTHS, strict=True)])[
                :, None
            ]
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], dim=1)
            steps.append(
                model(
                    new,
                    attention_mask=mask,
                    position_ids=mask.sum(1, keepdim=True) - 1,
                    past_key_values=output.past_key_values,
                ).logits
            )
    for index, (row, length, total) in enumerate(zip(rows, LENGTHS, totals, strict=True)):
        with applied(model, ELASTIC, total=total):
            alone = model(row[None], use_cache=False).logits[0]
        torch.testing.assert_close(torch.cat(steps, 1)[index], alone[length:], **CLOSE)


@torch.no_grad()
def test_a_sliding_cache_of_transformers_that_lost_tokens_to_padding_is_refused(
    families: Callable[[str], Any], tokens: Callable[..., Tensor], padded: Callable[..., Any]
) -> None:
    mistral = families("mistral, sliding")
    ids, mask, positions = padded([tokens(1, 6)[0], tokens(1, 25)[0]], "right")
    mask_after = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
    with applied(mistral, causal() & window(4)):
        cache = mistral(ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
        with pytest.raises(
            ValueError, match=r"sliding cache has dropped tokens of row 0 .* pad on the left, or use"
        ):
            mistral(ids[:, :1], attention_mask=mask_after, past_key_values=cache)


@torch.no_grad()
def test_a_padded_second_chunk(llama: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any]) -> None:
    rows = [row[:length] for row, length in zip(rows_of(tokens), LENGTHS, strict=True)]
    cut = [4, 11, 9]
    first, first_mask, first_at = padded([row[:at] for row, at in zip(rows, cut, strict=True)], "left")
    second, second_mask, second_at = padded([row[at:] for row, at in zip(rows, cut, strict=True)], "right")
    with applied(llama, per_kv_head([causal() & window(4), ELASTIC]), total=LENGTHS) as handle:
        cache = handle.new_cache()
        llama(first, attention_mask=first_mask, position_ids=first_at, past_key_values=cache)
        logits = llama(
            second,
            attention_mask=torch.cat([first_mask, second_mask], dim=1),
            position_ids=second_at + torch.tensor(cut)[:, None],
            past_key_values=cache,
        ).logits
    assert cache.lengths == LENGTHS
    for index, (row, at) in enumerate(zip(rows, cut, strict=True)):
        with applied(llama, per_kv_head([causal() & window(4), ELASTIC])):
            expected = llama(row[None], use_cache=False).logits[0]
        torch.testing.assert_close(real(logits, index, second_mask), expected[at:], **CLOSE)


@torch.no_grad()
def test_bidirectional_encoder(
    encoder: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any]
) -> None:
    rows = [row[:length] for row, length in zip(rows_of(tokens), LENGTHS, strict=True)]
    for side in ("left", "right"):
        ids, mask, positions = padded(rows, side)
        with applied(encoder, window(4) | sink(2)):
            alone = [encoder(row[None]).logits[0] for row in rows]
            logits = encoder(ids, attention_mask=mask, position_ids=positions).logits
        for row, expected in enumerate(alone):
            torch.testing.assert_close(real(logits, row, mask), expected, **CLOSE)
    dense = encoder(rows[1][None]).logits[0]
    assert (dense - alone[1]).abs().max() > 1e-3


@torch.no_grad()
def test_padded_queries_give_zero_attention(llama: Any, tokens: Callable[..., Tensor], padded: Any) -> None:
    ids, mask, positions = padded(
        [row[:length] for row, length in zip(rows_of(tokens), LENGTHS, strict=True)], "left"
    )
    seen: list[Tensor] = []
    hook = llama.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    try:
        with applied(llama, ELASTIC):
            llama(ids, attention_mask=mask, position_ids=positions)
    finally:
        hook.remove()
    assert (seen[0][~mask.bool()] == 0).all()
    assert (seen[0][mask.bool()].abs().sum(-1) > 0).all()
