"""Who is joined with whom, in either direction, and averages over it (features of hops)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas._common.loops import equal_ranges, over_ranges
from attlas.graph.graph import Graph
from attlas.graph.kept import kept

__all__ = ["Adjacency", "adjacency", "average", "hop_features"]

ROWS = 1 << 12
"""Rows that are sorted together: their neighbours fit in a core's cache."""


class Adjacency(NamedTuple):
    """Rows of neighbours: those of node i are other[pointer[i] : pointer[i + 1]], rising, each once.

    pointer (n + 1,) int64, other int32.
    """

    pointer: Tensor
    other: Tensor


@kept
def adjacency(graph: Graph) -> Adjacency:
    """The nodes that an edge of either direction joins with each node, without itself; found once per graph.

    Cost: O(n + E) and the sorting of each row; memory 24 bytes per edge while it runs, 8 afterwards.
    ValueError: 2^31 nodes or more, a bipartite graph.
    """
    from attlas.graph import hop_loops as loops

    nodes = graph.nodes
    if nodes >= 2**31:
        raise ValueError(f"adjacency: at most {2**31 - 1} nodes, got {nodes}")
    ends = [part.cpu() for part in (graph.sender, graph.receiver)]
    between = ends[0] != ends[1]
    ranges = -(-nodes // ROWS)
    counts = np.zeros(ranges + 1, dtype=np.int64)
    for end in ends:
        counts[1:] += torch.bincount(end[between] // ROWS, minlength=ranges).numpy()
    starts = counts.cumsum()
    row, other = (np.empty(starts[-1], dtype=np.int32) for _ in range(2))
    shift = ROWS.bit_length() - 1
    loops.partition(*(end.numpy() for end in ends), shift, starts[:-1].copy(), row, other)
    degree = np.empty(nodes, dtype=np.int64)
    parts = (starts, shift, row, other, degree)
    over_ranges(lambda first, last: loops.join(*parts, first, last), equal_ranges(ranges, least=16))
    pointer = np.concatenate([np.zeros(1, dtype=np.int64), degree.cumsum()])
    del row
    kept = np.empty(pointer[-1], dtype=np.int32)
    for part in range(ranges):
        own = slice(pointer[part * ROWS], pointer[min(nodes, (part + 1) * ROWS)])
        kept[own] = other[starts[part] : starts[part] + own.stop - own.start]
    return Adjacency(torch.from_numpy(pointer), torch.from_numpy(kept))


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
    pointer, other = adjacency(graph)
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
