"""Other graphs out of a graph: reversed, undirected, with or without loops, subgraphs, equal edges joined.

Every function returns the new graph; those that drop or move edges also say which old edge each new one was.
"""

import torch
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.kept import kept
from attlas.graph.pairs import pairs_of

__all__ = [
    "coalesce",
    "complete",
    "keep_edges",
    "reverse",
    "subgraph",
    "undirected",
    "with_self_loops",
    "with_virtual_nodes",
    "without_self_loops",
]


def reverse(graph: Graph) -> Graph:
    """Every edge the other way; edges keep their order and features."""
    return graph.replace(
        sender=graph.receiver, receiver=graph.sender, senders=graph.receivers, receivers=graph.senders
    )


def keep_edges(graph: Graph, keep: Tensor) -> Graph:
    """The edges that `keep` (bool (E,), or int64 places in the new order) names, with all nodes."""
    if keep.dtype == torch.bool and keep.shape != graph.sender.shape:
        raise ValueError(f"keep must be one bool for each of {graph.edges} edges, got {tuple(keep.shape)}")
    parts = {name: getattr(graph, name) for name in ("sender", "receiver", "edge_attr", "edge_type")}
    return graph.replace(**{name: None if part is None else part[keep] for name, part in parts.items()})


def undirected(graph: Graph) -> tuple[Graph, Tensor]:
    """Every edge in both directions: (graph, the old edge of each new one).

    The backward edges stand behind all others, with the features of their forward edge; loops are not
    doubled. An edge that has its backward edge already gets another one: `coalesce` joins equal edges.
    """
    _ = graph.nodes  # two kinds of nodes have no way back
    back = (graph.sender != graph.receiver).nonzero()[:, 0]
    old = torch.cat([torch.arange(graph.edges, device=graph.device), back])
    both = keep_edges(graph, old)
    swapped = torch.arange(both.edges, device=graph.device) >= graph.edges
    sender = torch.where(swapped, both.receiver, both.sender)
    return both.replace(sender=sender, receiver=torch.where(swapped, both.sender, both.receiver)), old


def with_self_loops(graph: Graph, *, fill: float = 0.0, kind: int | None = None) -> Graph:
    """A loop at every node that has none, behind all other edges; its features are `fill`, its type `kind`.

    ValueError: a typed graph without `kind`.
    """
    if graph.edge_type is not None and kind is None:
        raise ValueError("with_self_loops needs kind=, the type of the new loops, for a graph of typed edges")
    attr = graph.edge_attr
    if attr is not None and not attr.is_floating_point() and fill != int(fill):
        raise ValueError(f"with_self_loops: edge_attr is {attr.dtype}, which cannot hold fill={fill}")
    has = torch.zeros(graph.nodes, dtype=torch.bool, device=graph.device)
    has[graph.sender[graph.sender == graph.receiver]] = True
    new = (~has).nonzero()[:, 0]
    kinds = graph.edge_type
    return graph.replace(
        sender=torch.cat([graph.sender, new]),
        receiver=torch.cat([graph.receiver, new]),
        edge_attr=_longer(attr, len(new), fill),
        edge_type=_longer(kinds, len(new), kind),
    )


def _longer(rows: Tensor | None, count: int, fill: float | None) -> Tensor | None:
    """The rows and `count` more, full of `fill`."""
    if rows is None or fill is None:
        return rows
    return torch.cat([rows, rows.new_full((count, *rows.shape[1:]), fill)])


def with_virtual_nodes(
    graph: Graph, *, fill: float = 0.0, kinds: tuple[int, int] | None = None
) -> tuple[Graph, Tensor, Tensor]:
    """A node more for each graph, joined to all of its nodes both ways: (graph, old nodes, new nodes).

    Old node i is number old[i] of the new graph, the new node of graph g is number new[g]: the last of its
    graph. Behind all other edges stand n edges into the new nodes and n out of them; their features are
    `fill`, their types `kinds` (into, out of). ValueError: a typed graph without `kinds`.
    """
    if (graph.edge_type is not None) != (kinds is not None):
        has = "untyped" if graph.edge_type is None else "typed"
        raise ValueError(
            f"with_virtual_nodes: kinds=(type of edges into, type of those out of the new nodes) must be "
            f"given for a graph of typed edges and for no other; this one is {has}"
        )
    pointer = graph.pointer
    if pointer is None:
        pointer = torch.tensor([0, graph.nodes], device=graph.device)
    old = torch.arange(graph.nodes, device=graph.device) + graph.graph_of
    new = pointer[1:] + torch.arange(graph.graphs, device=graph.device)
    own = new[graph.graph_of]
    kind = _longer(graph.edge_type, graph.nodes, None if kinds is None else kinds[0])
    made = graph.replace(
        sender=torch.cat([old[graph.sender], old, own]),
        receiver=torch.cat([old[graph.receiver], own, old]),
        senders=graph.nodes + graph.graphs,
        receivers=graph.nodes + graph.graphs,
        edge_attr=_longer(graph.edge_attr, 2 * graph.nodes, fill),
        edge_type=_longer(kind, graph.nodes, None if kinds is None else kinds[1]),
        pointer=None if graph.pointer is None else pointer + torch.arange(graph.graphs + 1),
    )
    return made, old, new


