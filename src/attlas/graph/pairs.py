"""All ordered pairs of nodes of each graph of a batch, as a ragged list: n_g^2 rows a graph, no padding.

Legend: E edges, n nodes, G graphs, P pairs (the sum of squares of the graphs' sizes), C channels.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Shaped
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.kept import kept

__all__ = ["PairGraph", "pairs_of"]


@dataclass(frozen=True, eq=False)
class PairGraph:
    """The complete graph with loops on the nodes of each graph, and where the given edges stand in it.

    Pairs lie graph by graph, in each receiver by receiver: tensors of pairs (P, ...) are the row-major n_g x
    n_g matrices of the graphs, one behind the other; row i, column j is the message from j to i.

    Args:
        graph: those pairs as edges, without features.
        place: (E,) the pair of each given edge; equal edges have the same one.
        degree: (n,) given edges that end at each node, loops and equal edges counted.
        sizes: nodes of each graph.
    """

    graph: Graph
    place: Tensor
    degree: Tensor
    sizes: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """P."""
        return self.graph.edges

    @cached_property
    def diagonal(self) -> Tensor:
        """(n,) the pair of each node with itself."""
        return (self.graph.sender == self.graph.receiver).nonzero()[:, 0]

    @cached_property
    def blocks(self) -> tuple[Tensor, ...]:
        """The pairs as square matrices, (graphs of one size, size, size) for every size that there is."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        starts = (sizes * sizes).cumsum(0) - sizes * sizes
        found = []
        for size in sorted(set(self.sizes) - {0}):
            inner = torch.arange(size * size).view(1, size, size)
            found.append((starts[sizes == size].view(-1, 1, 1) + inner).to(self.graph.device))
        return tuple(found)

    @cached_property
    def opposite(self) -> Tensor:
        """(P,) where pair (j, i) of each pair (i, j) stands: x[opposite] is every matrix transposed."""
        found = torch.empty_like(self.graph.sender)
        for block in self.blocks:
            found[block.flatten()] = block.transpose(1, 2).flatten()
        return found

    def at_pairs(self, x: Shaped[Tensor, "E *C"]) -> Shaped[Tensor, "P *C"]:
        """Edge tensors at their pairs: 0 where there is no edge, the sum where there are several."""
        if x.shape[0] != self.place.numel():
            raise ValueError(
                f"x must have one row for each of {self.place.numel()} edges, got {tuple(x.shape)}"
            )
        return x.new_zeros(self.pairs, *x.shape[1:]).index_add(0, self.place, x)


@kept
def pairs_of(graph: Graph) -> PairGraph:
    """The pairs of a graph or a batch, made once as long as the graph lives.

    Cost: O(P) time, 16 bytes a pair. ValueError: a bipartite graph, whose nodes are of two kinds.
    """
    pointer = graph.pointer
    if pointer is None:
        pointer = torch.tensor([0, graph.nodes], device=graph.device)
    sizes = pointer.diff()
    own = sizes[graph.graph_of]  # of each node: the size of its graph
    start = pointer[:-1][graph.graph_of]
    receiver = torch.arange(graph.nodes, device=graph.device).repeat_interleave(own)
    first = own.cumsum(0) - own  # of each receiver: its first pair
    sender = torch.arange(receiver.numel(), device=graph.device) - (first - start)[receiver]
    place = first[graph.receiver] + graph.sender - start[graph.receiver]
    complete = Graph(sender, receiver, graph.nodes, graph.nodes, pointer=graph.pointer)
    return PairGraph(complete, place, graph.in_degree, tuple(sizes.tolist()))
