"""Reducers: what to keep of the weights while they stream by, block of rows by block of rows.

A reducer sees every block of weights once: rows r0..r1 of one piece of heads, all keys that those rows see.
Legend: B batch, h heads of a piece, r rows and c keys of a block, H heads, N queries, M keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ArgmaxPerKey",
    "BandMean",
    "ColumnMean",
    "Entropy",
    "GroupShare",
    "Reducer",
    "RowDistance",
    "Seen",
]


@dataclass(frozen=True, eq=False)
class Seen:
    """One block: weights (B, h, r, c), row and key numbers (r,), (c,), positions (B or 1, r), (B or 1, c)."""

    weights: Tensor
    rows: Tensor
    keys: Tensor
    query_position: Tensor
    key_position: Tensor

    @property
    def distance(self) -> Tensor:
        """i - j by positions, (B or 1, 1, r, c)."""
        return (self.query_position[:, :, None] - self.key_position[:, None, :]).unsqueeze(1)


class Reducer:
    """Start with `empty`, take each block with `add`, read the result with `finish`."""

    name = "reducer"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Any:
        """The running result for the heads of one piece."""
        raise NotImplementedError

    def add(self, total: Any, seen: Seen) -> None:
        raise NotImplementedError

    def finish(self, total: Any, queries: int) -> Tensor:
        """The result (B, h, ...); by default the running total itself."""
        return total


@dataclass(frozen=True)
class ColumnMean(Reducer):
    """Mean weight that each key receives: (1/N) Σ_i w_ij, (B, H, M)."""

    name = "column_mean"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads, keys)

    def add(self, total: Tensor, seen: Seen) -> None:
        total.index_add_(2, seen.keys, seen.weights.sum(2))

    def finish(self, total: Tensor, queries: int) -> Tensor:
        return total / max(1, queries)


@dataclass(frozen=True)
class BandMean(Reducer):
    """Mean share of weight by distance: (1/N) Σ_i Σ_{j: d_b <= i - j < d_(b+1)} w_ij, (B, H, bands).

    edges: increasing distances d_0, d_1, ...; bands are [d_b, d_(b+1)).
    """

    edges: tuple[int, ...]

    name = "band_mean"

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"BandMean: edges must be at least two increasing distances, got {self.edges}")

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        # One bin on either side takes what lies outside.
        return like.new_zeros(batch, heads, len(self.edges) + 1)

    def add(self, total: Tensor, seen: Seen) -> None:
        edges = torch.tensor(self.edges, device=seen.weights.device)
        band = torch.bucketize(seen.distance, edges, right=True).expand(seen.weights.shape)
        total.scatter_add_(2, band.flatten(2), seen.weights.flatten(2))

    def finish(self, total: Tensor, queries: int) -> Tensor:
        return total[..., 1:-1] / max(1, queries)


@dataclass(frozen=True)
class Entropy(Reducer):
    """Entropy of each row's weights in nats: -Σ_j w_ij log w_ij, (B, H, N); 0 for a row without edges."""

    name = "entropy"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads, queries)

    def add(self, total: Tensor, seen: Seen) -> None:
        total[:, :, seen.rows] += torch.special.entr(seen.weights).sum(-1)


@dataclass(frozen=True)
class RowDistance(Reducer):
    """Mean distance at which a row looks: Σ_j w_ij |i - j|, (B, H, N)."""

    name = "row_distance"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads, queries)

    def add(self, total: Tensor, seen: Seen) -> None:
        total[:, :, seen.rows] += (seen.weights * seen.distance.abs()).sum(-1)


@dataclass(frozen=True, eq=False)
class GroupShare(Reducer):
    """Share of each row's weight that goes to each group of keys, (B, H, N, groups).

    labels: int64 (M,), the group of each key, 0..groups-1.
    """

    labels: Tensor
    groups: int

    name = "group_share"

    def __post_init__(self) -> None:
        low, high = (int(self.labels.min()), int(self.labels.max())) if self.labels.numel() else (0, 0)
        if self.labels.dim() != 1 or low < 0 or high >= self.groups:
            raise ValueError(
                f"GroupShare: labels must be one axis of numbers in 0..{self.groups - 1}, got shape "
                f"{tuple(self.labels.shape)} with values {low}..{high}"
            )

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        if self.labels.numel() != keys:
            raise ValueError(f"GroupShare: {self.labels.numel()} labels for {keys} keys")
        return like.new_zeros(batch, heads, queries, self.groups)

    def add(self, total: Tensor, seen: Seen) -> None:
        share = seen.weights.new_zeros(*seen.weights.shape[:3], self.groups)
        share.index_add_(3, self.labels.to(seen.keys.device)[seen.keys], seen.weights)
        total[:, :, seen.rows] += share


@dataclass(frozen=True)
class ArgmaxPerKey(Reducer):
    """The row that looks hardest at each key: row number, int64 (B, H, M); -1 for a key that nobody sees."""

    name = "argmax_per_key"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> tuple[Tensor, Tensor]:
        best = like.new_zeros(batch, heads, keys)
        return best, torch.full(best.shape, -1, dtype=torch.int64, device=like.device)

    def add(self, total: tuple[Tensor, Tensor], seen: Seen) -> None:
        best, row = total
        largest, where = seen.weights.max(2)
        before = best[:, :, seen.keys]
        better = largest > before
        best[:, :, seen.keys] = torch.where(better, largest, before)
        row[:, :, seen.keys] = torch.where(better, seen.rows[where], row[:, :, seen.keys])

    def finish(self, total: tuple[Tensor, Tensor], queries: int) -> Tensor:
        return total[1]
