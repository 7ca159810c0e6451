"""MeshGraphNet's block: messages by an MLP of edge and both ends, the baseline of the mesh transformer.

Source: Pfaff et al. 2020, arXiv 2010.03409; as released in DonsetPG/graph-physics.
Legend: n nodes, E edges, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.graph import Graph, segment_reduce
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.mesh_transformer import RootMeanSquare

__all__ = ["MeshGraphNetLayer", "relu_mlp"]


def relu_mlp(given: int, width: int, out: int, *, layers: int = 4, norm: bool = True) -> nn.Sequential:
    """Linear, ReLU, ..., Linear of `layers` linear maps, and RMSNorm on the output unless norm=False."""
    if layers < 1:
        raise ValueError(f"relu_mlp: layers must be at least 1, got {layers}")
    sizes = [given, *[width] * (layers - 1), out]
    parts: list[nn.Module] = []
    for at in range(layers):
        parts += [nn.Linear(sizes[at], sizes[at + 1]), nn.ReLU()]
    parts.pop()
    return nn.Sequential(*parts, *([RootMeanSquare(out)] if norm else []))


class MeshGraphNetLayer(nn.Module):
    """m_ij = MLP([e_ij, x_i, x_j]); e' = e + m; x_i' = x_i + MLP([x_i, Σ_j m_ij]), j -> i.

    The sum is of m, not of e'. Called as layer(x, edge_index, edge_attr (E, edge width), batch=None); returns
    (x', e'). edge_width: that of e, `width` unless given. Cost: O(E C^2) time and E C numbers a layer.
    """

    def __init__(self, width: int, *, edge_width: int | None = None, layers: int = 4) -> None:
        super().__init__()
        edge_width = width if edge_width is None else edge_width
        self.width, self.edge_width = width, edge_width
        self.message = relu_mlp(2 * width + edge_width, width, edge_width, layers=layers)
        self.update = relu_mlp(width + edge_width, width, width, layers=layers)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "E D"]]:
        """ValueError without features of the edges."""
        graph, edge = graph_of(
            "MeshGraphNetLayer",
            x,
            edge_index,
            edge_attr,
            batch,
            width=self.width,
            edge_width=self.edge_width,
            layer=self,
        )
        message = self.message(torch.cat([edge, x[graph.receiver], x[graph.sender]], 1))
        total = segment_reduce(message, graph.by_receiver)
        return x + self.update(torch.cat([x, total], 1)), edge + message


def _make(setting: GraphSetting) -> nn.Module:
    return MeshGraphNetLayer(setting.width, edge_width=setting.edge_width)


register_graph_layer(GraphEntry("mesh_graph_net", _make, edges="state", reach=1))
