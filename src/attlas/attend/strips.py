"""Strips: the pairs of a pattern as the strip kernel takes them, made from ranges of keys per row.

A strip is up to ROWS rows and the runs of keys that some of them see; a run is a stretch of keys with one set
of rows, 64 bits. Both cost memory by the changes of a pattern, not by its pairs: a window of any size has two
runs a row at most. Building is a sweep over the hulls of the ranges, compiled by `numba`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.pattern import Pattern, Tokens, dense, tile
from attlas.pattern.evaluate import one_batch_row, ranges_of_rows
from attlas.pattern.intervals import Intervals

__all__ = ["ROWS", "Strips", "build", "forget_strips", "joined", "strips_of"]

ROWS = 64  # as in strip_vectors, which is imported late
TRIED = 4  # strips by which orders of a grid are compared
HELD = 1 << 18  # ranges of keys held at a time


@dataclass(frozen=True, eq=False)
class Strips:
    """The pairs of one head's pattern, (rows, keys) of them by row number.

    order (rows,): the rows, strip by strip; strips (S, 5): where a strip begins in `order`, how many rows it
    has, its first and last + 1 run, its keys; runs (R, 2): first key and number of keys; masks (R,): bit r is
    set where row r of the strip sees the run, bits without a row in a full set are set too. int64 all.
    counts (rows,): keys that a row sees; pairs: of the pattern; computed: those that the kernel computes.
    """

    rows: int
    keys: int
    order: Tensor
    strips: Tensor
    runs: Tensor
    masks: Tensor
    counts: Tensor
    pairs: int
    computed: int


def build(seen: Intervals, keys: int, order: np.ndarray | None = None) -> Strips:
    """Strips of the rows in the order given (default: as they stand).

    seen: ranges of key numbers per row. Cost: O(ranges + hulls of the ranges of a strip).
    """
    order = np.arange(seen.rows, dtype=np.int64) if order is None else order.astype(np.int64)
    return _put_together([_swept(seen, keys, order)], keys, order)


_Swept = tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]


def _swept(seen: Intervals, keys: int, order: np.ndarray) -> _Swept:
    """(strips, runs, masks, computed, keys of each row in the order) of some rows."""
    low, high = np.ascontiguousarray(seen.lo), np.ascontiguousarray(seen.hi)
    return *_sweep()(low, high, order, keys, ROWS), (high - low).sum(1)[order]


def _put_together(parts: Sequence[_Swept], keys: int, order: np.ndarray) -> Strips:
    """One `Strips` of consecutive stretches of the order."""
    strips, rows, runs = [], 0, 0
    for part, own_runs, *_ in parts:
        moved = part.copy()
        moved[:, 0] += rows
        moved[:, 2:4] += runs
        strips.append(moved)
        rows, runs = rows + int(part[:, 1].sum()), runs + len(own_runs)
    all_strips, all_runs = np.concatenate(strips), np.concatenate([part[1] for part in parts])
    masks = np.concatenate([part[2] for part in parts]).view(np.int64)
    made = (torch.from_numpy(one) for one in (order, all_strips, all_runs, masks))
    found_order, found_strips, found_runs, found_masks = made
    counts = np.empty(len(order), np.int64)
    counts[order] = np.concatenate([part[4] for part in parts])
    own = (torch.from_numpy(counts), int(counts.sum()), sum(part[3] for part in parts))
    return Strips(len(order), keys, found_order, found_strips, found_runs, found_masks, *own)


def joined(heads: Sequence[Sequence[Strips]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The strips of all heads (of one batch row, or of each) in one set of tensors, equal ones once.

    Returns order, strips, runs, masks and first (batch rows, H, 2): the first and last + 1 strip of a head.
    """
    places: dict[int, tuple[int, int]] = {}
    found: list[list[Tensor]] = [[], [], [], []]
    rows = strips = runs = 0
    for part in (part for row in heads for part in row):
        if id(part) in places:
            continue
        moved = part.strips.clone()
        moved[:, 0] += rows
        moved[:, 2:4] += runs
        places[id(part)] = (strips, strips + len(moved))
        for target, tensor in zip(found, (part.order, moved, part.runs, part.masks), strict=True):
            target.append(tensor)
        rows, strips, runs = rows + len(part.order), strips + len(moved), runs + len(part.runs)
    first = torch.tensor(
        [[places[id(part)] for part in row] for row in heads], dtype=torch.int64, device="cpu"
    )
    order, all_strips, all_runs, masks = (torch.cat(target) for target in found)
    return order, all_strips, all_runs, masks, first


def strips_of(pattern: Pattern | None, q_at: Tokens, k_at: Tokens) -> Strips:
    """The strips of one head's pattern (None: everything is seen) in one batch row.

    Rows of a grid are taken in boxes of its axes, so that those of a strip see much the same keys. Kept for
    the next call, unless the pattern is bound to tensors.
    """
    one = dense() if pattern is None else pattern.resolved(q_at, k_at)
    return (_made if one.bound_parts else _kept)(one, q_at, k_at)


def forget_strips() -> None:
    """Forget the strips that were kept."""
    _kept.cache_clear()


def _made(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> Strips:
    one_batch_row(pattern)

    def swept(rows: np.ndarray) -> _Swept:
        seen = ranges_of_rows(pattern, q_at, k_at, rows)
        return _swept(seen, k_at.length, np.arange(len(rows), dtype=np.int64))

    shape = tuple(size for _, size in q_at.axes)
    order = np.arange(q_at.length, dtype=np.int64)
    if sum(size > 1 for size in shape) >= 2 and q_at.length == prod(shape):
        order = min(_boxes(q_at), key=lambda order: swept(_some(order))[3])
    # Some rows at a time: a window on a video has hundreds of ranges a row.
    first = ranges_of_rows(pattern, q_at, k_at, order[:ROWS]).lo.shape[1]
    step = max(1, HELD // max(1, first) // ROWS) * ROWS
    parts = [swept(order[start : start + step]) for start in range(0, max(1, len(order)), step)]
    return _put_together(parts, k_at.length, order)


def _some(order: np.ndarray) -> np.ndarray:
    """The rows of a few strips by which orders are compared."""
    strips = np.unique(np.linspace(0, (len(order) - 1) // ROWS, TRIED, dtype=np.int64))
    some = (strips[:, None] * ROWS + np.arange(ROWS)).reshape(-1)
    return order[some[some < len(order)]]


_kept = lru_cache(maxsize=256)(_made)


def _boxes(space: Tokens) -> Iterator[np.ndarray]:
    """Orders of a grid's rows: as they stand, and in boxes of ROWS cells of several shapes."""
    yield np.arange(space.length, dtype=np.int64)
    long = [name for name, size in space.axes if size > 1]
    for box in product(*([side for side in (1, 2, 4, 8, 16) if side <= size] for _, size in space.axes)):
        sides = {name: side for (name, _), side in zip(space.axes, box, strict=True) if name in long}
        if prod(box) == ROWS and max(box) <= 4 * min(sides.values()):
            yield tile(space, **sides).index.numpy()


@cache
def _sweep() -> Any:
    from attlas.attend.strip_sweep import sweep

    return sweep
