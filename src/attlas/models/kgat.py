"""KGAT: recommendation on a graph of users, items and entities, and its baseline BPR-MF.

Source: Wang et al. 2019, arXiv 1905.07854; xiangwang1223/knowledge_graph_attention_network.
Legend: U users, I items, n nodes, E edges, C width of the final embeddings.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.graph import Graph
from attlas.layers.kgat import (
    BiInteraction,
    RelationAttention,
    RelationGroup,
    gather_neighbours,
    initial_weights,
    typed_edges,
)

__all__ = ["KGAT", "MatrixFactorisation"]


class MatrixFactorisation(nn.Module):
    """One vector per user and item; their scalar product is the score (BPR-MF, arXiv 1205.2618)."""

    def __init__(self, users: int, items: int, *, width: int = 64) -> None:
        super().__init__()
        self.users, self.items = users, items
        self.embedding = nn.Parameter(torch.empty(users + items, width))
        nn.init.xavier_normal_(self.embedding)

    def forward(self) -> Float[Tensor, "n C"]:
        """Vectors of the users, then of the items."""
        return self.embedding


class KGAT(nn.Module):
    """Embeddings propagated along the edges of the collaborative knowledge graph, layer after layer.

    e* = [e ; l2norm(e^1) ; ... ; l2norm(e^L)], e^(l+1) = dropout(aggregator(e^l, Σ alpha e_t^l)); the copies
    in e* alone are normalised. A user's score of an item is the product of their e*.

    Args:
        users, entities: nodes; the items are the first entities. relations: types of edges with inverses.
        width, relation_width: d and k. layers: widths of e^1 .. e^L. aggregator: `BiInteraction`,
            `GraphConvolution`, `GraphSage` or a maker (width, out) of your own. dropout: of every e^l.

    alpha is computed by `weights(graph)` outside of the gradient, once per epoch, and handed to the call.
    Cost of a call: O(E d L) over the whole graph, for every batch of training.
    """

    def __init__(
        self,
        users: int,
        entities: int,
        relations: int,
        *,
        width: int = 64,
        relation_width: int = 64,
        layers: Sequence[int] = (64, 32, 16),
        aggregator: Callable[[int, int], nn.Module] = BiInteraction,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("KGAT: layers must hold at least one width, got none")
        self.users, self.relations = users, relations
        self.embedding = nn.Parameter(torch.empty(users + entities, width))
        nn.init.xavier_normal_(self.embedding)
        self.attention = RelationAttention(width, relation_width, relations)
        widths = [width, *layers]
        self.steps = nn.ModuleList(aggregator(*pair) for pair in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def start_from(self, other: MatrixFactorisation) -> None:
        """Take over the users' and items' vectors of a trained BPR-MF; ValueError if sizes differ."""
        if other.users != self.users or other.embedding.shape[1] != self.embedding.shape[1]:
            raise ValueError(
                f"KGAT.start_from: other must have {self.users} users and width {self.embedding.shape[1]}, "
                f"got {other.users} and {other.embedding.shape[1]}"
            )
        with torch.no_grad():
            self.embedding[: other.users + other.items] = other.embedding

    def initial_weights(self, graph: Graph) -> Float[Tensor, "E"]:
        """alpha before the first refresh."""
        kinds = typed_edges("KGAT", graph, None, self.relations)
        return initial_weights(graph, kinds, dtype=self.embedding.dtype)

    def weights(self, graph: Graph, groups: list[RelationGroup] | None = None) -> Float[Tensor, "E"]:
        """alpha of every edge now, without gradient; groups: of `relation_groups`, if kept."""
        kinds = typed_edges("KGAT", graph, None, self.relations)
        found: Tensor = self.attention(self.embedding, graph, kinds, groups)
        return found

    def forward(self, graph: Graph, weights: Float[Tensor, "E"]) -> Float[Tensor, "n C"]:
        """e* of all nodes: users, items, other entities."""
        x: Tensor = self.embedding
        found = [x]
        for step in self.steps:
            x = self.dropout(step(x, gather_neighbours(x, graph, weights.detach())))
            found.append(functional.normalize(x, dim=1))
        return torch.cat(found, 1)
