"""TANGNN: messages of the neighbours beside attention to the m best nodes of the graph.

Source: arXiv 2411.15458 (its intent; ejwww/TANGNN computes something else, see `TiledLayer`).
Legend: n nodes, m picked nodes of a graph, P of all graphs, C width.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.graph import Graph, neighbour_mean
from attlas.graph.neighbours import spoilt_graphs
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.sage import SAGE
from attlas.layers.virtual_node import star_of
from attlas.pattern import Segments
from attlas.score import Dot, EdgeBias

__all__ = ["PooledLayer", "TANGNNLayer", "TiledLayer", "TopAttention", "top_nodes"]


def top_nodes(
    score: Float[Tensor, "n"], x: Float[Tensor, "n C"], graph: Graph, most: int
) -> tuple[Int64[Tensor, "P"], Int64[Tensor, "G1"]]:
    """The `most` nodes of each graph with the largest score, all of a smaller one: (nodes, pointer (G + 1,)).

    Equal scores (rows without a positive feature all score 0) are told apart by the rows of x, column by
    column: by what a node is, not by its number. Cost: a sort of n scores, and C + 1 of those that tie.
    """
    score, x = score.detach(), x.detach()
    order = torch.argsort(score, descending=True, stable=True)
    equal = score[order[1:]] == score[order[:-1]]
    tied = (functional.pad(equal, (1, 0)) | functional.pad(equal, (0, 1))).nonzero()[:, 0]
    if len(tied):
        nodes = order[tied]
        for key in (*x.T.flip(0), -score):
            nodes = nodes[torch.argsort(key[nodes], stable=True)]
        order[tied] = nodes
    order = order[torch.argsort(graph.graph_of[order], stable=True)]
    sizes = star_of(graph).in_degree
    first = (sizes.cumsum(0) - sizes)[graph.graph_of[order]]
    kept = torch.arange(len(order), device=order.device) - first < most
    pointer = torch.cat([sizes.new_zeros(1), sizes.clamp(max=most).cumsum(0)])
    return order[kept], pointer


class TopAttention(nn.Module):
    """A transformer layer whose keys are the m nodes of each graph that are most like a learned vector.

        s_v = cos(ReLU(x_v), a),  S = the m largest of each graph,  the same for all of its nodes
        y = LN(x + softmax_{j in S}(q_i . k_j / sqrt(D) + s_j) V_S W_o),  out = LN(y + FFN(y)), FFN 4 C wide

    The s_j in the logits is our choice: without it a has no gradient (in the release it has none).

    Args: width: C; heads; picked: m. Shapes: x (n, C), graph -> (n, C). Cost: n scores sorted and n m pairs,
    never n × n. ValueError: picked below 1.
    """

    def __init__(self, width: int, *, heads: int = 1, picked: int = 20) -> None:
        super().__init__()
        if picked < 1:
            raise ValueError(f"TopAttention: picked must be 1 or more nodes, got {picked}")
        if width % heads:
            raise ValueError(f"TopAttention: width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.picked = heads, picked
        self.wanted = nn.Parameter(torch.randn(width))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.after_attention, self.after_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def scores(self, x: Tensor) -> Tensor:
        """cos(ReLU(x_v), a), 0 where a row has no positive feature."""
        return functional.normalize(x.relu(), dim=1) @ functional.normalize(self.wanted, dim=0)

    def pick(self, score: Tensor, x: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Which nodes are attended to, and where those of each graph begin."""
        return top_nodes(score, x, graph, self.picked)

    def forward(self, x: Float[Tensor, "n C"], graph: Graph) -> Float[Tensor, "n C"]:
        """Every node asks the picked ones of its graph."""
        spoilt = spoilt_graphs(x, graph)
        x = x.masked_fill(spoilt, 0.0)
        score = self.scores(x)
        nodes, pointer = self.pick(score, x, graph)
        own = None if graph.pointer is None else Segments(graph.pointer, pointer)
        return self._layer(x, x[nodes], score[nodes], own).masked_fill(spoilt, math.nan)

    def among(self, x: Float[Tensor, "n C"], graph: Graph) -> tuple[Tensor, Tensor]:
        """The picked nodes ask each other: (P, C), and (P,) the graph of each."""
        spoilt = spoilt_graphs(x, graph)
        x = x.masked_fill(spoilt, 0.0)
        score = self.scores(x)
        nodes, pointer = self.pick(score, x, graph)
        own = None if graph.pointer is None else Segments(pointer, pointer)
        found = self._layer(x[nodes], x[nodes], score[nodes], own).masked_fill(spoilt[nodes], math.nan)
        return found, graph.graph_of[nodes]

    def _layer(self, x: Tensor, picked: Tensor, score: Tensor, pattern: Segments | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
            for part in (self.query(x), self.key(picked), self.value(picked))
        )
        bias = Dot() + EdgeBias(score[None, None, None])
        found = attend(query, key, value, pattern=pattern, score=bias)[0].transpose(0, 1).flatten(1)
        y = self.after_attention(x + self.out(found))
        out: Tensor = self.after_mlp(y + self.mlp(y))
        return out


