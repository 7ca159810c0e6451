"""Equivariant and stable use of eigenvectors: distances between positions scale the messages."""

import torch
from torch import Tensor, nn

from attlas.graph import Graph

__all__ = ["PositionGate"]


class PositionGate(nn.Module):
    """gate_ij = sigmoid(MLP(|p_i - p_j|^2)) of every edge, MLP 1 -> width -> 1 with ReLU.

    The same for any sign, rotation or permutation of the coordinates of p. Shapes: positions (n, P), a Graph
    -> (E, 1). Source: EquivStableLapPE, Wang et al. 2022 (ICLR, e95i1IHcWj), as in Rampasek et al. 2022,
    arXiv 2205.12454. Cost: O(E (P + width)).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, positions: Tensor, graph: Graph) -> Tensor:
        """ValueError: not one position for each node."""
        if positions.dim() != 2 or positions.shape[0] != graph.nodes:
            raise ValueError(
                f"positions must be (nodes, coordinates) of {graph.nodes} nodes, got {tuple(positions.shape)}"
            )
        apart = positions[graph.receiver] - positions[graph.sender]
        gate: Tensor = self.net(torch.sum(apart * apart, -1, keepdim=True))
        return gate
