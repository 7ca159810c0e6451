"""The decode backend: ragged views, validity, positions, chunks; always against the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attlas.attend import KVGroup, KVView, attend, decode, make_request
from attlas.pattern import Pattern, Tokens, causal, dense, per_head, per_kv_head, sink, window

PAST = 100  # keys before the first query
STREAM = causal() & (window(30) | sink(4))


def group(heads: tuple[int, ...], positions: Tensor, batch: int, valid: Tensor | None = None, value: int = 16,
          dtype: torch.dtype = torch.float32) -> KVGroup:  # fmt: skip
    size = positions.shape[-1]
    key = torch.randn(batch, len(heads), size, 16, dtype=dtype)
    return KVGroup(heads, key, torch.randn(batch, len(heads), size, value, dtype=dtype), positions, valid)


def kept(rows: int) -> Tensor:
    """Sinks, what is left of a ring, and the new tokens."""
    return torch.cat([torch.arange(4), torch.arange(60, PAST + rows)])


def view(rows: int, batch: int, value: int = 16, dtype: torch.dtype = torch.float32) -> KVView:
    short, full = kept(rows), torch.arange(PAST + rows)
    return KVView(
        (group((0, 2), short, batch, None, value, dtype), group((1,), full, batch, None, value, dtype))
    )


def agree(
    query: Tensor, held: KVView, pattern: Pattern | None, q_at: Tokens, tolerance: float = 1e-5
) -> None:
    out, state = attend(query, held, pattern=pattern, q_at=q_at, backend="decode", return_state=True)
    exact, wanted = attend(query, held, pattern=pattern, q_at=q_at, backend="reference", return_state=True)
    some = torch.isfinite(wanted.lse)
    torch.testing.assert_close(out.double(), exact.double(), rtol=tolerance, atol=tolerance)
    assert torch.equal(torch.isfinite(state.lse), some)
    torch.testing.assert_close(
        state.lse[some].double(), wanted.lse[some].double(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("batch, value", [(1, 16), (3, 8)])
@pytest.mark.parametrize(
    "pattern",
    [
        None,
        STREAM,
        per_kv_head([STREAM, causal(), STREAM]),
        per_head([STREAM, causal(), STREAM, causal(), dense(), STREAM]),
    ],
    ids=str,
)
def test_ragged_groups_match_the_oracle(rows: int, batch: int, value: int, pattern: Pattern | None) -> None:
    query = torch.randn(batch, 6, rows, 16)
    agree(query, view(rows, batch, value), pattern, Tokens(rows, start=PAST))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("pattern", [None, STREAM], ids=str)
def test_invalid_slots_and_rows_without_keys(rows: int, pattern: Pattern | None) -> None:
    places = kept(rows)
    valid = torch.rand(3, len(places)) < 0.7
    valid[0] = False
    held = KVView((group((0, 2), places, 3, valid), group((1,), torch.arange(PAST + rows), 3)))
    query = torch.randn(3, 6, rows, 16)
    agree(query, held, pattern, Tokens(rows, start=PAST))
    out = attend(query, held, pattern=pattern, q_at=Tokens(rows, start=PAST), backend="decode")
    assert torch.equal(out[0, :2], torch.zeros_like(out[0, :2]))


def test_positions_that_differ_between_batch_rows() -> None:
    places = torch.stack([kept(2) + shift for shift in range(3)])
    held = KVView((group((0, 1, 2), places, 3),))
    q_at = Tokens(2, index=torch.stack([torch.arange(PAST, PAST + 2) + shift for shift in range(3)]))
    agree(torch.randn(3, 6, 2, 16), held, STREAM, q_at)


@pytest.mark.parametrize("heads", [(0, 1, 2), (2, 0, 1)])
def test_a_single_group_in_any_order(heads: tuple[int, ...]) -> None:
    agree(torch.randn(2, 6, 1, 16), KVView((group(heads, torch.arange(9), 2),)), None, Tokens(1, start=8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    held = view(1, 2, dtype=dtype)
    query = torch.randn(2, 6, 1, 16, dtype=dtype)
    agree(query, held, None, Tokens(1, start=PAST), 1e-7 if dtype == torch.float64 else 1.6e-2)


@pytest.mark.parametrize("keys", [300, 4000])
@pytest.mark.parametrize("largest", [2, 20, 40])
def test_large_logits_keep_their_digits_in_bfloat16(largest: int, keys: int) -> None:
    """bfloat16 alone would round a logit of 20 by up to 0.06, and its weight by 6 %."""
    query, key, value = (torch.randn(2, heads, size, 64) for heads, size in ((6, 1), (2, keys), (2, keys)))
    scale = 64**-0.5
    peak = (query.unflatten(1, (2, 3)) @ key.unsqueeze(2).transpose(-1, -2)).abs().max() * scale
    query, key, value = (tensor.bfloat16() for tensor in (query * largest / peak, key, value))
    held, q_at = KVView.of(key, value), Tokens(1, start=keys)
    out, state = attend(query, held, q_at=q_at, backend="decode", return_state=True)
    exact, wanted = attend(
        query.double(),
        KVView.of(key.double(), value.double()),
        q_at=q_at,
        backend="reference",
        return_state=True,
    )
    logits = query.unflatten(1, (2, 3)) @ key.unsqueeze(2).transpose(-1, -2) * scale
    plain = (logits.softmax(-1) @ value.unsqueeze(2)).flatten(1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=1.6e-2, atol=1.6e-2)
    assert (out.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()
    error = (state.lse.double() - wanted.lse).abs().max()
    # Up to 8 rounding is within the tolerance and left alone; above, the lse keeps what the weights rest on.
    assert error <= (1.6e-2 if largest < 8 else 1e-3)
    if largest >= 8:
        assert (logits.float().logsumexp(-1).flatten(1) - wanted.lse.flatten(1)).abs().max() > 5e-3


def test_an_empty_group_gives_zero() -> None:
    held = KVView((group((0,), torch.arange(0), 1), group((1,), torch.arange(5), 1)))
    out = attend(torch.randn(1, 2, 1, 16), held, q_at=Tokens(1, start=4), backend="decode")
    assert torch.equal(out[:, 0], torch.zeros(1, 1, 16))
    assert bool(out[:, 1].abs().sum() > 0)


@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_behind_an_invalid_slot_is_never_looked_at(dtype: torch.dtype, garbage: float) -> None:
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[:, 7:] = False
    held = KVView((group((0,), torch.arange(20), 1, valid, dtype=dtype),))
    query = torch.randn(1, 1, 1, 16, dtype=dtype)
    clean = attend(query, held, q_at=Tokens(1, start=20), backend="decode")
    held.groups[0].key[:, :, 7:] = garbage
    held.groups[0].value[:, :, 7:] = garbage
    found = attend(query, held, q_at=Tokens(1, start=20), backend="decode")
    if dtype == torch.float32:
        assert torch.equal(found, clean)
    else:  # huge numbers there make the logits be computed to more digits
        torch.testing.assert_close(found, clean, rtol=1.6e-2, atol=1.6e-2)


def test_a_nan_that_is_seen_is_told() -> None:
    held = KVView((group((0,), torch.arange(20), 1, torch.arange(20)[None] != 3),))
    held.groups[0].value[:, :, 5] = float("nan")
    assert attend(torch.randn(1, 1, 1, 16), held, backend="decode").isnan().all()


def test_a_step_reads_what_is_kept_and_no_more() -> None:
    held = view(1, 2)
    found = decode.estimate(make_request(torch.randn(2, 6, 1, 16), held, q_at=Tokens(1, start=PAST)))
    assert found.kv_bytes == held.nbytes


def test_a_decoded_token_goes_to_this_backend() -> None:
    query = torch.randn(2, 6, 1, 16)
    from attlas.attend import choose

    assert choose(make_request(query, view(1, 2), q_at=Tokens(1, start=PAST))).name == "decode"


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    query = torch.randn(1, 2, 4, 16, requires_grad=True)
    tensors = torch.randn(1, 2, 4, 16), torch.randn(1, 2, 4, 16)
    with pytest.raises(ValueError, match="it takes a KVView, not key and value tensors"):
        attend(query, *tensors, backend="decode")
    with pytest.raises(ValueError, match="it has no gradient"):
        attend(query, KVView.of(*tensors), backend="decode")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 40])
def test_interleaved_heads_without_keys(rows: int, dtype: torch.dtype) -> None:
    """Two of three KV heads keep nothing that the pattern lets them see."""
    nothing = causal() & window(3) & sink(2)
    pattern = per_kv_head([nothing, causal(), nothing])
    query = torch.randn(2, 6, rows, 16, dtype=dtype)
    held, place = view(rows, 2, dtype=dtype), Tokens(rows, PAST)
    out, state = attend(query, held, pattern=pattern, q_at=place, backend="decode", return_state=True)
    assert state.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (state.lse[:, [0, 1, 4, 5]] == -torch.inf).all() and not out[:, [0, 1, 4, 5]].any()
    agree(query, held, pattern, place, 2e-2 if dtype == torch.bfloat16 else 1e-5)
