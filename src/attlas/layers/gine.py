"""GINE: the graph isomorphism network with edge features.

Source: Hu et al. 2020, arXiv 1905.12265, as the local part of GPS, arXiv 2205.12454.
Legend: n nodes, E edges.
"""

import torch
from torch import Tensor, nn

from attlas.graph import Graph, segment_reduce
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.position_gate import PositionGate

__all__ = ["GINE"]


class GINE(nn.Module):
    """x_i' = MLP((1 + eps) x_i + sum over edges j -> i of relu(x_j + e_ij)), MLP width -> width -> width.

    Args: width, of nodes and edges; eps: fixed. gated: messages are multiplied by `PositionGate` of the
    `positions` that `forward` gets.

    Shapes: (n, width), edge_attr (E, width) -> (n, width). Cost: O(E width + n width^2), E width numbers.
    ValueError: edge features missing or of another width, positions missing or not asked for.
    """

    def __init__(self, width: int, *, eps: float = 0.0, gated: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.width, self.eps = width, eps
        self.gate = PositionGate(width) if gated else None

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, features = graph_of(
            "GINE", x, edge_index, edge_attr, batch, width=self.width, edge_width=self.width, layer=self
        )
        messages = torch.relu(x[graph.sender] + features)
        gate = edge_gate("GINE", self.gate, positions, graph)
        if gate is not None:
            messages = messages * gate
        found: Tensor = self.net((1 + self.eps) * x + segment_reduce(messages, graph.by_receiver))
        return found


def edge_gate(name: str, gate: PositionGate | None, positions: Tensor | None, graph: Graph) -> Tensor | None:
    """The gate of every edge, or None; ValueError: positions missing, or given to a layer without a gate."""
    if (gate is None) != (positions is None):
        made, got = ("without", "some") if gate is None else ("with", "none")
        raise ValueError(f"{name}: made {made} gated=True, but got {got} positions")
    return None if gate is None or positions is None else gate(positions, graph)


def _make(setting: GraphSetting) -> nn.Module:
    return GINE(setting.width)


register_graph_layer(GraphEntry("gine", _make, edges="features", reach=1))
