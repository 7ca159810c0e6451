"""Attention along the edges of a graph as layers: of dot products, and of additive scores (GAT).

Legend: n nodes, E edges, H heads, C channels of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attlas.attend import attend
from attlas.graph import Graph, kept, segment_reduce, with_self_loops, without_self_loops
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.score import Additive, Dot, GraphBias, Score

__all__ = ["AdditiveGraphAttention", "DotGraphAttention"]


class DotGraphAttention(nn.Module):
    """x_i' = W_s x_i + sum_j w_ij W_v x_j along the edges j -> i, w_i. = softmax(q_i . k_j / sqrt(C) + b_ij).

    q, k, v and the skip term are one product; b_ij = W_b e_ij with edge_width, one per head.
    Args: width: of the input; heads; head_width: C (width / heads); concat: heads side by side, else
    their mean; edge_width: of the edge features; skip: the term W_s x_i; bias: of the maps; dropout: of
    the weights. Shapes: (n, width), edge_index (2, E) or a Graph, edge_attr (E, edge_width) -> (n, H C), or
    (n, C) of the mean. A node without edges keeps its skip term. Cost: 4 E H C FLOPs and the product.
    Source: UniMP's layer, Shi et al. 2021, arXiv 2009.03509 (PyG's TransformerConv), whose edge features
    enter keys and values. ValueError: sizes, features that are missing.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        head_width: int | None = None,
        concat: bool = True,
        edge_width: int | None = None,
        skip: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.concat, self.dropout = heads, concat, dropout
        self.head_width = _head_width("DotGraphAttention", width, heads, head_width)
        inner = heads * self.head_width
        out = (inner if concat else self.head_width) if skip else 0
        self.sizes = (inner, inner, inner, out)
        self.project = nn.Linear(width, sum(self.sizes), bias=bias)
        self.edge_width = edge_width
        self.edge = None if edge_width is None else nn.Linear(edge_width, heads, bias=False)

    @classmethod
    def from_pyg(cls, conv: Any) -> "DotGraphAttention":
        """A layer with a copy of the weights of PyG's TransformerConv; ValueError for what it cannot be."""
        refused = (
            (not isinstance(conv.in_channels, int), "two kinds of nodes"),
            (conv.edge_dim is not None, "edge features in keys and values (edge_dim)"),
            (bool(conv.beta), "a gated skip connection (beta)"),
        )
        _refuse("DotGraphAttention", conv, refused)
        parts = [conv.lin_query, conv.lin_key, conv.lin_value, *([conv.lin_skip] if conv.root_weight else [])]
        made = cls(
            conv.in_channels, conv.heads, head_width=conv.out_channels, concat=conv.concat,
            skip=conv.root_weight, bias=conv.lin_query.bias is not None, dropout=conv.dropout,
        ).to(conv.lin_query.weight)  # fmt: skip
        with torch.no_grad():
            made.project.weight.copy_(torch.cat([part.weight for part in parts]))
            if made.project.bias is not None:
                made.project.bias.copy_(torch.cat([part.bias for part in parts]))
        return made

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, features = graph_of(
            "DotGraphAttention", x, edge_index, edge_attr, batch,
            width=self.project.in_features, edge_width=self.edge_width, layer=self,
        )  # fmt: skip
        *parts, skip = self.project(x).split(self.sizes, 1)
        query, key, value = (_by_head(part, self.heads) for part in parts)
        score: Score = Dot()
        if self.edge is not None and features is not None:
            score = score + GraphBias(self.edge(features))
        out = _joined(attend(
            query, key, value, pattern=graph, score=score, dropout=self.dropout if self.training else 0.0
        ), self.concat)  # fmt: skip
        return out + skip if self.sizes[3] else out


