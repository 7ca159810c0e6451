"""Sums and means over the senders of every node, as products with the sparse adjacency.

Legend: E edges, S senders, R receivers, C channels.
"""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attlas.graph.graph import Graph, Sorted

__all__ = ["at_most", "neighbour_mean", "neighbour_sum", "spoilt_graphs"]

CHUNK = 65536
"""Edges at a time in the gradient of their weights."""


def neighbour_sum(
    x: Float[Tensor, "S *C"], graph: Graph, weights: Float[Tensor, "E"] | None = None
) -> Float[Tensor, "R *C"]:
    """out_i = Σ over the edges e into i of w_e x_sender(e): one sparse product, no E × C in memory.

    weights: of the edges in the graph's order, 1 each unless given. A node without edges gets 0; equal edges
    count each. bfloat16 is summed in float32. Differentiable in x and weights, also twice. Cost: 2 E C FLOPs.
    ValueError: another number of rows or weights; TypeError: integers.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point (integers would be rounded to float32), got {x.dtype}")
    if x.shape[0] != graph.senders:
        raise ValueError(f"x must have a row for each of {graph.senders} senders, got {tuple(x.shape)}")
    if weights is not None and weights.shape != (graph.edges,):
        raise ValueError(
            f"weights must be one number for each of {graph.edges} edges, got {tuple(weights.shape)}"
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:])).to(wide)
    given = None if weights is None else weights.to(wide)
    found: Tensor = _Sum.apply(flat, given, graph, True)
    return found.to(x.dtype).view(graph.receivers, *x.shape[1:])


def neighbour_mean(x: Float[Tensor, "S *C"], graph: Graph) -> Float[Tensor, "R *C"]:
    """out_i = mean over the edges into i of x_sender(e), 0 without edges; as `neighbour_sum`."""
    total = neighbour_sum(x, graph)
    share = graph.in_degree.clamp(min=1).to(x.dtype).reciprocal()
    return total * share.view(-1, *[1] * (x.dim() - 1))


def at_most(graph: Graph, most: int, generator: torch.Generator | None = None) -> Bool[Tensor, "E"]:
    """`most` edges into every node drawn without replacement, all where it has fewer: which are kept.

    Drawn on the CPU with the generator, or torch's own. Cost: O(E log E).
    """
    if most < 1:
        raise ValueError(f"most must be 1 or more edges into a node, got {most}")
    drawn = torch.randperm(graph.edges, generator=generator).to(graph.device)
    # Sorted by receiver, in a random order among the edges of one.
    order = drawn[torch.argsort(graph.receiver[drawn], stable=True)]
    first = graph.by_receiver.pointer[:-1].repeat_interleave(graph.in_degree, output_size=graph.edges)
    kept = torch.zeros(graph.edges, dtype=torch.bool, device=graph.device)
    kept[order[torch.arange(graph.edges, device=graph.device) - first < most]] = True
    return kept


def spoilt_graphs(x: Float[Tensor, "n C"], graph: Graph) -> Bool[Tensor, "n 1"]:
    """Nodes whose graph has a number in x that is none: 0 times it is none either, in a kernel that reads
    all graphs of a batch at once.
    """
    bad = (~x.isfinite()).any(1).to(torch.float32)
    return (bad.new_zeros(graph.graphs).index_add(0, graph.graph_of, bad) > 0)[graph.graph_of, None]


class _Sum(torch.autograd.Function):
    """The product with the adjacency, or (forwards=False) with its transpose, which is its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, graph: Graph, forwards: bool) -> Tensor:
        ctx.save_for_backward(None if weights is None else x, weights)
        ctx.graph, ctx.forwards = graph, forwards
        edges = graph.by_receiver if forwards else graph.by_sender
        return _product(edges, x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weights = ctx.saved_tensors
        to_x = to_weights = None
        if ctx.needs_input_grad[0]:
            to_x = _Sum.apply(grad.contiguous(), weights, ctx.graph, not ctx.forwards)
        if weights is not None and ctx.needs_input_grad[1]:
            ends = ctx.graph.receiver, ctx.graph.sender
            here, there = ends if ctx.forwards else ends[::-1]
            pieces = zip(here.split(CHUNK), there.split(CHUNK), strict=True)
            to_weights = torch.cat([(grad[one] * x[two]).sum(1) for one, two in pieces])
        return to_x, to_weights, None, None


def _product(edges: Sorted, x: Tensor, weights: Tensor | None) -> Tensor:
    nodes = edges.pointer.numel() - 1
    if not x.numel() or not edges.other.numel():
        return x.new_zeros(nodes, x.shape[1])
    values = x.new_ones(edges.other.numel()) if weights is None else weights[edges.order]
    if x.device.type == "cpu" and not torch.backends.mkl.is_available():
        rows = torch.repeat_interleave(torch.arange(nodes), edges.pointer.diff())
        return x.new_zeros(nodes, x.shape[1]).index_add_(0, rows, values[:, None] * x[edges.other])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            edges.pointer, edges.other, values, (nodes, x.shape[0]), check_invariants=False
        )
    with torch.autocast(x.device.type, enabled=False):  # half-precision products of sparse matrices: none
        return matrix @ x
