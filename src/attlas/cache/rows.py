"""Which real tokens each row of a batch has seen: bookkeeping shared by all layers of a cache.

A *column* is an index along the padded batch; a *position* counts a row's real tokens only. Patterns, rings
and spans speak of positions; transformers speaks of columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Clock", "Job", "Step", "checked_total", "split_rows"]

ALL = slice(None)


@dataclass(frozen=True)
class Job:
    """Rows that one attention call can share: equal first position, token count and total length."""

    rows: slice | Tensor
    columns: slice | Tensor
    start: int
    count: int
    total: int | None

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def whole(self) -> bool:
        """Whether the job covers every row of the batch."""
        return isinstance(self.rows, slice) and self.rows == ALL

    def take(self, tensor: Tensor) -> Tensor:
        """The job's rows and columns of a (B, heads, columns, width) tensor; a view wherever slices allow
        it."""
        part = tensor if self.whole else tensor[self.rows]
        if isinstance(self.columns, slice):
            whole = self.columns.start == 0 and self.columns.stop == tensor.shape[2]
            return part if whole else part[:, :, self.columns]
        return part.index_select(2, self.columns)

    def put(self, target: Tensor, part: Tensor) -> None:
        """Write `part` back where `take` would read."""
        if isinstance(self.rows, slice) or isinstance(self.columns, slice):
            target[self.rows, :, self.columns] = part
        else:  # two index tensors would be paired instead of crossed
            for index, row in enumerate(self.rows.tolist()):
                target[row, :, self.columns] = part[index]


def split_rows(
    valid: Tensor | None,
    starts: Sequence[int],
    totals: Sequence[int | None],
    columns: int,
    also: Sequence[Hashable] | None = None,
) -> tuple[Job, ...]:
    """Group the rows of a step of `columns` new columns into jobs; rows without a real token get none.

    valid (B, columns) marks real tokens (None: all are). Left padding, right padding and holes are all
    allowed. also: whatever else rows must have in common to share a job.
    """
    batch = len(starts)
    device = None if valid is None else valid.device
    groups: dict[tuple[Any, ...], list[int]] = {}
    shapes: dict[tuple[Any, ...], slice | Tensor] = {}
    table = None if valid is None else valid.tolist()
    for row in range(batch):
        taken = list(range(columns)) if table is None else [c for c, real in enumerate(table[row]) if real]
        if not taken:
            continue
        contiguous = taken[-1] - taken[0] + 1 == len(taken)
        place = taken[0] if contiguous else tuple(taken)
        key = (starts[row], len(taken), totals[row], place, None if also is None else also[row])
        groups.setdefault(key, []).append(row)
        shapes[key] = slice(taken[0], taken[-1] + 1) if contiguous else torch.tensor(taken, device=device)
    return tuple(
        Job(_rows(rows, batch, device), shapes[key], key[0], key[1], key[2]) for key, rows in groups.items()
    )


def _rows(rows: list[int], batch: int, device: torch.device | None) -> slice | Tensor:
    if len(rows) == batch:
        return ALL
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


@dataclass
class Step:
    """One forward pass as every layer sees it; `memo` holds what layers would otherwise compute again."""

    before: int
    columns: int
    starts: tuple[int, ...]
    totals: tuple[int | None, ...]
    decode: bool
    jobs: tuple[Job, ...]
    memo: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        return len(self.jobs) == 1 and self.jobs[0].whole


class Clock:
    """Columns and real tokens seen so far, per row; advanced once per forward pass, by its first layer."""

    def __init__(self, total: int | Sequence[int] | None) -> None:
        self.given = total
        self.columns = 0
        self.padded = False
        self.starts: list[int] | None = None
        self.totals: list[int | None] = []
        self.current: Step | None = None

    def step(self, before: int, columns: int, batch: int, valid: Tensor | None) -> Step:
        """The step of a layer that has seen `before` columns and receives `columns` more."""
        current = self.current
        if before == self.columns:
            return self._advance(columns, batch, valid)
        if current is not None and current.before == before and current.columns == columns:
            return current
        raise RuntimeError(
            f"this layer has seen {before} columns but the cache is at {self.columns}: an earlier forward "
            "pass stopped half-way. Call reset() and prefill again, or build a new cache."
        )

    def _advance(self, columns: int, batch: int, valid: Tensor | None) -> Step:
        starts = self._begin(batch)
        if valid is not None and bool(valid.all()):
            valid = None
        counts = [columns] * batch if valid is None else [int(count) for count in valid.sum(dim=1).tolist()]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        for row, (end, total) in enumerate(zip(ends, self.totals, strict=True)):
            if total is not None and end > total:
                raise ValueError(
                    f"row {row} would hold {end} tokens, but the cache was built for total={total} "
                    "(prompt and new tokens together); build it with a larger total"
                )
        decode = columns == 1 and valid is None
        self.current = Step(
            before=self.columns,
            columns=columns,
            starts=tuple(starts),
            totals=tuple(self.totals),
            decode=decode,
            jobs=split_rows(valid, starts, self.totals, columns),
        )
        self.padded = self.padded or valid is not None
        self.columns += columns
        self.starts = ends
        return self.current

    def _begin(self, batch: int) -> list[int]:
        if self.starts is None:
            self.starts = [0] * batch
            self.totals = list(self.given) if isinstance(self.given, Sequence) else [self.given] * batch
        if not len(self.starts) == len(self.totals) == batch:
            raise ValueError(
                f"the cache has {len(self.totals)} rows (totals) but the keys have a batch of {batch}; "
                "give one total per row, or use batch_repeat_interleave / batch_select_indices"
            )
        return self.starts

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows by index."""
        self.current = None
        if self.starts is None:
            if isinstance(self.given, Sequence):
                self.given = [self.given[row] for row in rows]
            return
        self.starts = [self.starts[row] for row in rows]
        self.totals = [self.totals[row] for row in rows]

    def reset(self) -> None:
        self.columns, self.padded, self.starts, self.current = 0, False, None, None

    def rewind(self, columns: int) -> None:
        """Forget the last `columns` columns of every row (rows without padding only)."""
        self.columns -= columns
        self.starts = None if self.starts is None else [start - columns for start in self.starts]
        self.current = None


def checked_total(total: Any) -> int | list[int] | None:
    """The length N of a request, one whole number or one per row; ValueError says what came instead."""
    if total is None:
        return None
    alone = isinstance(total, int) or not isinstance(total, Sequence) or isinstance(total, str)
    for one in [total] if alone else total:
        if isinstance(one, bool) or not isinstance(one, int):
            raise ValueError(
                f"total must be a number of tokens (prompt and new ones), or a list with one per row, "
                f"got {one!r}" + ("" if alone else f" in {total!r}")
            )
        if one < 1:
            raise ValueError(f"total must be at least 1 token per row, got {one}")
    return total if alone else list(total)
