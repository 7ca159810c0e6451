"""Who is joined with whom, in either direction, and averages over it (features of hops)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas._common.loops import equal_ranges, over_ranges
from attlas.graph.graph import Graph

__all__ = ["Neighbours", "average", "hop_features", "neighbours"]


class Neighbours(NamedTuple):
    """Rows of neighbours: those of node i are other[pointer[i] : pointer[i + 1]], rising, each once.

    pointer (n + 1,) int64, other int32.
    """

    pointer: Tensor
    other: Tensor


def neighbours(graph: Graph) -> Neighbours:
    """The nodes that an edge of either direction joins with each node, without itself; found once per graph.

    Two counting sorts and one pass that joins equal ones: O(n + E), memory 16 bytes per edge while it runs,
    8 bytes per edge at most afterwards. ValueError: 2^31 nodes or more, a bipartite graph.
    """
    found = graph.__dict__.get("_neighbours")
    if found is None:
        found = _neighbours(graph)
        graph.__dict__["_neighbours"] = found  # as cached_property keeps it
    return found


def _neighbours(graph: Graph) -> Neighbours:
    from attlas.graph import hop_loops as loops

    nodes = graph.nodes
    if nodes >= 2**31:
        raise ValueError(f"neighbours: at most {2**31 - 1} nodes, got {nodes}")
    sender, receiver = (part.cpu().numpy() for part in (graph.sender, graph.receiver))
    between = graph.sender != graph.receiver
    counts = sum(torch.bincount(part[between], minlength=nodes) for part in (graph.sender, graph.receiver))
    pointer = np.zeros(nodes + 1, dtype=np.int64)
    np.cumsum(torch.as_tensor(counts).cpu().numpy(), out=pointer[1:])
    rows, other = (np.empty(pointer[-1], dtype=np.int32) for _ in range(2))
    loops.place(sender, receiver, pointer[:-1].copy(), rows)
    loops.transpose(pointer, rows, pointer[:-1].copy(), other)
    del rows
    kept = loops.join(pointer, other)
    if kept < 0.9 * len(other):
        other = other[:kept].copy()
    return Neighbours(torch.from_numpy(pointer), torch.from_numpy(other[:kept]))


class _Average(torch.autograd.Function):
    """The product with a symmetric matrix: its backward is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pointer: Tensor, other: Tensor, root: Tensor) -> Tensor:
        ctx.matrix = (pointer, other, root)
        return _product(x, pointer, other, root)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Average.apply(grads[0], *ctx.matrix), None, None, None


def _product(x: Tensor, pointer: Tensor, other: Tensor, root: Tensor) -> Tensor:
    from attlas.graph import hop_loops as loops

    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = x.detach().to("cpu", wide).contiguous()
    out = torch.empty_like(given)
    parts = [part.numpy() for part in (pointer, other, root.to(wide), given, out)]
    over_ranges(lambda first, last: loops.average(*parts, first, last), equal_ranges(len(given)))
    return out.to(x)


def average(graph: Graph, x: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
    """A X with A = D^-1/2 (adjacency + I) D^-1/2: edges in both directions, equal ones joined.

    Differentiable any number of times. Computed on CPU in float32 (float64 if x is). Cost: E C, parallel
    over nodes; the same for any number of threads.
    """
    if x.dim() != 2 or x.shape[0] != graph.nodes:
        raise ValueError(f"x must be ({graph.nodes}, channels), one row per node, got {tuple(x.shape)}")
    pointer, other = neighbours(graph)
    root = (pointer.diff() + 1).double().rsqrt()
    found = _Average.apply(x, pointer, other, root)
    return torch.as_tensor(found)


def hop_features(graph: Graph, x: Float[Tensor, "n C"], hops: int) -> list[Float[Tensor, "n C"]]:
    """[X, A X, A^2 X, ...] up to A^hops X, A = D^-1/2 (adjacency + I) D^-1/2: averages over so many hops.

    Edges are taken in both directions, equal ones joined (`average`); nothing of n x n. Source: Dwivedi et
    al. 2023 (LargeGT), arXiv 2312.11109. Cost: hops E C. ValueError: hops below 0.
    """
    if hops < 0:
        raise ValueError(f"hops must be 0 or more, got {hops}")
    found = [x]
    for _ in range(hops):
        found.append(average(graph, found[-1]))
    return found
