"""MeshGraphNet: encode, pass messages with an edge state, decode.

Source: Pfaff et al. 2020, arXiv 2010.03409; as released in DonsetPG/graph-physics. Legend: n nodes, A axes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.graph import Graph
from attlas.layers.mesh_graph_net import MeshGraphNetLayer, relu_mlp

__all__ = ["MeshGraphNet"]


class MeshGraphNet(nn.Module):
    """Features of nodes, and of links their vector and its length -> MLPs -> messages -> MLP.

    Args: inputs, outputs: channels of nodes. axes: of the coordinates. width, layers: 128 and 15 in the
    paper.
    ends: linear maps of each MLP. Called as net(features (n, inputs), graph, positions=(n, axes)).
    """

    def __init__(
        self, inputs: int, outputs: int, *, axes: int = 2, width: int = 128, layers: int = 15, ends: int = 4
    ) -> None:
        super().__init__()
        self.encoder = relu_mlp(inputs, width, width, layers=ends)
        self.link_encoder = relu_mlp(axes + 1, width, width, layers=ends)
        self.blocks = nn.ModuleList(MeshGraphNetLayer(width, layers=ends) for _ in range(layers))
        self.decoder = relu_mlp(width, width, outputs, layers=ends, norm=False)

    def forward(
        self, features: Float[Tensor, "n p"], graph: Graph, *, positions: Float[Tensor, "n A"]
    ) -> Float[Tensor, "n o"]:
        """All nodes of all graphs of the batch; x_j - x_i and its length are features of j -> i."""
        vector = positions[graph.sender] - positions[graph.receiver]
        edge = self.link_encoder(torch.cat([vector, vector.norm(dim=1, keepdim=True)], 1))
        x = self.encoder(features)
        for block in self.blocks:
            x, edge = block(x, graph, edge)
        out: Tensor = self.decoder(x)
        return out
