"""GatedGCN: gates of edges weigh the messages, and edges are updated.

Source: Bresson and Laurent 2017, arXiv 1711.07553, as the local part of GPS, arXiv 2205.12454. Legend: n
nodes, E edges.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attlas.graph import Graph, segment_reduce
from attlas.layers.gine import edge_gate
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.position_gate import PositionGate
from attlas.layers.ragged_norm import RaggedBatchNorm

__all__ = ["GatedGCN"]

EPSILON = 1e-6  # of the sum of gates


class GatedGCN(nn.Module):
    """e_ij' = D x_i + E x_j + C e_ij, x_i' = A x_i + sum_j s_ij B x_j / (sum_j s_ij + 1e-6), s = sigmoid(e').

    Then x + dropout(relu(norm(x'))) and e + dropout(relu(norm(e'))): residual and norm are inside.

    Args: width, of nodes and edges; dropout; norm: makes a norm of the width. gated: s is multiplied by
    `PositionGate` of the `positions` that `forward` gets.

    Shapes: (n, width), edge_attr (E, width) -> both anew. Cost: O(E width^2 + n width^2), E width numbers.
    ValueError: edge features missing or of another width, positions missing or not asked for.
    """

    residual_inside = True

    def __init__(
        self,
        width: int,
        *,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = RaggedBatchNorm,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.own, self.message, self.edge, self.receiver, self.sender = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.node_norm, self.edge_norm = norm(width), norm(width)
        self.dropout = nn.Dropout(dropout)
        self.gate = PositionGate(width) if gated else None

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New nodes and edges."""
        graph, features = graph_of(
            "GatedGCN", x, edge_index, edge_attr, batch, width=self.width, edge_width=self.width, layer=self
        )
        edges = self.receiver(x)[graph.receiver] + self.sender(x)[graph.sender] + self.edge(features)
        share = torch.sigmoid(edges)
        gate = edge_gate("GatedGCN", self.gate, positions, graph)
        if gate is not None:
            share = share * gate
        both = torch.cat([share * self.message(x)[graph.sender], share], -1)
        summed, total = segment_reduce(both, graph.by_receiver).chunk(2, -1)
        nodes = self.own(x) + summed / (total + EPSILON)
        return x + self._step(self.node_norm, nodes), features + self._step(self.edge_norm, edges)

    def _step(self, norm: nn.Module, found: Tensor) -> Tensor:
        stepped: Tensor = self.dropout(torch.relu(norm(found)))
        return stepped


def _make(setting: GraphSetting) -> nn.Module:
    return GatedGCN(setting.width)


register_graph_layer(GraphEntry("gated-gcn", _make, edges="state", reach=1))
