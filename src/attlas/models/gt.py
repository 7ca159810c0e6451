"""GT: the graph transformer of Dwivedi and Bresson 2020, arXiv 2012.09699."""

from dataclasses import dataclass

from torch import nn

from attlas.layers.graph_encoders import SignedPositions
from attlas.layers.gt import GT
from attlas.layers.ragged_norm import RaggedBatchNorm
from attlas.models.graph_net import GraphNet

__all__ = ["GTS", "GTConfig", "graph_transformer"]


@dataclass(frozen=True)
class GTConfig:
    """Sizes of a graph transformer.

    positions: eigenvectors that are read (`laplacian_eigenvectors(graph, positions)`), 0 for none. readout:
    "mean" of each graph, or None for an answer at every node. layer_norm: in the place of batch norm.
    """

    width: int = 64
    depth: int = 10
    heads: int = 8
    positions: int = 8
    readout: str | None = "mean"
    dropout: float = 0.0
    layer_norm: bool = False


GTS: dict[str, GTConfig] = {
    "zinc": GTConfig(),
    "pattern": GTConfig(width=80, positions=2, readout=None),
    "cluster": GTConfig(width=80, positions=10, readout=None),
}
"""The published sizes."""


def graph_transformer(
    config: GTConfig, *, node_kinds: int, outputs: int, edge_kinds: int | None = None
) -> GraphNet:
    """The net `net(x, graph, extra=eigenvectors)`: x (n,) int64, edge_attr (E,) int64 below edge_kinds.

    Over all pairs of nodes: the same net on `complete(graph)`, with the mark of real edges as edge_attr
    (edge_kinds=2) or without any, as in the paper. Signs of eigenvectors are drawn anew in training.
    """
    width = config.width

    def layer() -> nn.Module:
        norm = nn.LayerNorm if config.layer_norm else RaggedBatchNorm
        edge_width = None if edge_kinds is None else width
        return GT(width, config.heads, edge_width=edge_width, dropout=config.dropout, norm=norm)

    return GraphNet(
        layer,
        depth=config.depth,
        width=width,
        node_kinds=node_kinds,
        edge_kinds=edge_kinds,
        outputs=outputs,
        readout=config.readout,
        extra=SignedPositions(config.positions, width) if config.positions else None,
    )
