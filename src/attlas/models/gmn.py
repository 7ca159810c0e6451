"""Graph Mamba as a network for nodes or graphs (arXiv 2402.08678)."""

from collections.abc import Callable

from torch import Tensor, nn

from attlas.graph import Graph, WalkTokens, neighbour_mean, neighbour_sum
from attlas.layers.gmn import GMNLayer
from attlas.layers.graph_layers import graph_of
from attlas.layers.virtual_node import star_of

__all__ = ["GMN"]

READOUTS = {"sum": neighbour_sum, "mean": neighbour_mean}


class GMN(nn.Module):
    """A linear map of the features (|| encodings), GMN layers, an answer per node or per graph.

    Args:
        features: width of x, its encodings beside it; width: C; outputs: of the answer.
        make_layer: makes a `GMNLayer` of a width (one layer with its defaults unless given); depth: of them.
        readout: "sum" or "mean" over each graph's nodes, or None for an answer per node.

    Shapes: x (n, features), edge_index (2, E) or a Graph -> (n, outputs) or (G, outputs). tokens: of
    `walk_tokens`, drawn once before training; else drawn once per Graph object.
    """

    def __init__(
        self,
        features: int,
        width: int,
        outputs: int,
        *,
        make_layer: Callable[[int], GMNLayer] = GMNLayer,
        depth: int = 1,
        readout: str | None = None,
    ) -> None:
        super().__init__()
        if readout is not None and readout not in READOUTS:
            raise ValueError(f"GMN: readout must be 'sum', 'mean' or None, got {readout!r}")
        self.into = nn.Linear(features, width)
        self.layers = nn.ModuleList(make_layer(width) for _ in range(depth))
        self.readout = readout
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        tokens: WalkTokens | None = None,
    ) -> Tensor:
        """The answers."""
        graph, features = graph_of("GMN", x, edge_index, edge_attr, batch)
        h = self.into(x)
        for layer in self.layers:
            h = layer(h, graph, features, tokens=tokens)
        if self.readout is not None:
            h = READOUTS[self.readout](h, star_of(graph))
        found: Tensor = self.head(h)
        return found
