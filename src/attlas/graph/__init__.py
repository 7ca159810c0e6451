"""Graphs: edges from senders to receivers, where they come from, and how they change."""

from attlas.graph.batches import batch, ragged, to_padded, unbatch
from attlas.graph.change import (
    coalesce,
    keep_edges,
    reverse,
    subgraph,
    undirected,
    with_self_loops,
    without_self_loops,
)
from attlas.graph.files import load_graph, save_graph
from attlas.graph.graph import Graph, Sorted
from attlas.graph.make import (
    from_networkx,
    from_pyg,
    from_scipy,
    to_networkx,
    to_pyg,
    to_scipy,
)
from attlas.graph.segment import segment_reduce, segment_softmax
from attlas.graph.tables import NamedGraph, read_edges

__all__ = [
    "Graph",
    "NamedGraph",
    "Sorted",
    "batch",
    "coalesce",
    "from_networkx",
    "from_pyg",
    "from_scipy",
    "keep_edges",
    "load_graph",
    "ragged",
    "read_edges",
    "reverse",
    "save_graph",
    "segment_reduce",
    "segment_softmax",
    "subgraph",
    "to_networkx",
    "to_padded",
    "to_pyg",
    "to_scipy",
    "unbatch",
    "undirected",
    "with_self_loops",
    "without_self_loops",
]
