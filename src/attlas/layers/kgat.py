"""KGAT's propagation: attention by a translation score on typed edges, and the aggregators behind it.

Source: Wang et al. 2019, arXiv 1905.07854; xiangwang1223/knowledge_graph_attention_network.
Legend: n nodes, E edges, R relations, d width of nodes, k width of relations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import sum_over_edges
from attlas.graph import Graph, Sorted, segment_softmax
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer

__all__ = [
    "BiInteraction", "GraphConvolution", "GraphSage", "KGATLayer", "RelationAttention", "RelationGroup",
    "gather_neighbours", "initial_weights", "relation_groups", "typed_edges",
]  # fmt: skip

SLOPE = 0.2
"""Of LeakyReLU, as in the official code; recbole has 0.01."""
CHUNK = 65536
"""Edges whose projected ends are gathered at a time."""


class RelationGroup(NamedTuple):
    """The edges of one relation: their numbers, the nodes at their ends (each once), both ends in these."""

    relation: int
    edges: Tensor
    nodes: Tensor
    head: Tensor
    tail: Tensor


def relation_groups(graph: Graph, kinds: Int[Tensor, "E"], relations: int) -> list[RelationGroup]:
    """The edges by relation, those without edges left out; heads receive, tails send. O(E log E)."""
    order = torch.argsort(kinds, stable=True)
    counts = torch.bincount(kinds, minlength=relations).tolist()
    groups = []
    for relation, edges in enumerate(order.split(counts)):
        if edges.numel():
            ends = torch.stack([graph.receiver[edges], graph.sender[edges]])
            nodes, local = torch.unique(ends, return_inverse=True)
            groups.append(RelationGroup(relation, edges, nodes, local[0], local[1]))
    return groups


def typed_edges(name: str, graph: Graph, kinds: Tensor | None, relations: int) -> Tensor:
    """The type of every edge, from the call or from the graph; ValueError, TypeError if they are no types."""
    kinds = graph.edge_type if kinds is None else kinds
    if kinds is None:
        raise ValueError(
            f"{name}: edges need types: give edge_attr (edges,) int64, or a graph with edge_type"
        )
    if kinds.dtype != torch.int64 or kinds.dim() != 1:
        raise TypeError(
            f"{name}: edge_attr must be int64 types of shape ({graph.edges},), got {kinds.dtype} "
            f"{tuple(kinds.shape)}"
        )
    if kinds.numel() and not (int(kinds.min()) >= 0 and int(kinds.max()) < relations):
        raise ValueError(
            f"{name}: edge types must be in 0 .. {relations - 1}, got {int(kinds.min())} .. "
            f"{int(kinds.max())}"
        )
    return kinds


def initial_weights(
    graph: Graph, kinds: Int[Tensor, "E"], *, dtype: torch.dtype | None = None
) -> Float[Tensor, "E"]:
    """The weights before the first refresh ("si"): every relation's adjacency with rows that sum to 1, added.

    alpha = 1 / (edges of this relation at this head): a node with c relations has weights that sum to c.
    """
    codes = graph.receiver * (int(kinds.max()) + 1 if kinds.numel() else 1) + kinds
    _, which, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    return counts[which].to(dtype or torch.get_default_dtype()).reciprocal()


def gather_neighbours(
    x: Float[Tensor, "n d"], graph: Graph, weights: Float[Tensor, "E"]
) -> Float[Tensor, "n d"]:
    """Σ over the edges of each head of weight times tail; the weights are constants, without gradient.

    One product with a sparse matrix, and one with its transpose backward: O(E d) time, O(E) memory, 15 times
    as fast as messages that are gathered (198k edges, d = 32, one thread).
    """
    return _Gather.apply(x, weights.detach().to(x.dtype), graph)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.graph = graph
        return _product(graph.by_receiver, weights, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _product(ctx.graph.by_sender, ctx.saved_tensors[0], grad), None, None


def _product(edges: Sorted, weights: Tensor, x: Tensor) -> Tensor:
    from scipy.sparse import csr_array

    weights = weights[edges.order]
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return sum_over_edges(weights, x, edges.pointer, edges.other)
    parts = (part.detach().numpy() for part in (weights, edges.other, edges.pointer))
    matrix = csr_array(tuple(parts), (edges.pointer.numel() - 1, x.shape[0]))
    return torch.from_numpy(matrix @ x.detach().numpy())


class RelationAttention(nn.Module):
    """Weights of edges by TransR: softmax of (W_r e_t) . tanh(W_r e_h + e_r) over all triples of a head.

    Edges of all relations share one softmax, and equal edges are terms of their own. Weights have no
    gradient: the parameters learn from `energy`. Shapes: x (n, d) -> (E,) in the graph's order. Cost: one
    product (nodes, d) (d, k) for each relation, then O(E k); never E d k.
    """

    def __init__(self, width: int, relation_width: int, relations: int) -> None:
        super().__init__()
        self.relation = nn.Parameter(torch.empty(relations, relation_width))
        self.transform = nn.Parameter(torch.empty(relations, relation_width, width))
        nn.init.xavier_normal_(self.relation)
        for one in self.transform:
            nn.init.xavier_normal_(one)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        graph: Graph,
        kinds: Int[Tensor, "E"],
        groups: list[RelationGroup] | None = None,
    ) -> Float[Tensor, "E"]:
        """groups: `relation_groups(graph, kinds, R)`, where they are wanted more than once."""
        with torch.no_grad():
            groups = relation_groups(graph, kinds, len(self.relation)) if groups is None else groups
            logits = x.new_empty(graph.edges)
            for group in groups:
                logits[group.edges] = self._logits(x, group)
            return segment_softmax(logits, graph.by_receiver)

    def _logits(self, x: Tensor, group: RelationGroup) -> Tensor:
        tail = x[group.nodes] @ self.transform[group.relation].T
        head = (tail + self.relation[group.relation]).tanh()
        starts = range(0, len(group.edges), CHUNK)
        parts = [slice(start, start + CHUNK) for start in starts]
        return torch.cat([(tail[group.tail[part]] * head[group.head[part]]).sum(-1) for part in parts])

    def energy(
        self, x: Float[Tensor, "n d"], triples: Int[Tensor, "m 3"], others: Int[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"], Float[Tensor, ""]]:
        """(g of each triple, g with the tail in `others`, sum of squares of all projected vectors).

        triples are (head, relation, tail); g = |W_r e_h + e_r - W_r e_t|^2, small where the triple is true.
        """
        if not len(triples):
            return x.new_zeros(0), x.new_zeros(0), x.new_zeros(())
        order = torch.argsort(triples[:, 1], stable=True)
        counts = torch.bincount(triples[:, 1], minlength=len(self.relation)).tolist()
        # All ends are gathered at once: a gather per relation would write a gradient of all nodes for each.
        ends = x[torch.stack([triples[:, 0], triples[:, 2], others])[:, order]]
        parts, squares = [], x.new_zeros(())
        for relation, mine in enumerate(ends.split(counts, 1)):
            if mine.shape[1]:
                head, tail, other = projected = mine @ self.transform[relation].T
                moved = head + self.relation[relation]
                parts.append(torch.stack([(moved - end).square().sum(-1) for end in (tail, other)]))
                own = mine.shape[1] * self.relation[relation].square().sum()
                squares = squares + projected.square().sum() + own
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        right, wrong = torch.cat(parts, 1)[:, back]
        return right, wrong, squares


class BiInteraction(nn.Module):
    """LeakyReLU((e + e_N) W1 + b1) + LeakyReLU((e * e_N) W2 + b2)."""

    def __init__(self, width: int, out: int, slope: float = SLOPE) -> None:
        super().__init__()
        self.sum, self.product, self.slope = nn.Linear(width, out), nn.Linear(width, out), slope
        _xavier(self)

    def forward(self, x: Float[Tensor, "n d"], near: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """x and what its neighbours gave."""
        added = functional.leaky_relu(self.sum(x + near), self.slope)
        return added + functional.leaky_relu(self.product(x * near), self.slope)


class GraphConvolution(nn.Module):
    """LeakyReLU((e + e_N) W + b), KGAT's variant "gcn"."""

    def __init__(self, width: int, out: int, slope: float = SLOPE) -> None:
        super().__init__()
        self.sum, self.slope = nn.Linear(width, out), slope
        _xavier(self)

    def forward(self, x: Float[Tensor, "n d"], near: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """x and what its neighbours gave."""
        return functional.leaky_relu(self.sum(x + near), self.slope)


class GraphSage(nn.Module):
    """LeakyReLU([e, e_N] W + b), KGAT's variant "graphsage"."""

    def __init__(self, width: int, out: int, slope: float = SLOPE) -> None:
        super().__init__()
        self.both, self.slope = nn.Linear(2 * width, out), slope
        _xavier(self)

    def forward(self, x: Float[Tensor, "n d"], near: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """x and what its neighbours gave."""
        return functional.leaky_relu(self.both(torch.cat([x, near], 1)), self.slope)


def _xavier(module: nn.Module) -> None:
    for part in module.children():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)


class KGATLayer(nn.Module):
    """e' = dropout(aggregator(e, Σ_t alpha_t e_t)), alpha from `RelationAttention` of this layer's own.

    Args:
        width, out: of nodes before and after. relations: types of edges, inverses included, all below it.
        relation_width: k, `width` unless given. aggregator: makes one of two widths, such as
            `BiInteraction`, `GraphConvolution` or `GraphSage`. dropout: of the result.

    Called as layer(x, edge_index, edge_attr=types (E,) int64, batch=None): (n, width) -> (n, out). Senders
    are tails, receivers heads. A node without edges gathers 0. In `KGAT` all layers share one alpha.
    """

    def __init__(
        self,
        width: int,
        out: int,
        relations: int,
        *,
        relation_width: int | None = None,
        aggregator: Callable[[int, int], nn.Module] = BiInteraction,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width, self.relations = width, relations
        self.attention = RelationAttention(width, relation_width or width, relations)
        self.aggregator, self.dropout = aggregator(width, out), nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Float[Tensor, "n o"]:
        """PyG's call; edge_attr holds the types of the edges."""
        graph, given = graph_of("KGATLayer", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        kinds = typed_edges("KGATLayer", graph, given, self.relations)
        near = gather_neighbours(x, graph, self.attention(x, graph, kinds))
        out: Tensor = self.dropout(self.aggregator(x, near))
        return out


def _make(setting: GraphSetting) -> nn.Module:
    return KGATLayer(setting.width, setting.width, setting.edge_types or 1)


ALONE = "its attention is trained by the objective of relations, and constant in that of the messages"
register_graph_layer(GraphEntry("kgat", _make, edges="types", reach=1, excused={"gradient": ALONE}))