class AdditiveGraphAttention(nn.Module):
    """x_i' = sum_j w_ij W x_j + b, w_i. = softmax of leaky_relu(a_1 . W x_i + a_2 . W x_j + a_3 . W_e e_ij).

    Args: as for DotGraphAttention; slope: of the leaky ReLU; self_loops: loops are taken away and one is put
    at every node, its features the mean of those of the edges into it, as PyG does; else loops are as given.
    Shapes: as for DotGraphAttention. Cost: 2 E H C FLOPs; only values are gathered; the scores are node
    scores, products of x with W a (n, H). Source: GAT, Veličković et al. 2018, arXiv 1710.10903.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        head_width: int | None = None,
        concat: bool = True,
        edge_width: int | None = None,
        slope: float = 0.2,
        self_loops: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = "AdditiveGraphAttention"
        self.heads, self.concat, self.dropout, self.slope = heads, concat, dropout, slope
        self.self_loops, self.head_width = self_loops, _head_width(name, width, heads, head_width)
        inner = heads * self.head_width
        self.value = nn.Linear(width, inner, bias=False)
        self.to_receiver, self.to_sender = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, self.head_width))) for _ in range(2)
        )
        self.edge_width = edge_width
        self.edge = None if edge_width is None else nn.Linear(edge_width, heads, bias=False)
        self.bias = nn.Parameter(torch.zeros(inner if concat else self.head_width)) if bias else None

    @classmethod
    def from_pyg(cls, conv: Any) -> "AdditiveGraphAttention":
        """A layer with a copy of the weights of PyG's GATConv; ValueError for what it cannot be."""
        refused = (
            (not isinstance(conv.in_channels, int), "two kinds of nodes"),
            (conv.residual, "a residual connection"),
            (
                conv.edge_dim is not None and conv.fill_value != "mean",
                "loops with features other than the mean",
            ),
        )
        _refuse("AdditiveGraphAttention", conv, refused)
        made = cls(
            conv.in_channels, conv.heads, head_width=conv.out_channels, concat=conv.concat,
            edge_width=conv.edge_dim, slope=conv.negative_slope, self_loops=conv.add_self_loops,
            bias=conv.bias is not None, dropout=conv.dropout,
        ).to(conv.lin.weight)  # fmt: skip
        with torch.no_grad():
            made.value.weight.copy_(conv.lin.weight)
            made.to_receiver.copy_(conv.att_dst[0])
            made.to_sender.copy_(conv.att_src[0])
            if made.bias is not None:
                made.bias.copy_(conv.bias)
            if made.edge is not None:
                made.edge.weight.copy_(_folded(conv.lin_edge.weight, conv.att_edge[0]))
        return made

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, features = graph_of(
            "AdditiveGraphAttention", x, edge_index, edge_attr, batch,
            width=self.value.in_features, edge_width=self.edge_width, layer=self,
        )  # fmt: skip
        along = None
        if self.edge is not None and features is not None:
            along = self.edge(features)
        if self.self_loops:
            bare, graph, left = _with_loops(graph)
            if along is not None:
                means = segment_reduce(along[left], bare.by_receiver, "mean")
                along = torch.cat([along[left], means])
        weight = self.value.weight
        scores = (_folded(weight, part) for part in (self.to_receiver, self.to_sender))
        # One product: its columns are read where they lie.
        inner, heads = weight.shape[0], self.heads
        value, query, key = F.linear(x, torch.cat([weight, *scores])).split([inner, heads, heads], 1)
        out = _joined(attend(
            _by_head(query, heads), _by_head(key, heads), _by_head(value, heads), pattern=graph,
            score=Additive(self.slope, along), dropout=self.dropout if self.training else 0.0,
        ), self.concat)  # fmt: skip
        return out if self.bias is None else out + self.bias


def _head_width(name: str, width: int, heads: int, head_width: int | None) -> int:
    if heads < 1 or (head_width is None and width % heads):
        raise ValueError(
            f"{name}: width must be a multiple of heads unless head_width is given, got width {width} and "
            f"{heads} heads"
        )
    return width // heads if head_width is None else head_width


def _refuse(name: str, conv: Any, refused: tuple[tuple[bool, str], ...]) -> None:
    found = [what for has, what in refused if has]
    if found:
        raise ValueError(f"{name}.from_pyg: it has not {found[0]}, which this {type(conv).__name__} has")


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(n, H C) as (1, H, n, C), a view."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)[None]


def _joined(out: Any, concat: bool) -> Tensor:
    """(1, H, n, C) as (n, H C), or the mean over heads."""
    rows: Tensor = out[0].transpose(0, 1)
    return rows.flatten(1) if concat else rows.mean(1)


def _folded(weight: Tensor, vectors: Tensor) -> Tensor:
    """(H, width): vectors (H, C) times each head's rows of a weight (H C, width)."""
    return torch.einsum("hc,hcw->hw", vectors, weight.unflatten(0, vectors.shape))


@kept
def _with_loops(graph: Graph) -> tuple[Graph, Graph, Tensor]:
    """(without loops; with one at every node, behind all other edges; the old edges that are left)."""
    bare, left = without_self_loops(graph.replace(edge_attr=None, edge_type=None))
    return bare, with_self_loops(bare), left


def _dot(setting: GraphSetting) -> nn.Module:
    return DotGraphAttention(setting.width, setting.heads, edge_width=setting.edge_width)


def _additive(setting: GraphSetting) -> nn.Module:
    return AdditiveGraphAttention(setting.width, setting.heads, edge_width=setting.edge_width)


register_graph_layer(GraphEntry("graph-attention", _dot, edges="features", reach=1))
register_graph_layer(GraphEntry("gat", _additive, edges="features", reach=1))
