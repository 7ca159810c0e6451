"""Sums of values along edges with given weights.

Legend: B batch, H query heads, G KV heads, N queries, M keys, V value width, E edges.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attlas.attend.edge_weights import CHUNK, working
from attlas.graph import Graph
from attlas.pattern import Pattern, Tokens

__all__ = ["apply_weights", "sum_over_edges"]


def apply_weights(
    weights: Tensor,
    value: Tensor,
    pattern: Pattern | Graph,
    *,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
) -> Tensor:
    """out_i = Σ_j w_ij v_j with the weights (B, H, E) of a pattern's edges in the order of `pattern.edges`.

    Those of a Graph stand in its own order. value (B, G, M, V) gives out (B, H, N, V); without q_at there are
    as many queries as keys. Batches of one are shared. Differentiable in weights and value, O(E) memory.
    ValueError: a per-head pattern, another number of edges or batch. TypeError: integer weights, two dtypes.
    """
    if isinstance(pattern, Graph):
        weights = _fitting(weights, value, pattern.edges)
        if q_at is not None or k_at is not None or value.shape[2] != pattern.senders:
            raise ValueError(
                f"apply_weights: a graph of {pattern.senders} senders takes a value of each and no token "
                f"spaces, got value {tuple(value.shape)}"
            )
        by = pattern.by_receiver
        return _ApplyWeights.apply(weights.index_select(2, by.order), value, by.pointer, by.other)
    if pattern.heads is not None:
        raise ValueError("apply_weights: the pattern must be one for all heads; call once per head")
    k_at = k_at or Tokens(value.shape[2])
    q_at = q_at or Tokens(value.shape[2])
    row_ptr, col = (torch.from_numpy(array).to(value.device) for array in pattern.edges(q_at, k_at))
    return _ApplyWeights.apply(_fitting(weights, value, col.numel()), value, row_ptr, col)


def _fitting(weights: Tensor, value: Tensor, edges: int) -> Tensor:
    """The weights for every batch of the value."""
    _same_type("apply_weights", weights, value)
    if weights.dim() != 3 or weights.shape[2] != edges or weights.shape[1] % value.shape[1]:
        raise ValueError(
            f"apply_weights: weights must be (batch, heads, {edges} edges) with heads a multiple of "
            f"{value.shape[1]}, got {tuple(weights.shape)}"
        )
    batches = {weights.shape[0], value.shape[0]}
    if len(batches - {1}) > 1:
        raise ValueError(
            f"apply_weights: weights and value must have one batch, or 1, got {weights.shape[0]} and "
            f"{value.shape[0]}"
        )
    return weights.expand(value.shape[0], -1, -1) if weights.shape[0] == 1 else weights


def _same_type(who: str, weights: Tensor, value: Tensor) -> None:
    if not weights.is_floating_point() or weights.dtype != value.dtype:
        raise TypeError(
            f"{who}: weights and value must be floating-point tensors of one dtype, got {weights.dtype} and "
            f"{value.dtype}"
        )


def sum_over_edges(weights: Tensor, value: Tensor, row_ptr: Tensor, col: Tensor) -> Tensor:
    """out_i = Σ_e w_e v_col(e) over the edges row_ptr[i] .. row_ptr[i + 1] of a graph in CSR: (N, V).

    weights (E,), value (M, V), row_ptr (N + 1,), col (E,): senders and receivers may differ in number; a
    batch of graphs is one graph with numbers that run on. Differentiable in weights and value, O(E) memory.
    ValueError: other shapes, a row_ptr that does not go from 0 to E. TypeError: integer weights, two dtypes.
    """
    _same_type("sum_over_edges", weights, value)
    fits = weights.shape == col.shape and weights.dim() == 1 and value.dim() == 2 and row_ptr.dim() == 1
    if not fits:
        raise ValueError(
            "sum_over_edges: weights and col must be (edges,), value (senders, width), row_ptr (receivers + "
            f"1,), got {tuple(weights.shape)}, {tuple(col.shape)}, {tuple(value.shape)}, "
            f"{tuple(row_ptr.shape)}"
        )
    edges = col.numel()
    if not row_ptr.numel() or row_ptr[0] != 0 or row_ptr[-1] != edges or bool((row_ptr.diff() < 0).any()):
        raise ValueError(
            f"sum_over_edges: row_ptr must rise from 0 to the number of edges, {edges}, and never fall, got "
            f"{row_ptr.tolist() if row_ptr.numel() < 9 else f'{int(row_ptr[0])} .. {int(row_ptr[-1])}'}"
        )
    return _ApplyWeights.apply(weights[None, None], value[None, None], row_ptr, col)[0, 0]


class _ApplyWeights(torch.autograd.Function):
    """Chunks of edges; the backward gathers again instead of keeping messages."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, row_ptr: Tensor, col: Tensor) -> Tensor:
        ctx.save_for_backward(weights, value, row_ptr, col)
        wide, weight = value.to(working(value.dtype)), weights.to(working(value.dtype))
        owner = torch.arange(weights.shape[1], device=value.device) // (weights.shape[1] // value.shape[1])
        out = wide.new_zeros(weights.shape[0], weights.shape[1], row_ptr.numel() - 1, value.shape[3])
        for part, row in _chunks(row_ptr, weights.shape[1]):
            out.index_add_(2, row, weight[:, :, part, None] * wide[:, :, col[part]][:, owner])
        return out.to(value.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, value, row_ptr, col = ctx.saved_tensors
        dtype = working(value.dtype)
        group = weights.shape[1] // value.shape[1]
        wide, weight, grad = value.to(dtype), weights.to(dtype), grad.to(dtype)
        owner = torch.arange(weights.shape[1], device=value.device) // group
        to_weights, to_value = torch.empty_like(weight), torch.zeros_like(wide)
        for part, row in _chunks(row_ptr, weights.shape[1]):
            at_row = grad[:, :, row]
            message = wide[:, :, col[part]][:, owner]
            to_weights[:, :, part] = (at_row * message).sum(-1)
            back = (weight[:, :, part, None] * at_row).unflatten(1, (-1, group)).sum(2)
            to_value.index_add_(2, col[part], back.sum_to_size(value.shape[0], *back.shape[1:]))
        return to_weights.to(weights.dtype), to_value.to(value.dtype), None, None


def _chunks(row_ptr: Tensor, heads: int) -> Iterator[tuple[slice, Tensor]]:
    rows = torch.arange(row_ptr.numel() - 1, device=row_ptr.device).repeat_interleave(row_ptr.diff())
    step = max(1, CHUNK // heads)
    for start in range(0, rows.numel(), step):
        yield slice(start, start + step), rows[start : start + step]
