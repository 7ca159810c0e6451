"""Graphs out of scipy, NetworkX and PyG, and back."""

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attlas.graph.graph import Graph

if TYPE_CHECKING:
    import networkx
    import scipy.sparse

__all__ = ["from_networkx", "from_pyg", "from_scipy", "to_networkx", "to_pyg", "to_scipy"]


def from_scipy(matrix: "scipy.sparse.sparray | scipy.sparse.spmatrix", *, weights: bool = False) -> Graph:
    """A graph with an edge j -> i for every stored entry (i, j): rows receive, as in matrix @ x.

    weights: the entries become edge_attr (E, 1). A stored 0 is an edge. A matrix that is not square makes a
    bipartite graph. Duplicates of a COO matrix are equal edges.
    """
    coo = matrix.tocoo()
    receivers, senders = coo.shape
    row, column = (torch.from_numpy(part.astype(np.int64)) for part in (coo.row, coo.col))
    values = torch.from_numpy(np.ascontiguousarray(coo.data)).reshape(-1, 1) if weights else None
    return Graph(column, row, senders, receivers, values, bipartite=senders != receivers)


def to_scipy(graph: Graph, values: Tensor | None = None) -> "scipy.sparse.csr_array":
    """The CSR matrix (receivers, senders) of the edges, 1 or `values` (E,) each; equal edges are summed."""
    import scipy.sparse

    data = np.ones(graph.edges) if values is None else values.detach().cpu().numpy()
    ends = graph.receiver.cpu().numpy(), graph.sender.cpu().numpy()
    return scipy.sparse.coo_array((data, ends), (graph.receivers, graph.senders)).tocsr()


def from_networkx(graph: "networkx.Graph", *, edge_attr: Sequence[str] = ()) -> tuple[Graph, list[Any]]:
    """(graph, the node that stands at each number) of a NetworkX graph, directed or not, with equal edges.

    edge_attr: names of numbers on the edges, which become (E, names) float64. An undirected edge becomes two,
    the backward ones behind all others; an undirected loop becomes one. ValueError names an edge that lacks
    an attribute.
    """
    names = list(graph.nodes)
    number = {name: index for index, name in enumerate(names)}
    listed = list(graph.edges(data=True))
    ends = [(number[a], number[b]) for a, b, _ in listed]
    rows = [[_number(edge, name) for name in edge_attr] for edge in listed]
    if not graph.is_directed():
        back = [index for index, (a, b) in enumerate(ends) if a != b]
        ends += [(ends[index][1], ends[index][0]) for index in back]
        rows += [rows[index] for index in back]
    values = torch.tensor(rows, dtype=torch.float64).reshape(len(ends), -1) if edge_attr else None
    index = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
    return Graph.from_edge_index(index, num_nodes=len(names), edge_attr=values), names


def _number(edge: tuple[Any, Any, dict[str, Any]], name: str) -> float:
    a, b, data = edge
    if not isinstance(data.get(name), Real):
        raise ValueError(
            f"edge_attr {name!r} of the edge {a!r} - {b!r} must be a number, got {data.get(name)!r}"
        )
    return float(data[name])


def to_networkx(graph: Graph) -> "networkx.MultiDiGraph":
    """A MultiDiGraph of nodes 0 .. n - 1 whose edges carry "edge", their place, and "type" if typed."""
    import networkx

    found = networkx.MultiDiGraph()
    found.add_nodes_from(range(graph.nodes))
    types = [None] * graph.edges if graph.edge_type is None else graph.edge_type.tolist()
    for edge, (a, b, kind) in enumerate(
        zip(graph.sender.tolist(), graph.receiver.tolist(), types, strict=True)
    ):
        found.add_edge(a, b, edge=edge, **({} if kind is None else {"type": kind}))
    return found


def from_pyg(data: Any) -> Graph:
    """The graph of a PyG `Data` or `Batch`: edge_index, edge_attr, edge_type, batch.

    Features of nodes stay there. TypeError: no edge_index.
    """
    if getattr(data, "edge_index", None) is None:
        raise TypeError(f"data must be a PyG Data or Batch with an edge_index, got {type(data).__name__}")
    named = {name: getattr(data, name, None) for name in ("edge_attr", "edge_type", "batch")}
    return Graph.from_edge_index(data.edge_index, num_nodes=data.num_nodes, **named)


def to_pyg(graph: Graph, **node: Tensor) -> Any:
    """A PyG `Data` with the graph's edges and the given tensors of nodes (x=..., y=...).

    ImportError says how to install PyG where it is missing.
    """
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise ImportError("to_pyg needs PyG: pip install 'attlas[pyg]'") from error
    parts = {"edge_attr": graph.edge_attr, "edge_type": graph.edge_type}
    parts |= {"batch": None if graph.pointer is None else graph.graph_of}
    given = {name: part for name, part in parts.items() if part is not None}
    return Data(edge_index=graph.edge_index, num_nodes=graph.nodes, **given, **node)