class TANGNNLayer(nn.Module):
    """x' = [ReLU(SAGE(x)) || TopAttention(W x)]: (n, features) -> (n, 2 · width).

    Args: features: of the input; width: of each half; heads, picked: of the attention; sampled: neighbours
    of a node in training, all in evaluation. attention: another `TopAttention`. Takes PyG's convention; edge
    features are not read.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        heads: int = 1,
        picked: int = 20,
        sampled: int | None = 5,
        attention: TopAttention | None = None,
    ) -> None:
        super().__init__()
        self.near = SAGE(features, width, sampled=sampled)
        self.into = nn.Linear(features, width)
        if attention is None:
            attention = TopAttention(width, heads=heads, picked=picked)
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Both halves side by side."""
        graph, _ = graph_of(
            "TANGNNLayer", x, edge_index, edge_attr, batch, width=self.into.in_features, layer=self
        )
        return torch.cat([self.near(x, graph).relu(), self.attention(self.into(x), graph)], 1)


class PooledLayer(nn.Module):
    """x' = [z || mean over S of TopAttention among S], z = ReLU(SAGE(x)), S picked from z: -NAI and -TAI.

    Arguments and shapes as `TANGNNLayer`.
    """

    def __init__(
        self, features: int, width: int, *, heads: int = 1, picked: int = 20, sampled: int | None = 5
    ) -> None:
        super().__init__()
        self.near = SAGE(features, width, sampled=sampled)
        self.attention = TopAttention(width, heads=heads, picked=picked)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Both halves side by side."""
        graph, _ = graph_of(
            "PooledLayer", x, edge_index, edge_attr, batch, width=self.near.own.in_features, layer=self
        )
        z = self.near(x, graph).relu()
        return torch.cat([z, told_all(*self.attention.among(z, graph), graph)], 1)


def told_all(picked: Tensor, of: Tensor, graph: Graph) -> Tensor:
    """The mean of each graph's picked rows, at all of its nodes."""
    rows = torch.arange(len(of), device=of.device)
    edges = Graph(rows, of, len(of), graph.graphs, bipartite=True)
    return neighbour_mean(picked, edges)[graph.graph_of]


class TiledLayer(nn.Module):
    """What the main released file computes: [SAGE twice || row v mod m of the picked features at node v].

    Picked are the m largest cos(ReLU(x_v), 1): its vector a has the width of the layers' halves, never that
    of x, and is replaced by ones then. Predictions depend on the numbers of the nodes, attention plays no
    part. In a batch every graph is taken alone. Kept to compare with; edges and dropout as `TANGNNLayer`
    (the release also drops 0.3 between its two convolutions). Shapes: (n, features) -> (n, 2 · width).
    """

    def __init__(
        self, features: int, width: int, *, picked: int = 20, sampled: int | None = 5, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.near = nn.ModuleList(
            [SAGE(features, width, sampled=sampled), SAGE(width, width, sampled=sampled)]
        )
        self.dropout, self.picked, self.width = nn.Dropout(dropout), picked, features
        self.adjust = nn.Sequential(
            nn.Linear(features, 2 * features), nn.ReLU(), nn.Linear(2 * features, width), nn.ReLU()
        )

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Both halves side by side."""
        graph, _ = graph_of("TiledLayer", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        z = x
        for number, layer in enumerate(self.near):
            z = layer(z if number == 0 else self.dropout(z), graph).relu()
        score = functional.normalize(x.relu(), dim=1) @ x.new_full((x.shape[1],), x.shape[1] ** -0.5)
        nodes, pointer = top_nodes(score, x, graph, self.picked)
        starts = torch.zeros(1, dtype=torch.int64) if graph.pointer is None else graph.pointer[:-1]
        place = torch.arange(graph.nodes, device=x.device) - starts.to(x.device)[graph.graph_of]
        row = pointer[:-1][graph.graph_of] + place % pointer.diff()[graph.graph_of]
        return torch.cat([z, self.adjust(x[nodes])[row]], 1)


def _make(setting: GraphSetting) -> nn.Module:
    if setting.width % 2:
        raise ValueError(f"tangnn: width must be even, half of it are messages, got {setting.width}")
    return TANGNNLayer(setting.width, setting.width // 2, picked=4)


register_graph_layer(GraphEntry("tangnn", _make))
