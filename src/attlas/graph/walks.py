"""Neighbourhoods that random walks visit: every node as a sequence of small subgraphs around it.

Legend: n nodes, G graphs, K tokens of a node, T appearances of nodes in all tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.graph.graph import Graph

__all__ = ["WalkTokens", "walk_tokens"]


@dataclass(frozen=True, eq=False)
class WalkTokens:
    """K tokens of each node, the longest walks first and the node alone last.

    graph: all tokens side by side, a batch of n K graphs: token k of node v is graph v K + k, the subgraph
    that its set of nodes induces. node (T,) int64: which node each node of it is, rising within a token;
    edge: which edge of the original each of its edges is. count: K = repeats · length + 1. ends: (sender,
    receiver) of the original.
    """

    graph: Graph
    node: Tensor
    edge: Tensor
    count: int
    length: int
    repeats: int
    ends: tuple[Tensor, Tensor]

    def belong_to(self, graph: Graph) -> bool:
        """Whether these are tokens of a graph with the same nodes and the same edges in the same order."""
        if self.graph.graphs != graph.nodes * self.count:
            return False
        return all(
            mine is theirs or torch.equal(mine, theirs)
            for mine, theirs in zip(self.ends, (graph.sender, graph.receiver), strict=True)
        )


def walk_tokens(
    graph: Graph, *, walks: int, length: int, repeats: int, seed: int = 0, streams: Tensor | None = None
) -> WalkTokens:
    """Tokens of every node v: for L = length .. 1, `repeats` times, the union of what `walks` walks of L
    steps from v visit, v included; and last {v}, once. length 0: that one alone.

    A step goes from a receiver to one of its senders, evenly (equal edges count each); a walk ends at a node
    without any. Draws are hashes of (seed, stream of the graph, number of v in its graph, step): neither the
    other graphs of a batch nor the order of the edges change them. streams (G,) int64: 0 unless given; equal
    graphs of a data set need different ones to be walked differently. M, m, s of the source are walks,
    length, repeats. Source: GMN, Behrouz and Hashemi 2024, arXiv 2402.08678.
    Cost: O(n walks length² repeats) steps, and up to s² / 2 moves to keep each set of s <= walks length + 1
    nodes sorted, once. ValueError: a number out of range.
    """
    least = {"walks": 1, "length": 0, "repeats": 1}
    for name, number in (("walks", walks), ("length", length), ("repeats", repeats)):
        if number < least[name]:
            raise ValueError(f"walk_tokens: {name} must be {least[name]} or more, got {number}")
    if streams is not None and streams.shape != (graph.graphs,):
        raise ValueError(
            f"walk_tokens: streams must be one number for each of {graph.graphs} graphs, got "
            f"{tuple(streams.shape)}"
        )
    # Rising senders, so that draws do not depend on the order of the edges.
    order = np.lexsort((graph.sender.cpu().numpy(), graph.receiver.cpu().numpy()))
    pointer, other = graph.by_receiver.pointer.cpu().numpy(), graph.sender.cpu().numpy()[order]
    of_node = graph.graph_of.cpu()
    first = torch.zeros(1, dtype=torch.int64) if graph.pointer is None else graph.pointer[:-1].cpu()
    own = (torch.arange(graph.nodes) - first[of_node]).numpy()
    stream = np.zeros(graph.nodes, np.int64) if streams is None else streams.cpu()[of_node].numpy()
    drawn = (pointer, other, own, stream, np.uint64(seed % 2**64), walks, length, repeats)
    return _collected(graph, drawn, order, length, repeats)


def _collected(graph: Graph, drawn: tuple, order: np.ndarray, length: int, repeats: int) -> WalkTokens:
    from attlas.graph import walk_loops as loops  # numba takes half a second to import

    pointer, other = drawn[:2]
    count = repeats * length + 1
    sizes = np.empty((graph.nodes, count), np.int64)
    loops.size_sets(*drawn, sizes)
    starts = np.concatenate([[0], sizes.reshape(-1).cumsum()])
    nodes = np.empty(starts[-1], np.int64)
    loops.fill_sets(*drawn, starts, nodes)
    edges = int(loops.size_edges(pointer, other, graph.nodes, starts, nodes))
    sender, receiver, edge = (np.empty(edges, np.int64) for _ in range(3))
    loops.fill_edges(pointer, other, order, graph.nodes, starts, nodes, sender, receiver, edge)
    ends = torch.from_numpy(sender), torch.from_numpy(receiver)
    tokens = Graph(*ends, len(nodes), len(nodes), pointer=torch.from_numpy(starts)).to(graph.device)
    which, of = (torch.from_numpy(part).to(graph.device) for part in (nodes, edge))
    return WalkTokens(tokens, which, of, count, length, repeats, (graph.sender, graph.receiver))
