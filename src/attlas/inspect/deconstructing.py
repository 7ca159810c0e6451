"""What causal attention maps look like, head by head, without holding one.

Source: the statistics of Xue, Moosavi and Aletras 2025, arXiv 2510.11602. Legend: B batch, H heads, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.attend import BandMean, ColumnMean, Entropy, Normaliser, Reducer, reduce
from attlas.attend.reducers import Seen
from attlas.pattern import causal
from attlas.score import Score

__all__ = ["MapStatistics", "between", "map_statistics"]

NEAR = 4  # diagonals of LocFoc: the own token and the three before it


@dataclass(frozen=True, eq=False)
class MapStatistics:
    """Of one layer, means over the batch.

    entropy: -sum_ij a_ij log a_ij of a head's map in nats (over N: mean of a row), (H,). concentration: its
    Frobenius norm, (H,). diversity: HeadDiv, the standard deviation over the heads (population), mean of the
    N (N + 1) / 2 allowed places, (). sink: mean of the first column, (H,). local: LocFoc, mean of the
    diagonal, and of the first, second and third below it, (H, 4).
    """

    entropy: Tensor
    concentration: Tensor
    diversity: Tensor
    sink: Tensor
    local: Tensor


def map_statistics(query: Tensor, key: Tensor, score: Score, normaliser: Normaliser) -> MapStatistics:
    """The statistics of the causal map of `attend` with these arguments: query, key (B, H, N, D).

    Cost: the logits once, O(N * 64) memory. Without gradient.
    """
    length = query.shape[2]
    reducers = [Entropy(), ColumnMean(), BandMean(tuple(range(NEAR + 1))), _Norm(), _Spread()]
    found = reduce(query, key, None, reducers, pattern=causal(), score=score, normaliser=normaliser)
    # A diagonal has N - d places, not N.
    places = torch.tensor([max(1, length - back) for back in range(NEAR)], device=query.device)
    return MapStatistics(
        entropy=found["entropy"].sum(-1).mean(0),
        concentration=found["frobenius_norm"].mean(0),
        diversity=found["spread_over_heads"].mean(),
        sink=found["column_mean"][:, :, 0].mean(0),
        local=(found["band_mean"] * length / places).mean(0),
    )


def between(values: Tensor) -> Tensor:
    """Min-max over the layers (the first axis), as the paper draws entropy, Conc and HeadDiv; equal: 0."""
    low, high = values.amin(0), values.amax(0)
    return (values - low) / torch.where(high > low, high - low, 1.0)


@dataclass(frozen=True)
class _Norm(Reducer):
    """The Frobenius norm of the map, (B, H)."""

    name = "frobenius_norm"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads)

    def add(self, total: Tensor, seen: Seen) -> None:
        total += seen.weights.square().sum((2, 3))

    def finish(self, total: Tensor, queries: int) -> Tensor:
        return total.sqrt()


@dataclass(frozen=True)
class _Spread(Reducer):
    """Standard deviation over all heads, mean of the causal places, (B, H) with equal columns."""

    name = "spread_over_heads"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads)

    def add(self, total: Tensor, seen: Seen) -> None:
        # Off the map all heads are 0. One pattern for all heads: a block holds all of them.
        total += seen.weights.std(1, correction=0).sum((1, 2))[:, None]

    def finish(self, total: Tensor, queries: int) -> Tensor:
        return total / (queries * (queries + 1) / 2)
