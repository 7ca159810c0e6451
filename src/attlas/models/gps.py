"""GPS: encodings, layers of local and global parts, readout. Rampasek et al. 2022, arXiv 2205.12454."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from attlas.layers.by_graph import GraphAttention, mixer_by_graph
from attlas.layers.favor import FavorAttention
from attlas.layers.gated_gcn import GatedGCN
from attlas.layers.gine import GINE
from attlas.layers.gps import GPS
from attlas.models.graph_net import GraphNet

__all__ = ["GPSS", "GPSConfig", "gps_net"]

Local = Callable[[int, float], nn.Module]
Global = Callable[[int, int, float], nn.Module]

LOCAL: dict[str, Local] = {
    "gine": lambda width, dropout: GINE(width),
    "gated-gcn": lambda width, dropout: GatedGCN(width, dropout=dropout),
}
EVERYWHERE: dict[str, Global] = {
    "softmax": lambda width, heads, dropout: GraphAttention(width, heads, dropout=dropout),
    "favor": lambda width, heads, dropout: FavorAttention(width, heads, dropout=dropout),
}


@dataclass(frozen=True)
class GPSConfig:
    """Sizes and parts of a GPS net.

    local: "gine", "gated-gcn" or None. everywhere: "softmax", "favor" (Performer), the name of any registered
    mixer with a noncausal self form, or None. attention_dropout is for "softmax" (its weights) and "favor".
    """

    width: int = 64
    depth: int = 10
    heads: int = 4
    local: str | None = "gine"
    everywhere: str | None = "softmax"
    readout: str | None = "sum"
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def layer(self) -> GPS:
        """One layer. ValueError: an unknown part."""
        if self.local is not None and self.local not in LOCAL:
            raise ValueError(f"GPS: local must be one of {', '.join(LOCAL)} or None, got {self.local!r}")
        local = None if self.local is None else LOCAL[self.local](self.width, self.dropout)
        return GPS(self.width, local, self._everywhere(), dropout=self.dropout)

    def _everywhere(self) -> nn.Module | None:
        if self.everywhere is None:
            return None
        if self.everywhere in EVERYWHERE:
            return EVERYWHERE[self.everywhere](self.width, self.heads, self.attention_dropout)
        return mixer_by_graph(self.everywhere, self.width, self.heads)


GPSS: dict[str, GPSConfig] = {
    "zinc": GPSConfig(attention_dropout=0.5),
    "malnet-tiny": GPSConfig(depth=5, local="gated-gcn", everywhere="favor"),
}
"""The published sizes."""


def gps_net(
    config: GPSConfig,
    *,
    outputs: int,
    node_kinds: int | None = None,
    node_width: int | None = None,
    edge_kinds: int | None = None,
    edge_width: int | None = None,
    encoder: nn.Module | None = None,
) -> GraphNet:
    """The net `net(x, graph, extra=encodings)`, edge_attr (E,) int64 or (E, edge_width) of the graph.

    encoder: of `attlas.layers.graph_encoders`; its columns stand beside the embedding. Edges are embedded for
    the local part and, as in the paper, no other: a net without one reads none.
    """
    reads = config.local is not None
    return GraphNet(
        config.layer,
        depth=config.depth,
        width=config.width,
        node_kinds=node_kinds,
        node_width=node_width,
        edge_kinds=edge_kinds if reads else None,
        edge_width=edge_width if reads else None,
        outputs=outputs,
        readout=config.readout,
        extra=encoder,
    )
