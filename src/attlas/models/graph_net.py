"""The net that comparisons of graph layers train: everything beside the layers stays the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attlas.graph import Graph
from attlas.layers.graph_layers import graph_of

__all__ = ["GraphNet", "pooled"]


class GraphNet(nn.Module):
    """Embeddings of nodes and edges -> graph layers -> readout -> MLP head.

    Args:
        make_layer: makes one graph layer, `layer(x, graph, edge_attr)` giving x or (x, edge state); called
            `depth` times.
        node_kinds, node_width: x is (n,) int64 below node_kinds, or (n, node_width) real; one of them.
        edge_kinds, edge_width: edge_attr is (E,) int64 below edge_kinds, or (E, edge_width) real; both become
            `width` wide. None of them: layers get no edge features.
        readout: "sum" or "mean" over each graph's nodes: output (graphs, outputs); None: (n, outputs).
            The head has the widths width, width/2, width/4, outputs.
        extra: width of encodings of the nodes that are appended to the input: a linear map of them is added
            to the embedding (GT). Or a module that is called as module(extra, graph): what it makes is added,
            or, if it has an attribute `width`, stands beside an embedding that is narrower by it (GPS).

    Source: the head and the sum of input and encoding of Dwivedi and Bresson 2020, arXiv 2012.09699.
    """

    def __init__(
        self,
        make_layer: Callable[[], nn.Module],
        *,
        depth: int,
        width: int,
        outputs: int,
        node_kinds: int | None = None,
        node_width: int | None = None,
        edge_kinds: int | None = None,
        edge_width: int | None = None,
        readout: str | None = "sum",
        extra: int | nn.Module | None = None,
    ) -> None:
        super().__init__()
        if readout not in ("sum", "mean", None):
            raise ValueError(f"GraphNet: readout must be 'sum', 'mean' or None, got {readout!r}")
        beside = int(getattr(extra, "width", 0))
        if beside >= width:
            raise ValueError(f"GraphNet: encodings {beside} wide leave nothing of a width of {width}")
        nodes = _embedding("node", node_kinds, node_width, width - beside)
        if nodes is None:
            raise ValueError("GraphNet: give node_kinds or node_width")
        self.nodes = nodes
        self.edges = _embedding("edge", edge_kinds, edge_width, width)
        self.extra = nn.Linear(extra, width) if isinstance(extra, int) else extra
        self.beside = beside > 0
        self.layers = nn.ModuleList(make_layer() for _ in range(depth))
        self.readout = readout
        half, quarter = max(1, width // 2), max(1, width // 4)
        self.head = nn.Sequential(
            nn.Linear(width, half),
            nn.ReLU(),
            nn.Linear(half, quarter),
            nn.ReLU(),
            nn.Linear(quarter, outputs),
        )

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        extra: Any = None,
        **shared: Tensor,
    ) -> Tensor:
        """(graphs, outputs), or (n, outputs) without a readout; edge_attr: the graph's own unless given.

        shared: what every layer gets besides.
        ValueError: encodings that the net was not made for, or none where it was.
        """
        graph, features = graph_of("GraphNet", x.view(len(x), -1), edge_index, edge_attr, batch)
        h = self._encoded(self.nodes(x), extra, graph)
        state = None
        if self.edges is not None:
            if features is None:
                raise ValueError(
                    "GraphNet: this net reads edge features, but neither edge_attr nor the graph has any"
                )
            state = self.edges(features)
        for layer in self.layers:
            found = layer(h, graph, state, **shared)
            h, state = found if isinstance(found, tuple) else (found, state)
        if self.readout is not None:
            h = pooled(h, graph, self.readout)
        return self.head(h)

    def _encoded(self, h: Tensor, extra: Any, graph: Graph) -> Tensor:
        if (extra is None) != (self.extra is None):
            made, given = ("with", "got none") if extra is None else ("without", "got some")
            raise ValueError(f"GraphNet: made {made} encodings (extra=), but {given}")
        if self.extra is None:
            return h
        found = self.extra(extra) if isinstance(self.extra, nn.Linear) else self.extra(extra, graph)
        return torch.cat([h, found], -1) if self.beside else h + found


def _embedding(what: str, kinds: int | None, width: int | None, out: int) -> nn.Module | None:
    if kinds is not None and width is not None:
        raise ValueError(f"GraphNet: give {what}_kinds or {what}_width, not both")
    if kinds is not None:
        return nn.Embedding(kinds, out)
    return None if width is None else nn.Linear(width, out)


def pooled(x: Tensor, graph: Graph, reduce: str) -> Tensor:
    """(graphs, C): "sum" or "mean" of (n, C) over the nodes of each graph; an empty graph gives 0."""
    if graph.pointer is None:
        total = x.sum(0, keepdim=True)
        counts = total.new_full((1, 1), graph.nodes)
    else:
        total = torch.segment_reduce(x, "sum", offsets=graph.pointer, axis=0, initial=0.0)
        counts = graph.pointer.diff()[:, None].to(x.dtype)
    return total if reduce == "sum" else total / counts.clamp(min=1)
