"""Small subgraphs around a node: the edges that a reader gets to see for a question about it.

Source: KG-R3, arXiv 2212.09724. Its best retriever, paths of a trained MINERVA agent, is not here: these are
its two that need no training. Legend: E edges.
"""

from collections import deque
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from attlas.graph.graph import Graph

__all__ = ["Incidence"]


class Incidence:
    """The edges at every node, whichever end it is; made once per graph in O(E log E).

    Samplers return edge numbers, (edges,) int64, in the order in which they were found. `without` names edges
    that must not be seen, such as the one that is asked for: without it the answer would be read off.
    """

    def __init__(self, graph: Graph) -> None:
        count = graph.nodes
        loops = graph.sender == graph.receiver
        node = torch.cat([graph.sender, graph.receiver[~loops]])
        edge = torch.arange(graph.edges)
        edge = torch.cat([edge, edge[~loops]])
        order = torch.argsort(node, stable=True)
        starts = torch.bincount(node, minlength=count).cumsum(0)
        self._edges = np.split(edge[order].numpy(), starts[:-1].numpy()) if count else []
        self._sum = (graph.sender + graph.receiver).tolist()

    def at(self, node: int) -> np.ndarray:
        """Edge numbers at a node, loops once."""
        if not 0 <= node < len(self._edges):
            raise ValueError(f"node must be in 0 .. {len(self._edges) - 1}, got {node}")
        return self._edges[node]

    def one_hop(
        self, source: int, most: int, *, generator: np.random.Generator, without: Collection[int] = ()
    ) -> Tensor:
        """At most `most` of the edges at the source, drawn without replacement."""
        _check(most=most)
        return torch.from_numpy(_some(self.at(source), most, generator, frozenset(without)).copy())

    def breadth_first(
        self,
        source: int,
        most: int,
        *,
        generator: np.random.Generator,
        fanout: int = 10,
        without: Collection[int] = (),
    ) -> Tensor:
        """Edges that reach a new node each, in breadth-first order from the source, at most `most`.

        Of every node at most `fanout` of its edges are drawn, without replacement (the released code draws
        with replacement, so that some count twice).
        """
        _check(most=most, fanout=fanout)
        hidden, visited = frozenset(without), {source}
        queue, found = deque([source]), list[int]()
        while queue and len(found) < most:
            node = queue.popleft()
            for edge in _some(self.at(node), fanout, generator, hidden).tolist():
                other = self._sum[edge] - node
                if other not in visited:
                    visited.add(other)
                    queue.append(other)
                    found.append(edge)
                    if len(found) == most:
                        break
        return torch.tensor(found, dtype=torch.int64)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be 0 edges or more, got {count}")


def _some(edges: np.ndarray, most: int, generator: np.random.Generator, hidden: frozenset[int]) -> np.ndarray:
    if hidden:
        edges = edges[[edge not in hidden for edge in edges.tolist()]]
    if len(edges) <= most:
        return generator.permutation(edges)
    return generator.choice(edges, most, replace=False)
