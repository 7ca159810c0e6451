"""Aggregates: what is carried along the edges, a monoid on (weight, value) tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Aggregate", "Max", "Mean", "Min", "NeighbourMax", "Sum"]


class Aggregate:
    """Combine the values of a row's edges: `rows(weights, value, mask) -> (..., rows, V)`.

    weights, mask: (..., rows, keys); value: (..., 1, keys, V) or (..., rows, keys, V). A row without edges
    gives 0. `linear`: whether it is linear in the values, so that dot-product backends can carry it.
    """

    linear = True
    mergeable = False
    """Whether the outs of a row's parts, each times its part's share of the weight, add up to the whole."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


def _weighted_sum(weights: Tensor, value: Tensor) -> Tensor:
    # The broadcast row axis of a shared value turns this into one matrix product for a whole tile.
    return torch.einsum("...c,...cv->...v", weights, value)


@dataclass(frozen=True)
class Sum(Aggregate):
    """out_i = Σ_j w_ij v_j. Cost: 2 V FLOPs a pair."""

    mergeable = True

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return _weighted_sum(weights, value)


@dataclass(frozen=True)
class Mean(Aggregate):
    """out_i = Σ_j w_ij v_j / (number of edges of i)."""

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(-1, keepdim=True).clamp_min(1).to(weights.dtype)
        return _weighted_sum(weights, value) / count


@dataclass(frozen=True)
class Max(Aggregate):
    """out_i = max_j w_ij v_j in each channel; the gradient goes to the key where it was found.

    Among equals that is one of them. Holds rows × keys × V numbers for a block of rows, of which the backward
    keeps the arg alone: use it for narrow values or sparse patterns.
    """

    linear = False

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        messages = (weights.unsqueeze(-1) * value).masked_fill(~mask.unsqueeze(-1), -float("inf"))
        # max with its arg, not amax, which would keep all messages for its backward.
        return torch.where(mask.any(-1, keepdim=True), messages.max(-2).values, 0.0)


@dataclass(frozen=True)
class Min(Max):
    """out_i = min_j w_ij v_j in each channel; as `Max` in all else."""

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return -super().rows(-weights, value, mask)


@dataclass(frozen=True)
class NeighbourMax(Max):
    """out_i = max of v_j over {j : w_ij > 0} in each channel: weights only say who is a neighbour.

    A row without a neighbour gives 0. The gradient goes to the value where it was found, none to the weights.
    Cost and memory as for `Max`.
    """

    @property
    def name(self) -> str:
        return "neighbour_max"

    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        near = (mask & (weights.detach() > 0)).expand(weights.shape)
        messages = torch.where(near.unsqueeze(-1), value, -float("inf"))
        return torch.where(near.any(-1, keepdim=True), messages.max(-2).values, 0.0)