def without_self_loops(graph: Graph) -> tuple[Graph, Tensor]:
    """(graph without its loops, the old edge of each that is left)."""
    _ = graph.nodes  # between two kinds of nodes there are no loops
    left = (graph.sender != graph.receiver).nonzero()[:, 0]
    return keep_edges(graph, left), left


def subgraph(graph: Graph, nodes: Tensor) -> tuple[Graph, Tensor]:
    """(the given nodes, numbered in their order, with all edges between them; the old edge of each).

    nodes: int64, each once, or bool (n,). Edges keep their order. A subgraph of a batch is one graph.
    ValueError: a node that is not there or stands twice.
    """
    if nodes.dtype == torch.bool:
        if nodes.shape != (graph.nodes,):
            raise ValueError(
                f"nodes must be one bool for each of {graph.nodes} nodes, got {tuple(nodes.shape)}"
            )
        nodes = nodes.nonzero()[:, 0]
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= graph.nodes):
        raise ValueError(
            f"nodes must be in 0 .. {graph.nodes - 1}, got {int(nodes.min())} .. {int(nodes.max())}"
        )
    number = torch.full((graph.nodes,), -1, dtype=torch.int64, device=graph.device)
    number[nodes] = torch.arange(len(nodes), device=graph.device)
    if int((number >= 0).sum()) != len(nodes):
        raise ValueError("nodes must name each node once; a node twice would need its edges twice")
    sender, receiver = number[graph.sender], number[graph.receiver]
    left = ((sender >= 0) & (receiver >= 0)).nonzero()[:, 0]
    kept = keep_edges(graph.replace(pointer=None), left)
    return (
        kept.replace(sender=sender[left], receiver=receiver[left], senders=len(nodes), receivers=len(nodes)),
        left,
    )


def coalesce(graph: Graph, reduce: str = "first") -> tuple[Graph, Tensor]:
    """Equal edges (same ends, and same type if typed) joined: (graph, the new edge of each old one).

    Edges come sorted by receiver, then sender, then type. reduce: what becomes of their edge_attr, "first",
    "sum" or "mean".
    """
    if reduce not in ("first", "sum", "mean"):
        raise ValueError(f"reduce must be 'first', 'sum' or 'mean', got {reduce!r}")
    kinds = graph.edge_type if graph.edge_type is not None else torch.zeros_like(graph.sender)
    ends = torch.stack([graph.receiver, graph.sender, kinds])
    joined, new, counts = torch.unique(ends, dim=1, return_inverse=True, return_counts=True)
    attr = graph.edge_attr
    if attr is not None and reduce == "first":
        places = torch.arange(graph.edges, device=graph.device)
        first = torch.full_like(joined[0], graph.edges).scatter_reduce_(0, new, places, "amin")
        attr = attr[first]
    elif attr is not None:
        attr = attr.new_zeros(joined.shape[1], *attr.shape[1:]).index_add(0, new, attr)
        if reduce == "mean":
            attr = attr / counts.view(-1, *[1] * (attr.dim() - 1)).to(attr.dtype)
    kind = None if graph.edge_type is None else joined[2]
    return graph.replace(sender=joined[1], receiver=joined[0], edge_attr=attr, edge_type=kind), new


@kept
def complete(graph: Graph) -> tuple[Graph, Tensor]:
    """(an edge between any two nodes of each graph, without loops and features; bool (P,): it was there).

    Edges come receiver by receiver, then by sender. Made once as long as the graph lives. Cost: 17 bytes a
    pair.
    """
    pairs = pairs_of(graph)
    there = torch.zeros(pairs.pairs, dtype=torch.bool, device=graph.device)
    there[pairs.place] = True
    loopless, old = without_self_loops(pairs.graph)
    return loopless, there[old]
