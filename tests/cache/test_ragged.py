"""The cache by hand: whatever it hands out, attention over it equals attention over everything, masked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attlas.attend.view import KVView
from attlas.cache import RaggedCache
from attlas.pattern import Pattern, Tokens, causal, distance, elastic, per_head, per_kv_head, sink, window

HEADS, KV_HEADS, WIDTH = 4, 2, 8
ELASTIC = causal() & (window(elastic(-4, 0.5, minimum=3)) | sink(2))
PATTERNS: dict[str, Pattern] = {
    "sinks and window": causal() & (window(5) | sink(2)),
    "window": causal() & window(4),
    "sinks longer than the window": causal() & (window(2) | sink(6)),
    "full": causal(),
    "elastic": ELASTIC,
    "per KV head": per_kv_head([causal() & (window(3) | sink(1)), ELASTIC]),
    "per query head": per_head([causal() & window(3), causal() & window(7), causal(), causal() & window(2)]),
    "not sinks and window": causal() & distance(2, 9),
    "sinks alone": causal() & sink(3),
    "nothing": causal() & window(0),
    "one head sees nothing": per_head(
        [causal() & window(0), causal() & window(3), causal(), causal() & sink(2)]
    ),
    "one KV head sees nothing": per_kv_head([causal() & window(0), ELASTIC]),
}


def attend_rows(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Dense softmax attention in float64; query (H, n, D), key and value (G, m, D), allowed (H, n, m)."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, 0).double(), value.repeat_interleave(group, 0).double()
    logits = query.double() @ key.transpose(1, 2) * WIDTH**-0.5
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
    return weights @ value


def masks(pattern: Pattern, q_at: Tokens, k_at: Tokens, total: int) -> Tensor:
    """(H, n, m) of a pattern that may be shared, per head or per KV head."""
    bound = pattern.bind(N=total)
    return torch.stack([one.mask(q_at, k_at) for one in bound.expand(HEADS, KV_HEADS)])


def attend_part(query: Tensor, part: object, pattern: Pattern, total: int, row: int) -> Tensor:
    """Attention of one row of a part, from nothing but what the cache handed out."""
    start, count = part.job.start, part.job.count
    q_at = Tokens(count, start=start)
    if not isinstance(part.key, KVView):
        allowed = masks(pattern, q_at, Tokens(count, start=start), total)
        return attend_rows(query, part.key[row], part.value[row], allowed)
    out = torch.zeros(HEADS, count, WIDTH, dtype=torch.float64)
    group = HEADS // KV_HEADS
    for held in part.key.groups:
        at, real = held.positions, held.valid
        at = at if at.dim() == 1 else at[row]
        real = (
            torch.ones(len(at), dtype=torch.bool) if real is None else real if real.dim() == 1 else real[row]
        )
        for slot, kv_head in enumerate(held.heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            allowed = real.expand(group, count, -1)
            if not part.exact:
                allowed = allowed & masks(pattern, q_at, Tokens.at(at.clamp(min=0)), total)[heads]
            own = slice(slot, slot + 1)
            out[heads] = attend_rows(query[heads], held.key[row, own], held.value[row, own], allowed)
    return out


def states(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, HEADS, length, WIDTH),
        torch.randn(batch, KV_HEADS, length, WIDTH),
        torch.randn(batch, KV_HEADS, length, WIDTH),
    )


@pytest.mark.parametrize("chunks", [(1,) * 40, (7,) + (1,) * 33, (3, 11, 1, 1, 13, 2, 9), (40,)])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_chunking_equals_the_full_forward(name: str, chunks: tuple[int, ...]) -> None:
    length, pattern = sum(chunks), PATTERNS[name]
    query, key, value = states(2, length)
    space = Tokens(length)
    cache = RaggedCache([pattern], heads=HEADS, kv_heads=KV_HEADS, total=length)
    first = 0
    for chunk in chunks:
        now = slice(first, first + chunk)
        (part,) = cache.append(key[:, :, now], value[:, :, now], 0)
        for row in range(2):
            expected = attend_rows(query[row], key[row], value[row], masks(pattern, space, space, length))
            got = attend_part(query[row][:, now], part, pattern, length, row)
            torch.testing.assert_close(got, expected[:, now], rtol=0, atol=1e-12)
        first += chunk
    assert cache.get_seq_length() == length


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_unpadded_rows(name: str, side: str) -> None:
    pattern, lengths, columns, new = PATTERNS[name], (3, 12, 8), 12, 20
    totals = [length + new for length in lengths]
    query, key, value = states(3, max(totals))
    cache = RaggedCache([pattern], heads=HEADS, kv_heads=KV_HEADS, total=totals)
    valid = torch.zeros(3, columns, dtype=torch.bool)
    padded = [torch.full((3, tensor.shape[1], columns, WIDTH), 1e4) for tensor in (key, value)]
    for row, length in enumerate(lengths):
        real = slice(columns - length, columns) if side == "left" else slice(0, length)
        valid[row, real] = True
        for target, source in zip(padded, (key, value), strict=True):
            target[row, :, real] = source[row, :, :length]
    expected = []
    for row, total in enumerate(totals):
        space = Tokens(total)
        allowed = masks(pattern, space, space, total)
        expected.append(
            attend_rows(query[row][:, :total], key[row][:, :total], value[row][:, :total], allowed)
        )
    for part in cache.append(*padded, 0, valid):
        (row,) = range(3)[part.job.rows]
        got = attend_part(query[row][:, : lengths[row]], part, pattern, totals[row], 0)
        torch.testing.assert_close(got, expected[row][:, : lengths[row]], rtol=0, atol=1e-12)
    for step in range(new):
        now = [length + step for length in lengths]
        new_key = torch.stack([key[row, :, at : at + 1] for row, at in enumerate(now)])
        new_value = torch.stack([value[row, :, at : at + 1] for row, at in enumerate(now)])
        for part in cache.append(new_key, new_value, 0):
            for index, row in enumerate(range(3)[part.job.rows]):
                got = attend_part(query[row][:, now[row] : now[row] + 1], part, pattern, totals[row], index)
                torch.testing.assert_close(got[:, 0], expected[row][:, now[row]], rtol=0, atol=1e-12)
    assert cache.lengths == tuple(totals)


def test_decoding_has_no_mask_once_every_slot_is_visible() -> None:
    cache = RaggedCache([PATTERNS["sinks and window"]], heads=HEADS, kv_heads=KV_HEADS, total=30)
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, :4] = False
    cache.append(torch.randn(2, KV_HEADS, 10, WIDTH), torch.randn(2, KV_HEADS, 10, WIDTH), 0, valid)
    token = torch.randn(2, KV_HEADS, 1, WIDTH)
    (part,) = cache.append(token, token, 0)
    (group,) = part.key.groups
    assert part.exact and group.valid is None
    # Row 0 stands at position 6 (six real tokens before), row 1 at 10: sinks 0 and 1, then the last five.
    assert group.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 7, 8, 9, 10, 6]]


def test_bytes_are_the_deployed_density_times_dense() -> None:
    total, batch = 100, 2
    patterns = [PATTERNS["per KV head"], PATTERNS["full"], PATTERNS["sinks and window"]]
    cache = RaggedCache(patterns, heads=HEADS, kv_heads=KV_HEADS, total=total)
    for first in (*range(0, 90, 30), *range(90, 100)):
        count = 30 if first < 90 else 1
        for layer in range(3):
            new = torch.randn(batch, KV_HEADS, count, WIDTH)
            cache.append(new, new, layer)
    kept = (3 + 1) + (46 + 2) + 2 * 100 + 2 * (5 + 2)
    assert cache.nbytes == kept * 2 * batch * WIDTH * 4


def test_a_cache_without_total_grows_no_further_than_its_ring() -> None:
    cache = RaggedCache([PATTERNS["sinks and window"], causal()], heads=HEADS, kv_heads=KV_HEADS)
    for _ in range(50):
        for layer in range(2):
            new = torch.randn(1, KV_HEADS, 1, WIDTH)
            cache.append(new, new, layer)
    slots = [layer.nbytes // (2 * KV_HEADS * WIDTH * 4) for layer in cache.layers]
    assert slots[0] == 7
    assert 50 <= slots[1] < 50 * 1.5 + 1


def test_rows_can_be_repeated_selected_and_reordered() -> None:
    def decoded(rows: list[int], change: str) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        cache = RaggedCache(
            [PATTERNS["sinks and window"]], heads=HEADS, kv_heads=KV_HEADS, total=[20, 25, 30]
        )
        valid = torch.ones(3, 9, dtype=torch.bool)
        valid[1, :5] = False
        new = torch.randn(3, KV_HEADS, 9, WIDTH)
        cache.append(new, new, 0, valid)
        if change == "repeat":
            cache.batch_repeat_interleave(2)
        elif change == "select":
            cache.batch_select_indices(torch.tensor(rows))
        elif change == "mask":
            cache.batch_select_indices(torch.tensor([row in rows for row in range(3)]))
        elif change == "reorder":
            cache.reorder_cache(torch.tensor(rows))
        torch.manual_seed(2)
        token = torch.randn(3, KV_HEADS, 1, WIDTH)
        (part,) = cache.append(token[rows], token[rows], 0)
        return part.key.groups[0].key, part.key.groups[0].positions

    key, positions = decoded([0, 1, 2], "nothing")
    for rows, change in (
        ([0, 0, 1, 1, 2, 2], "repeat"),
        ([2, 0], "select"),
        ([0, 2], "mask"),
        ([1, 1, 0], "reorder"),
    ):
        got, at = decoded(rows, change)
        at = at if at.dim() == 2 else at.expand(len(rows), -1)
        shared = got.shape[2]
        torch.testing.assert_close(got, key[rows][:, :, :shared])
        assert torch.equal(at, positions[rows][:, :shared])


def test_reset_forgets_everything_and_allows_another_batch() -> None:
    cache = RaggedCache([ELASTIC], heads=HEADS, kv_heads=KV_HEADS, total=20)
    new = torch.randn(3, KV_HEADS, 12, WIDTH)
    cache.append(new, new, 0)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes, cache.lengths) == (0, 0, ())
    (part,) = cache.append(new[:1], new[:1], 0)
    assert torch.equal(part.key, new[:1])


def test_crop_takes_back_tokens_until_a_ring_wraps() -> None:
    cache = RaggedCache([causal(), causal() & window(8)], heads=HEADS, kv_heads=KV_HEADS, total=20)
    new = torch.randn(1, KV_HEADS, 20, WIDTH)
    for layer in range(2):
        cache.append(new[:, :, :6], new[:, :, :6], layer)
    cache.crop(-2)
    assert cache.get_seq_length() == 4
    (part,) = cache.append(new[:, :, 6:7], new[:, :, 6:7], 0)
    cache.append(new[:, :, 6:7], new[:, :, 6:7], 1)
    assert torch.equal(part.key.groups[0].key, new[:, :, [0, 1, 2, 3, 6]])
    for layer in range(2):
        cache.append(new[:, :, 8:14], new[:, :, 8:14], layer)
    with pytest.raises(
        NotImplementedError, match=r"crop: a ring has wrapped around, so the tokens .* overwritten"
    ):
        cache.crop(-1)
    with pytest.raises(ValueError, match=r"crop takes a negative number of tokens to remove, got 3"):
        cache.crop(3)


def test_crop_refuses_padded_rows_and_too_many_tokens() -> None:
    cache = RaggedCache([causal()], heads=HEADS, kv_heads=KV_HEADS)
    new = torch.randn(2, KV_HEADS, 4, WIDTH)
    cache.append(new, new, 0)
    with pytest.raises(ValueError, match=r"crop: cannot remove 5 tokens, the cache holds 4"):
        cache.crop(-5)
    cache.append(new, new, 0, torch.tensor([[True] * 4, [True, True, False, False]]))
    with pytest.raises(NotImplementedError, match=r"crop: rows with padding cannot be cropped by columns"):
        cache.crop(-1)


def test_mask_sizes_count_columns_like_a_full_cache() -> None:
    cache = RaggedCache([causal() & window(4)], heads=HEADS, kv_heads=KV_HEADS, total=20)
    new = torch.randn(1, KV_HEADS, 9, WIDTH)
    cache.append(new, new, 0)
    assert cache.get_seq_length() == 9
    assert cache.get_mask_sizes(3, 0) == (12, 0)
    assert cache.is_sliding == [False] and not cache.is_compileable and not cache.is_croppable


def test_a_pattern_that_is_not_sinks_and_window_is_announced() -> None:
    pattern = causal() & distance(2, 9)
    cache = RaggedCache([causal(), pattern], heads=HEADS, kv_heads=KV_HEADS)
    assert cache.fallbacks == [("layer 1 keeps every token", f"its pattern is not sinks + window: {pattern}")]


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"RaggedCache needs heads= and kv_heads= when it is given patterns"):
        RaggedCache([causal()])
    with pytest.raises(ValueError, match=r"windows must have one entry per layer \(1\), got 2"):
        RaggedCache([causal()], heads=2, kv_heads=1, windows=[None, 4])
    with pytest.raises(ValueError, match=r"total must be at least 1 token per row, got 0"):
        RaggedCache([causal()], heads=2, kv_heads=1, total=[4, 0])
    with pytest.raises(
        ValueError, match=r"grows with the length of the request, which is not known: pass total="
    ):
        RaggedCache([ELASTIC], heads=2, kv_heads=1)
