"""From a `Layout` to the few kernel calls that compute it.

A layout lists, per block of rows, the ranges of keys that the block needs. Neighbouring ranges of one block
become one *run*; runs of consecutive blocks that look alike from where they stand (a window moves along with
its rows) become one batched call over strided views of the keys, without a copy. The first call that reaches
a row writes its output, later calls merge into it by their lse.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from attlas.attend.scatter import GAP

__all__ = ["Call", "LayoutLike", "Pair", "Program", "compile_layout", "forget_masks"]

Pair = Callable[[int, int, int, int], Tensor]
"""`pair(q0, q1, k0, k1)`: BoolTensor (q1 - q0, k1 - k0), the pattern evaluated on one tile."""

_KEPT_MASK = 1 << 18  # pairs: to build a smaller mask anew costs as much as to use it
_LONG_CAUSAL = 2048  # rows: from here the kernel's own causal blocks (256 x 512) waste little


@runtime_checkable
class _Part(Protocol):
    k0: int
    k1: int
    kind: str


@runtime_checkable
class _Tile(Protocol):
    q0: int
    q1: int
    parts: Sequence[Any]


@runtime_checkable
class LayoutLike(Protocol):
    """What is used of `attlas.pattern.Layout`."""

    @property
    def tiles(self) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False)
class Call:
    """`tiles` tiles of (rows x keys), each `rows` rows below the last, their keys `key_step` further on.

    edges: columns that are not wholly visible, as (first column, hidden BoolTensor (rows, columns));
    empty: rows of the tile that see none of its keys, or None; first: writes the rows' output instead of
    merging.
    """

    q0: int
    rows: int
    tiles: int
    k0: int
    key_step: int
    keys: int
    causal: bool
    edges: tuple[tuple[int, Tensor], ...]
    empty: Tensor | None
    first: bool
    lasting: bool = True

    @property
    def pairs(self) -> int:
        """Query-key pairs that the call computes, hidden ones included."""
        square = self.rows * self.keys
        return self.tiles * (square // 2 if self.causal else square)

    def additive_mask(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(rows, keys) with 0 where visible and -inf where not, or None if all is visible."""
        if not self.edges:
            return None
        if self.lasting and self.rows * self.keys <= _KEPT_MASK:
            return _kept_mask(self, dtype, device)
        return _mask(self, dtype, device)


@dataclass(frozen=True, eq=False)
class Program:
    """The calls of one layout, in order; `holes` lists row ranges that no call reaches.

    lasting: False for a pattern that is bound to tensors of one call, which no cache may keep.
    """

    rows: int
    keys: int
    calls: tuple[Call, ...]
    holes: tuple[tuple[int, int], ...]
    lasting: bool = True

    @property
    def pairs(self) -> int:
        """Query-key pairs computed per head."""
        return sum(call.pairs for call in self.calls)

    @property
    def seen_keys(self) -> int:
        """Keys that some row sees, tile by tile: what must be read at least."""
        ends = sorted(
            (call.k0, call.k0 + (call.tiles - 1) * call.key_step + call.keys) for call in self.calls
        )
        total, reached = 0, 0
        for low, high in ends:
            total += max(0, high - max(low, reached))
            reached = max(reached, high)
        return total


def _mask(call: Call, dtype: torch.dtype, device: torch.device) -> Tensor:
    mask = torch.zeros(call.rows, call.keys, dtype=dtype, device=device)
    for column, hidden in call.edges:
        mask[:, column : column + hidden.shape[1]].masked_fill_(hidden.to(device), -float("inf"))
    return mask


_kept_mask = lru_cache(maxsize=128)(_mask)


def forget_masks() -> None:
    """Forget the masks of tiles that were kept."""
    _kept_mask.cache_clear()


