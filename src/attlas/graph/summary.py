"""What a graph is like, in figures: size, direction, components, and the tail of its degrees."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.make import to_scipy

__all__ = ["summary"]


def summary(graph: Graph) -> dict[str, Any]:
    """Figures of a graph as a JSON object.

    nodes (or senders and receivers), edges, graphs; density: different edges over n^2 possible ones, loops
    included; loops; equal_edges: edges beyond the first between the same ends; reciprocal: share of the
    different edges (loops left out) whose way back is there, None without any; directed: reciprocal < 1;
    types: edges per type; features: shape and dtype of one edge's features; isolated: nodes without edges
    other than loops; components: weakly connected, how many and the largest; in_degree, out_degree: mean,
    quantiles, max, top: the share of all edges at the 1 % of nodes that have most, and histogram: nodes with
    0, 1, 2-3, 4-7, ... edges.

    Cost: O(E log E) once, no pairs of nodes.
    """
    ends = graph.receiver * max(1, graph.senders) + graph.sender
    different = torch.unique(ends)
    possible = graph.senders * graph.receivers
    found: dict[str, Any] = {
        "edges": graph.edges,
        "graphs": graph.graphs,
        "bipartite": graph.bipartite,
        "density": different.numel() / possible if possible else 0.0,
        "equal_edges": graph.edges - different.numel(),
        "types": None if graph.edge_type is None else torch.bincount(graph.edge_type).tolist(),
        "features": None if graph.edge_attr is None else _features(graph.edge_attr),
        "in_degree": _degrees(graph.in_degree),
        "out_degree": _degrees(graph.out_degree),
    }
    if graph.bipartite:
        return found | {"senders": graph.senders, "receivers": graph.receivers}
    return found | {"nodes": graph.nodes} | _one_kind(graph, different)


def _one_kind(graph: Graph, different: Tensor) -> dict[str, Any]:
    """What is told of graphs whose senders and receivers are the same nodes."""
    from scipy.sparse import csgraph

    loops = graph.sender == graph.receiver
    across = different[different // max(1, graph.nodes) != different % max(1, graph.nodes)]
    back = across % max(1, graph.nodes) * graph.nodes + across // max(1, graph.nodes)
    reciprocal = float(torch.isin(back, across).double().mean()) if across.numel() else None
    degree = (
        graph.in_degree + graph.out_degree - 2 * torch.bincount(graph.sender[loops], minlength=graph.nodes)
    )
    count, labels = csgraph.connected_components(to_scipy(graph), directed=False) if graph.nodes else (0, [])
    return {
        "directed": reciprocal is not None and reciprocal < 1,
        "reciprocal": reciprocal,
        "loops": int(loops.sum()),
        "isolated": int((degree == 0).sum()),
        "components": {
            "count": int(count),
            "largest": int(np.bincount(labels).max()) if graph.nodes else 0,
        },
    }


def _features(edge_attr: Tensor) -> dict[str, Any]:
    return {"shape": list(edge_attr.shape[1:]), "dtype": str(edge_attr.dtype).removeprefix("torch.")}


def _degrees(degree: Tensor) -> dict[str, Any] | None:
    """Mean, quantiles and tail of the degrees; None without nodes."""
    values = degree.numpy()
    if not len(values):
        return None
    ordered = np.sort(values)[::-1]
    most = max(1, len(values) // 100)
    total = int(values.sum())
    bins = np.ceil(np.log2(values + 1)).astype(np.int64)
    return {
        "mean": float(values.mean()),
        **{f"p{part}": int(np.quantile(values, part / 100, method="higher")) for part in (50, 90, 99)},
        "max": int(ordered[0]),
        "top": float(ordered[:most].sum() / total) if total else 0.0,
        "histogram": np.bincount(bins).tolist(),
    }
