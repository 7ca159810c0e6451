"""Sets of columns per row, as sorted codes: membership of single pairs, and ranges of whole rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attlas.pattern.intervals import Intervals

__all__ = ["Relation", "looked_up", "relation"]


@dataclass(frozen=True, eq=False)
class Relation:
    """Pairs (row, column) as sorted, different codes ``row * (columns + 1) + column``, int64.

    With a batch the rows of batch row b are b * rows .. (b + 1) * rows.
    """

    codes: Tensor
    rows: int
    columns: int
    batch: int | None = None

    def has(self, row: Tensor, column: Tensor) -> Tensor:
        """Is the pair there? Elementwise and broadcasting; False outside. Cost: O(log pairs) each.

        With a batch, axis 0 of the answer is the batch.
        """
        inside = (row >= 0) & (row < self.rows) & (column >= 0) & (column < self.columns)
        if self.batch is not None:
            first = torch.arange(self.batch, device=row.device) * self.rows
            row = row + first.view(-1, *(1,) * (inside.dim() - 1))
        code = row * (self.columns + 1) + column
        if not self.codes.numel():
            return torch.zeros_like(code, dtype=torch.bool)
        known = self.codes.to(code.device)
        found = torch.searchsorted(known, code).clamp_(max=known.numel() - 1)
        return (known[found] == code) & inside

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row_ptr, lo, hi) of the runs of consecutive columns."""
        codes = self.codes.cpu().numpy()
        # No column is `columns`, so that the last of a row and the first of the next are no run.
        first = np.flatnonzero(np.diff(codes, prepend=-2) != 1)
        last = np.append(first[1:], len(codes)) - 1 if len(codes) else first
        row, lo = np.divmod(codes[first], self.columns + 1)
        row_ptr = np.searchsorted(row, np.arange(self.rows + 1))
        return row_ptr, lo, codes[last] % (self.columns + 1) + 1

    def intervals(self, rows: np.ndarray) -> Intervals:
        """The columns of the rows as ranges; none for a row outside. Needs a relation without batch."""
        row_ptr, lo, hi = self._runs
        inside = (rows >= 0) & (rows < self.rows)
        start = np.where(inside, row_ptr[np.where(inside, rows, 0)], 0)
        stop = np.where(inside, row_ptr[np.where(inside, rows + 1, 0)], 0)
        column = np.arange(max(1, int((stop - start).max(initial=0))))
        used = column < (stop - start)[:, None]
        run = np.where(used, start[:, None] + column, 0)
        lo, hi = (np.append(bound, 0)[run] for bound in (lo, hi))
        return Intervals(np.where(used, lo, 0), np.where(used, hi, 0))


def relation(row: Tensor, column: Tensor, rows: int, present: Tensor, batch: int | None = None) -> Relation:
    """The relation of those (row, column) pairs (int64) that are present; repeated ones count once."""
    columns = int(column.max()) + 1 if column.numel() else 0
    codes = (row * (columns + 1) + column)[present]
    return Relation(torch.unique(codes), rows, max(columns, 0), batch)


def looked_up(table: Tensor, at: Tensor, absent: int | bool) -> Tensor:
    """``table[at]``, ``absent`` outside; a table (B, positions) adds its batch axis as axis 0 of ``at``."""
    size = table.shape[-1]
    inside = (at >= 0) & (at < size)
    if not size:
        table = table.new_full((*table.shape[:-1], 1), absent)
    table, where = table.to(at.device), at.where(inside, 0)
    if table.dim() == 1:
        return table[where].where(inside, absent)
    batch = torch.arange(table.shape[0], device=at.device).view(-1, *(1,) * (at.dim() - 1))
    return table[batch, where].where(inside, absent)
