"""GT: attention along the edges of a graph, whose edge features multiply the logits and are updated.

Source: Dwivedi and Bresson 2020, arXiv 2012.09699. Legend: n nodes, E edges, H heads, C width, D = C / H,
F edge width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from attlas.attend import attend
from attlas.graph import Graph
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.ragged_norm import RaggedBatchNorm
from attlas.score import Dot, EdgeProduct

__all__ = ["GT", "ResidualSteps"]


class ResidualSteps(nn.Module):
    """x' = norm(x + W_o dropout(o)), then norm(x' + W_2 dropout(relu(W_1 x'))): post-norm, W_1 to 2 C.

    Shapes: x (rows, C), o (rows, inner) -> (rows, C).
    """

    def __init__(
        self, width: int, inner: int, norm: Callable[[int], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.out = nn.Linear(inner, width)
        self.first, self.second = norm(width), norm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, found: Tensor) -> Tensor:
        """Both steps; `found` is what attention says to x."""
        x = self.first(x + self.out(self.dropout(found)))
        return self.second(x + self.feed(x))


class GT(nn.Module):
    """Graph transformer layer: softmax over the senders of each node, then two residual steps.

        l_ij = (Q h_i) * (K h_j) / sqrt(D) * (E e_ij)                of D channels a head
        w_ij = softmax_j clamp(sum_c l_ij[c], -limit, limit)
        h_i <- steps(h_i, sum_j w_ij V h_j),   e_ij <- steps(e_ij, l_ij of all heads)

    Without edge features l_ij is the scaled dot product alone. A node that nobody sends to gets 0.

    Args:
        width, heads; edge_width: F of the edge features, None for none. dropout: of the outputs of attention
            and inside both feed-forward steps.
        norm: makes a norm of the width: batch norm over all rows, or nn.LayerNorm.
        bias: of Q, K, V and E. limit: of the logits; the edge state is not limited.

    Shapes: x (n, C), edge_index (2, E) or a Graph, edge_attr (E, F) -> (n, C), or (n, C), (E, F).
    The full graph is `attlas.graph.complete(graph)`. Cost: O(E C + n C^2); an edge state of E C numbers.
    Departs from the released code, which adds 1e-6 to the denominator of the layer with edges and gives NaN
    to isolated nodes in the layer without. ValueError: width that heads do not divide, features that are
    missing (see also `graph_of`).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        edge_width: int | None = None,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = RaggedBatchNorm,
        bias: bool = False,
        limit: float = 5.0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"GT: width must be a multiple of heads, got {width} and {heads}")
        if not limit > 0:
            raise ValueError(f"GT: limit must be above 0, got {limit}")
        self.heads, self.limit, self.edge_width = heads, limit, edge_width
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.nodes = ResidualSteps(width, width, norm, dropout)
        self.edge = None if edge_width is None else nn.Linear(edge_width, width, bias=bias)
        self.edges = None if edge_width is None else ResidualSteps(edge_width, width, norm, dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """New nodes, and new edges where there is an edge width."""
        graph, features = graph_of(
            "GT", x, edge_index, edge_attr, batch,
            width=self.query.in_features, edge_width=self.edge_width, layer=self,
        )  # fmt: skip
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
            for part in (self.query, self.key, self.value)
        )
        if self.edge is None or self.edges is None or features is None:
            score = Dot().clamp(-self.limit, self.limit)
            found = attend(query, key, value, pattern=graph, score=score)
            return self.nodes(x, self._side_by_side(found))
        product = EdgeProduct(self.edge(features).unflatten(-1, (self.heads, -1)))
        score = product.clamp(-self.limit, self.limit)
        found, state = attend(query, key, value, pattern=graph, score=score, return_edge=True)
        nodes = self.nodes(x, self._side_by_side(found))
        return nodes, self.edges(features, self._side_by_side(state))

    @staticmethod
    def _side_by_side(heads: Tensor) -> Tensor:
        """(1, H, rows, D) -> (rows, H D)."""
        return heads[0].transpose(0, 1).flatten(1)


def _with_edges(setting: GraphSetting) -> nn.Module:
    return GT(setting.width, setting.heads, edge_width=setting.edge_width or setting.width)


def _without_edges(setting: GraphSetting) -> nn.Module:
    return GT(setting.width, setting.heads)


register_graph_layer(GraphEntry("gt", _with_edges, edges="state", reach=1))
register_graph_layer(GraphEntry("gt-without-edges", _without_edges, reach=1))