@dataclass(frozen=True)
class _Run:
    """Keys k0..k1 of rows q0..q1."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    edges: tuple[tuple[int, Tensor], ...]


def compile_layout(
    layout: LayoutLike, rows: int, keys: int, pair: Pair, *, block: int = 256, lasting: bool = True
) -> Program:
    """Lower a layout over `rows` x `keys` to calls; tiles longer than `block` rows are cut where that saves
    work."""
    runs: list[list[_Run]] = []
    for tile in sorted(layout.tiles, key=lambda tile: int(tile.q0)):
        for piece in _pieces(tile, block):
            found = _runs(*piece, pair)
            if found:
                runs.append(found)
    open_calls: list[_Open] = []
    for tile_runs in runs:
        for index, run in enumerate(tile_runs):
            for candidate in reversed(open_calls[-8:]):
                if candidate.extend(run, first=index == 0):
                    break
            else:
                open_calls.append(_Open(run, first=index == 0))
    calls = sorted((entry.close(lasting) for entry in open_calls), key=lambda call: not call.first)
    return Program(rows, keys, tuple(calls), _holes(rows, runs), lasting)


_Piece = tuple[int, int, tuple[tuple[int, int, str, int], ...]]


def _pieces(tile: _Tile, block: int) -> Iterable[_Piece]:
    """Cut a tile into row pieces; a part is (k0, k1, kind, first row of the causal triangle)."""
    q0, q1 = int(tile.q0), int(tile.q1)
    parts = tuple((int(part.k0), int(part.k1), str(part.kind), q0) for part in tile.parts)
    kinds = {part[2] for part in parts}
    whole = kinds <= {"full"} or q1 - q0 <= block
    if kinds == {"causal"} and len(parts) == 1 and q1 - q0 >= _LONG_CAUSAL:
        whole = True
    step = q1 - q0 if whole else block
    for start in range(q0, q1, max(step, 1)):
        yield start, min(start + step, q1), parts


def _runs(q0: int, q1: int, parts: Sequence[tuple[int, int, str, int]], pair: Pair) -> list[_Run]:
    """The runs of rows q0..q1, widest first."""
    if len(parts) == 1:
        k0, k1, kind, top = parts[0]
        if kind == "causal" and top == q0 and k1 - k0 == q1 - q0:
            # Known without its triangle, which would be n x n for a whole sequence.
            return [_Run(q0, q1, k0, k1, True, ())]
    ranges: list[tuple[int, int, Tensor | None]] = []  # k0, k1, hidden
    for k0, k1, kind, top in sorted(parts):
        if kind == "full":
            ranges.append((k0, k1, None))
        elif kind == "causal":
            ranges.extend(_causal_ranges(q0, q1, k0, k1, top))
        elif kind == "partial":
            ranges.extend(_partial_ranges(k0, pair(q0, q1, k0, k1)))
        else:
            raise ValueError(f"layout part kind must be 'full', 'causal' or 'partial', got {kind!r}")
    groups: list[list[tuple[int, int, Tensor | None]]] = []
    for entry in ranges:
        if groups and entry[0] - groups[-1][-1][1] <= GAP:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    runs = [_joined(q0, q1, group) for group in groups]
    return sorted(runs, key=lambda run: run.k0 - run.k1)


def _causal_ranges(q0: int, q1: int, k0: int, k1: int, top: int) -> list[tuple[int, int, Tensor | None]]:
    """Row r sees keys k0..k0 + (r - top): what is full for all rows, then the triangle."""
    start, stop = k0 + q0 - top, min(k0 + q1 - top, k1)
    ranges: list[tuple[int, int, Tensor | None]] = [(k0, min(start, k1), None)] if start > k0 else []
    if stop > start:
        ranges.append((start, stop, torch.ones(q1 - q0, stop - start, dtype=torch.bool).triu(1)))
    return ranges


def _partial_ranges(k0: int, seen: Tensor) -> list[tuple[int, int, Tensor | None]]:
    """Trim columns that no row sees at either end."""
    columns = seen.any(0).nonzero().flatten()
    if columns.numel() == 0:
        return []
    low, high = int(columns[0]), int(columns[-1]) + 1
    seen = seen[:, low:high]
    return [(k0 + low, k0 + high, None if bool(seen.all()) else ~seen)]


def _joined(q0: int, q1: int, group: Sequence[tuple[int, int, Tensor | None]]) -> _Run:
    k0, k1 = group[0][0], group[-1][1]
    if len(group) == 1 and group[0][2] is not None and q1 - q0 == k1 - k0:
        triangle = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).triu(1)
        if torch.equal(group[0][2], triangle):
            return _Run(q0, q1, k0, k1, True, ())
    edges: list[tuple[int, Tensor]] = []
    reached = k0
    for low, high, hidden in group:
        if low > reached:
            edges.append((reached - k0, torch.ones(q1 - q0, low - reached, dtype=torch.bool)))
        if hidden is not None:
            edges.append((low - k0, hidden))
        reached = high
    return _Run(q0, q1, k0, k1, False, tuple(edges))


class _Open:
    """A call that may still grow by the run of the next block of rows."""

    def __init__(self, run: _Run, first: bool) -> None:
        self.run, self.first = run, first
        self.end, self.tiles, self.rows, self.key_step = run.q1, 1, run.q1 - run.q0, 0

    def extend(self, run: _Run, first: bool) -> bool:
        mine = self.run
        if first != self.first or run.q0 != self.end or run.causal != mine.causal:
            return False
        if not mine.edges and not mine.causal and not run.edges and (run.k0, run.k1) == (mine.k0, mine.k1):
            if self.tiles > 1:
                return False
            self.rows += run.q1 - run.q0
            self.end = run.q1
            return True
        moved = run.q0 - mine.q0
        alike = (
            run.q1 - run.q0 == self.rows
            and (run.k0 - moved, run.k1 - moved) == (mine.k0, mine.k1)
            and len(run.edges) == len(mine.edges)
            and all(
                a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(run.edges, mine.edges, strict=True)
            )
        )
        if alike:
            self.tiles += 1
            self.key_step = self.rows
            self.end = run.q1
        return alike

    def close(self, lasting: bool) -> Call:
        run = self.run
        empty = None
        if run.edges:
            seen = torch.ones(run.q1 - run.q0, run.k1 - run.k0, dtype=torch.bool)
            for column, hidden in run.edges:
                seen[:, column : column + hidden.shape[1]] &= ~hidden
            blank = ~seen.any(1)
            empty = blank if bool(blank.any()) else None
        shape = self.rows, self.tiles, run.k0, self.key_step, run.k1 - run.k0
        return Call(run.q0, *shape, run.causal, run.edges, empty, self.first, lasting)


def _holes(rows: int, runs: Sequence[Sequence[_Run]]) -> tuple[tuple[int, int], ...]:
    holes, reached = [], 0
    for tile_runs in runs:
        if tile_runs[0].q0 > reached:
            holes.append((reached, tile_runs[0].q0))
        reached = tile_runs[0].q1
    if reached < rows:
        holes.append((reached, rows))
    return tuple(holes)
