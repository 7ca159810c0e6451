"""A pattern on token spaces: masks, tiles of masks, edges, counts, density."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.pattern import intervals as sets
from attlas.pattern.base import Pattern
from attlas.pattern.intervals import Intervals
from attlas.pattern.tokens import Tokens, common_sizes

__all__ = [
    "chunks",
    "density",
    "edges",
    "key_ranges",
    "mask",
    "one_batch_row",
    "ranges_of_rows",
    "row_counts",
    "tile",
]

CHUNK = 16384
"""Rows worked on at a time: bounds temporary memory, has no effect on results."""


def mask(pattern: Pattern, q_at: Tokens, k_at: Tokens, device: Any = None) -> Tensor:
    """``Pattern.mask``."""
    pattern = pattern.resolved(q_at, k_at)
    rows, keys = (0, q_at.length), (0, k_at.length)
    if pattern.heads is None:
        return tile(pattern, q_at, k_at, rows, keys, 0, device)
    masks = [tile(pattern, q_at, k_at, rows, keys, h, device) for h in range(pattern.heads)]
    # Heads without a batch axis beside heads that have one.
    return torch.stack(torch.broadcast_tensors(*masks), dim=-3)


def tile(
    pattern: Pattern,
    q_at: Tokens,
    k_at: Tokens,
    rows: tuple[int, int],
    keys: tuple[int, int],
    head: int = 0,
    device: Any = None,
) -> Tensor:
    """``Pattern.tile``."""
    pattern = pattern.resolved(q_at, k_at).head(head)
    _check_batch(pattern, q_at, k_at)
    i, j = _positions(q_at, rows, device), _positions(k_at, keys, device)
    if i.device != j.device:
        raise ValueError(
            f"query positions are on {i.device} but key positions on {j.device}: pass device=..."
        )
    i, j = i[..., :, None], j[..., None, :]
    if pattern.batch is not None:
        i, j = i.view(-1, *i.shape[-2:]), j.view(-1, *j.shape[-2:])
    seen = pattern.pair(i, j, common_sizes(q_at, k_at))
    for space, part, axis in ((q_at, rows, -1), (k_at, keys, -2)):
        if space.valid is not None:
            seen = seen & space.valid[..., part[0] : part[1]].to(seen.device).unsqueeze(axis)
    return seen


def _positions(space: Tokens, part: tuple[int, int], device: Any) -> Tensor:
    if not 0 <= part[0] <= part[1] <= space.length:
        raise ValueError(f"rows {part[0]}..{part[1]} are not within the {space.length} tokens of the space")
    if space.index is None:
        device = space.valid.device if device is None and space.valid is not None else device
        return torch.arange(space.start + part[0], space.start + part[1], device=device)
    return space.index[..., part[0] : part[1]].to(device=device, dtype=torch.int64)


def _check_batch(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> None:
    sizes = {size for size in (q_at.batch, k_at.batch) if size not in (None, 1)}
    if pattern.batch is not None and sizes - {pattern.batch}:
        raise ValueError(
            f"pattern is bound to tensors with {pattern.batch} batch rows, but the tokens have {sizes.pop()}"
        )


def one_batch_row(pattern: Pattern) -> None:
    """Refuse a pattern with a batch axis where ranges of keys per row are asked for."""
    if pattern.batch is not None:
        raise ValueError(
            f"the pattern has {pattern.batch} batch rows with pairs of their own: edges, counts and pictures "
            "need one, chosen with pattern.batch_row(b)"
        )


def key_ranges(
    pattern: Pattern, q_at: Tokens, k_at: Tokens, rows: tuple[int, int], head: int = 0
) -> Intervals:
    """Key *row numbers* that rows ``rows`` of a resolved pattern see; exact for all unbatched spaces."""
    one_batch_row(pattern)
    if q_at.plain and k_at.plain:
        return ranges_of_rows(pattern, q_at, k_at, np.arange(rows[0], rows[1], dtype=np.int64), head)
    if q_at.batch is not None or k_at.batch is not None:
        raise ValueError("edges and counts need token spaces without a batch axis: call once per batch row")
    return sets.from_bool(tile(pattern, q_at, k_at, rows, (0, k_at.length), head, "cpu").numpy())


def ranges_of_rows(
    pattern: Pattern, q_at: Tokens, k_at: Tokens, rows: np.ndarray, head: int = 0
) -> Intervals:
    """Key *row numbers* that any rows (int64, in any order) of plain spaces see."""
    sizes = common_sizes(q_at, k_at)
    positions = q_at.start + rows
    seen = _sinks_and_window(pattern, positions, sizes["N"])
    if seen is None:
        seen = pattern.intervals(positions, sizes, head)
    if k_at.start == 0 and k_at.length == sizes["N"]:
        return seen
    return sets.shift(sets.clip(seen, k_at.start, k_at.start + k_at.length), -k_at.start)


def _sinks_and_window(pattern: Pattern, positions: np.ndarray, extent: int) -> Intervals | None:
    """The ranges of `causal & (window | sink)`, the most frequent pattern, without its algebra; else None."""
    sink, window = pattern.sink_window() or (None, None)
    if not isinstance(sink, int) or not (window is None or isinstance(window, int)) or not positions.size:
        return None
    if int(positions.max()) >= extent or (window is not None and window < 1):
        return None
    end = positions + 1
    start = np.zeros_like(end) if window is None else np.maximum(end - window, 0)
    apart = start > sink
    if sink < 1 or not apart.any():
        start = start if sink < 1 else np.zeros_like(end)
        return Intervals(start[:, None], end[:, None])
    low, high = np.zeros((2, len(end)), np.int64), np.zeros((2, len(end)), np.int64)
    high[0] = np.where(apart, sink, end)
    np.multiply(start, apart, out=low[1])
    np.multiply(end, apart, out=high[1])
    return Intervals(low.T, high.T)


def chunks(pattern: Pattern, q_at: Tokens, k_at: Tokens, head: int = 0) -> Iterator[Intervals]:
    """``key_ranges`` of all rows, some thousand rows at a time (fewer where they cost a row of mask each)."""
    pattern = pattern.resolved(q_at, k_at)
    step = CHUNK if q_at.plain and k_at.plain else max(1, (1 << 22) // max(1, k_at.length))
    for start in range(0, q_at.length, step):
        yield key_ranges(pattern, q_at, k_at, (start, min(start + step, q_at.length)), head)


def row_counts(pattern: Pattern, q_at: Tokens, k_at: Tokens, head: int = 0) -> np.ndarray:
    """``Pattern.row_counts``."""
    parts = [sets.count(part) for part in chunks(pattern, q_at, k_at, head)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def edges(pattern: Pattern, q_at: Tokens, k_at: Tokens, head: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``Pattern.edges``."""
    counts, columns = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for part in chunks(pattern, q_at, k_at, head):
        counts.append(sets.count(part))
        length = (part.hi - part.lo).reshape(-1)
        before = np.cumsum(length) - length
        columns.append(np.arange(int(length.sum())) + np.repeat(part.lo.reshape(-1) - before, length))
    return np.cumsum(np.concatenate(counts)), np.concatenate(columns)


def density(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> float:
    """``Pattern.density``."""
    from attlas.pattern.atoms import Causal

    pairs = Causal().count(q_at, k_at) if pattern.is_causal else q_at.length * k_at.length
    return pattern.count(q_at, k_at) / ((pattern.heads or 1) * pairs) if pairs else 0.0
