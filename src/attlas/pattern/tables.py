"""Run-time tables: patterns that are made per call, from what was just computed or packed.

Legend: B batch rows, H heads, R rows of the table, w entries per row, S segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.pattern import intervals as sets
from attlas.pattern.base import Pattern
from attlas.pattern.bound import Bound, batch_of, bound_kind, check_integers
from attlas.pattern.intervals import Intervals
from attlas.pattern.relation import Relation, relation
from attlas.pattern.tokens import Tokens

__all__ = ["BlockTable", "NeighbourList", "Segments"]


@bound_kind("segments")
@dataclass(frozen=True, eq=False)
class Segments(Bound):
    """Packed documents: the queries of segment s see the keys of segment s, and no others.

    Query positions q_ptr[s] .. q_ptr[s + 1] see key positions k_ptr[s] .. k_ptr[s + 1] (default: q_ptr); both
    int (S + 1,), never decreasing. A segment may be empty; tokens outside all segments (padding at the end)
    see nobody. Pairs are counted row by row. ``causal() &`` it for documents whose q_ptr is k_ptr.
    """

    q_ptr: Tensor
    k_ptr: Tensor | None = None

    def __post_init__(self) -> None:
        for name, ptr in (("q_ptr", self.q_ptr), ("k_ptr", self._keys)):
            check_integers(f"segments {name}", ptr, (1,), "(segments + 1,)")
            if not ptr.numel() or int(ptr[0]) < 0 or bool((ptr.diff() < 0).any()):
                raise ValueError(
                    f"segments {name} must start at 0 or later and never decrease, got {ptr.tolist()[:8]}"
                )
        if self.q_ptr.shape != self._keys.shape:
            raise ValueError(
                f"segments q_ptr and k_ptr must have the same length, got {self.q_ptr.numel()} "
                f"and {self._keys.numel()}"
            )

    @property
    def _keys(self) -> Tensor:
        return self.q_ptr if self.k_ptr is None else self.k_ptr

    @property
    def label(self) -> str:
        return f"segments({self.q_ptr.numel() - 1})"

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        q_ptr, k_ptr = (ptr.to(i.device, torch.int64) for ptr in (self.q_ptr, self._keys))
        segment = torch.searchsorted(q_ptr, i.contiguous(), right=True) - 1
        inside = (segment >= 0) & (segment < q_ptr.numel() - 1)
        low = torch.where(inside, segment, 0)
        high = torch.where(inside, segment + 1, 0)  # an empty range outside
        return (j >= k_ptr[low]) & (j < k_ptr[high])

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        q_ptr, k_ptr = (ptr.cpu().numpy() for ptr in (self.q_ptr, self._keys))
        segment = np.searchsorted(q_ptr, rows, side="right") - 1
        inside = (segment >= 0) & (segment < len(q_ptr) - 1)
        low, high = k_ptr[np.where(inside, segment, 0)], k_ptr[np.where(inside, segment + 1, 0)]
        return sets.ranges(low, high, sizes["N"], len(rows))


@dataclass(frozen=True, eq=False)
class _Table(Bound):
    """Rows of entries, with leading head and batch axes: (R, w), (H, R, w) or (B, H, R, w)."""

    idx: Tensor
    valid: Tensor | None

    @property
    def _unit(self) -> int:
        """Positions of one row and of one entry."""
        return 1

    @property
    def _first(self) -> int:
        raise NotImplementedError

    def _check(self, head_kind: str) -> None:
        check_integers(f"{self.name} idx", self.idx, (2, 3, 4), "([[batch,] heads,] rows, entries)")
        if self.valid is not None and (self.valid.dtype != torch.bool or self.valid.shape != self.idx.shape):
            raise ValueError(
                f"{self.name} valid must be a bool tensor of the shape of idx, {tuple(self.idx.shape)}, got "
                f"{self.valid.dtype} {tuple(self.valid.shape)}"
            )
        if self._first < 0 or self._first % self._unit:
            raise ValueError(
                f"{self.name} start must be a multiple of {self._unit} and >= 0, got {self._first}"
            )
        if head_kind not in ("head", "kv_head"):
            raise ValueError(f"{self.name} head_kind must be 'head' or 'kv_head', got {head_kind!r}")

    @property
    def heads(self) -> int | None:
        return self.idx.shape[-3] if self.idx.dim() > 2 and self.idx.shape[-3] > 1 else None

    @cached_property
    def batch(self) -> int | None:
        return batch_of(self.idx, 3)

    @cached_property
    def _by_head(self) -> tuple[Pattern, ...]:
        return tuple(
            self._part((..., slice(h, h + 1), slice(None), slice(None))) for h in range(self.heads or 1)
        )

    @cached_property
    def _by_row(self) -> tuple[Pattern, ...]:
        return tuple(self._part((b,)) for b in range(self.batch or 1))

    def _part(self, where: tuple[Any, ...]) -> Pattern:
        valid = None if self.valid is None else self.valid[where]
        return replace(self, idx=self.idx[where], valid=valid)

    def head(self, index: int) -> Pattern:
        if self.heads is None:
            return self
        if not 0 <= index < self.heads:
            raise ValueError(f"head must be in 0..{self.heads - 1}, got {index}")
        return self._by_head[index]

    def batch_row(self, index: int) -> Pattern:
        if self.batch is None:
            return self
        if not 0 <= index < self.batch:
            raise ValueError(f"batch row must be in 0..{self.batch - 1}, got {index}")
        return self._by_row[index]

    def check_tokens(self, q_at: Tokens, k_at: Tokens) -> None:
        self.covers("queries", q_at, self._first, self._first + self.idx.shape[-2] * self._unit)

    @cached_property
    def _relation(self) -> Relation:
        if self.heads is not None:
            raise ValueError(f"{self.name} has {self.heads} patterns: choose one with pattern.head(h)")
        rows, width = self.idx.shape[-2:]
        idx = self.idx.reshape(-1, width).to(torch.int64)
        present = idx >= 0
        if self.valid is not None:
            present = present & self.valid.reshape(-1, width).to(idx.device)
        row = torch.arange(len(idx), device=idx.device)[:, None].expand_as(idx)
        return relation(row, idx, rows, present, self.batch)

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        row = (i - self._first).div(self._unit, rounding_mode="floor")
        return self._relation.has(row, j.div(self._unit, rounding_mode="floor"))

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        if self.heads is not None:
            return self.head(head).intervals(rows, sizes)
        seen = self._relation.intervals((rows - self._first) // self._unit)
        return sets.clip(Intervals(seen.lo * self._unit, seen.hi * self._unit), 0, sizes["N"])


@bound_kind("block_table")
@dataclass(frozen=True, eq=False)
class BlockTable(_Table):
    """Every query block sees the key blocks that its row names, in whole blocks of positions.

    Row r holds the key blocks of the queries at start + r * block .. start + (r + 1) * block; entry e stands
    for key positions e * block .. (e + 1) * block. idx int, (R, w), (H, R, w) or (B, H, R, w) (axes of 1 are
    shared); valid bool of that shape or None; negative and invalid entries are absent, repeated ones count
    once. ``head_kind`` says whether H counts query heads ("head") or KV heads ("kv_head").
    """

    block: int
    head_kind: str = field(default="head", kw_only=True)
    start: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"block_table block must be an integer >= 1, got {self.block!r}")
        self._check(self.head_kind)

    @property
    def label(self) -> str:
        return f"block_table({'x'.join(map(str, self.idx.shape))}, block={self.block})"

    @property
    def per(self) -> str | None:
        return None if self.heads is None else self.head_kind

    @property
    def _unit(self) -> int:
        return self.block

    @property
    def _first(self) -> int:
        return self.start


@bound_kind("neighbours")
@dataclass(frozen=True, eq=False)
class NeighbourList(_Table):
    """Every query sees the keys that its row names: a ``BlockTable`` of single positions.

    Row r holds the key positions of the query at position start + r. idx, valid, head_kind as there.
    """

    valid: Tensor | None = None
    head_kind: str = field(default="head", kw_only=True)
    start: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        self._check(self.head_kind)

    @property
    def label(self) -> str:
        return f"neighbours({'x'.join(map(str, self.idx.shape))})"

    @property
    def per(self) -> str | None:
        return None if self.heads is None else self.head_kind

    @property
    def _first(self) -> int:
        return self.start
