"""Several graphs as one block-diagonal graph, and node tensors ragged or padded.

Legend: G graphs, n nodes of all, m nodes of the largest, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from attlas.graph.change import keep_edges
from attlas.graph.graph import Graph
from attlas.graph.kept import kept

__all__ = ["SizeBucket", "batch", "ragged", "size_buckets", "to_padded", "unbatch"]


def batch(graphs: Sequence[Graph]) -> Graph:
    """One graph of all: nodes and edges one graph after the other, no edges between.

    ValueError: nothing to batch, a bipartite graph, features or types in some only or of other shapes.
    """
    if not graphs:
        raise ValueError("batch needs at least one graph, got none")
    sizes = [0]
    for graph in graphs:
        own = (graph.pointer if graph.pointer is not None else torch.tensor([0, graph.nodes])).diff().tolist()
        sizes += own
    pointer = torch.tensor(sizes, dtype=torch.int64, device=graphs[0].device).cumsum(0)
    starts = torch.tensor([0, *(graph.nodes for graph in graphs)]).cumsum(0).tolist()
    nodes = starts.pop()
    return Graph(
        torch.cat([graph.sender + start for graph, start in zip(graphs, starts, strict=True)]),
        torch.cat([graph.receiver + start for graph, start in zip(graphs, starts, strict=True)]),
        nodes,
        nodes,
        _together(graphs, "edge_attr"),
        _together(graphs, "edge_type"),
        pointer,
    )


def _together(graphs: Sequence[Graph], name: str) -> Tensor | None:
    parts = [getattr(graph, name) for graph in graphs]
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if len(there) < len(parts):
        index = next(index for index, part in enumerate(parts) if part is None)
        raise ValueError(f"batch: graph {index} has no {name}, others have: give it to all graphs or to none")
    if len({(part.dtype, part.shape[1:]) for part in there}) > 1:
        raise ValueError(
            f"batch: {name} must have one dtype and one shape per edge in all graphs, got "
            f"{sorted({f'{part.dtype} {tuple(part.shape[1:])}' for part in there})}"
        )
    return torch.cat(there)


def unbatch(graph: Graph) -> list[Graph]:
    """The graphs of a batch, each with its own numbers; edges keep their order."""
    if graph.pointer is None:
        _ = graph.nodes
        return [graph]
    of_edge = graph.graph_of[graph.receiver]
    order = torch.argsort(of_edge, stable=True)
    counts = torch.bincount(of_edge, minlength=graph.graphs).tolist()
    found = []
    starts, sizes = graph.pointer.tolist(), graph.pointer.diff().tolist()
    whole = graph.replace(pointer=None)
    for start, size, mine in zip(starts, sizes, order.split(counts), strict=False):
        own = keep_edges(whole, mine)
        found.append(
            own.replace(
                sender=own.sender - start, receiver=own.receiver - start, senders=size, receivers=size
            )
        )
    return found


def to_padded(
    graph: Graph, x: Shaped[Tensor, "n *C"]
) -> tuple[Shaped[Tensor, "G m *C"], Bool[Tensor, "G m"]]:
    """Node tensors (n, ...) as (G, m, ...) with zeros behind each graph, and where nodes are.

    It pads to the largest graph: attention over ragged rows (`Segments(graph.pointer)`) does not.
    """
    if x.shape[0] != graph.nodes:
        raise ValueError(f"x must have one row for each of {graph.nodes} nodes, got {tuple(x.shape)}")
    pointer = graph.pointer if graph.pointer is not None else torch.tensor([0, graph.nodes], device=x.device)
    sizes = pointer.diff()
    most = int(sizes.max()) if sizes.numel() else 0
    place = torch.arange(most, device=x.device)
    there = place < sizes[:, None]
    index = (pointer[:-1, None] + place).where(there, graph.nodes)
    padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])[index]
    return padded, there


def ragged(padded: Shaped[Tensor, "G m *C"], there: Bool[Tensor, "G m"]) -> Shaped[Tensor, "n *C"]:
    """Back from `to_padded`: the rows that are nodes, graph after graph."""
    return padded[there]


class SizeBucket(NamedTuple):
    """Graphs of similar size side by side: graphs (g,) which they are; nodes (g, m) int64 and there (g, m).

    Behind its own nodes a row repeats its graph's first one, where `there` is False.
    """

    graphs: Tensor
    nodes: Tensor
    there: Tensor


@kept
def size_buckets(graph: Graph, equal: bool = False) -> tuple[tuple[SizeBucket, ...], Tensor]:
    """(the graphs in buckets by size, the place (n,) of each node among all `nodes[there]` of the buckets).

    The largest of a bucket has less than twice the nodes of its smallest, so that less than half of a bucket
    is padding; equal=True: the same number, and no padding. `x[bucket.nodes]` pads; `torch.cat([y[there]
    for ...])[place]` is the way back. Graphs without nodes are in no bucket. Made once for a graph.
    """
    pointer = graph.pointer if graph.pointer is not None else torch.tensor([0, graph.nodes])
    sizes = pointer.diff()
    # frexp is exact, log2 of a power of two need not be.
    kind = sizes if equal else torch.frexp(sizes.to(torch.float64)).exponent
    found = []
    for value in torch.unique(kind[sizes > 0]).tolist():
        graphs = ((kind == value) & (sizes > 0)).nonzero()[:, 0]
        inside = torch.arange(int(sizes[graphs].max()), device=graph.device)
        there = inside < sizes[graphs, None]
        first = pointer[graphs, None]
        found.append(SizeBucket(graphs, torch.where(there, first + inside, first), there))
    order = torch.cat([bucket.nodes[bucket.there] for bucket in found]) if found else pointer[:0]
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=graph.device)
    return tuple(found), place
