"""Where to draw the nodes of a graph: all of a small one, a piece of a large one."""

from collections import deque
from typing import Any

import networkx
import numpy as np
import torch

from attlas.graph.graph import Graph

__all__ = ["layout"]

MOST, BRANCHES = 150, 6


def layout(
    graph: Graph, *, around: torch.Tensor | None = None, most: int = MOST, seed: int = 0
) -> dict[str, Any]:
    """A drawing as JSON: nodes [{node, x, y}], edges [[place, place]] undirected, `whole`: whether of all.

    Above `most` nodes the piece that grows from one node along edges of either direction, at most six new
    nodes each, which the seed draws. around: nodes of which the one of the median degree is where it grows
    from. Positions: NetworkX's springs (Fruchterman and Reingold 1991), each component on its own terms.
    ValueError: no nodes.
    """
    if not graph.nodes:
        raise ValueError("layout: a graph without nodes cannot be drawn")
    whole = graph.nodes <= most
    kept = list(range(graph.nodes)) if whole else _piece(graph, around, most, np.random.default_rng(seed))
    place = {node: index for index, node in enumerate(kept)}
    inside = torch.zeros(graph.nodes, dtype=torch.bool)
    inside[kept] = True
    mine = (inside[graph.sender] & inside[graph.receiver] & (graph.sender != graph.receiver)).nonzero()[:, 0]
    ends = zip(graph.sender[mine].tolist(), graph.receiver[mine].tolist(), strict=True)
    edges = sorted({(min(place[a], place[b]), max(place[a], place[b])) for a, b in ends})
    drawn = networkx.Graph()
    drawn.add_nodes_from(range(len(kept)))
    drawn.add_edges_from(edges)
    at = networkx.spring_layout(drawn, seed=seed, iterations=80, method="force")
    return {
        "whole": whole,
        "nodes": [
            {"node": node, "x": round(float(at[index][0]), 4), "y": round(float(at[index][1]), 4)}
            for index, node in enumerate(kept)
        ],
        "edges": [list(pair) for pair in edges],
    }


def _piece(graph: Graph, around: torch.Tensor | None, most: int, random: np.random.Generator) -> list[int]:
    degree = graph.in_degree + graph.out_degree
    asked = torch.arange(graph.nodes) if around is None else around
    joined = asked[degree[asked] > 0]
    joined = joined if len(joined) else asked
    first = int(joined[degree[joined].argsort(stable=True)[len(joined) // 2]])
    kept, queue = {first: None}, deque([first])
    while queue and len(kept) < most:
        node = queue.popleft()
        near = np.concatenate([_others(part, node) for part in (graph.by_receiver, graph.by_sender)])
        new = [other for other in random.permutation(np.unique(near)).tolist() if other not in kept]
        for other in new[: min(BRANCHES, most - len(kept))]:
            kept[other] = None
            queue.append(other)
    return list(kept)


def _others(edges: Any, node: int) -> np.ndarray:
    found: np.ndarray = edges.other[edges.pointer[node] : edges.pointer[node + 1]].numpy()
    return found
