"""GIN: the graph isomorphism network's message passing.

Source: Xu et al. 2019, arXiv 1810.00826. Legend: n nodes, E edges, C width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attlas.graph import Graph
from attlas.graph.neighbours import neighbour_sum
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.ragged_norm import RaggedBatchNorm

__all__ = ["GIN"]


class GIN(nn.Module):
    """x_i' = MLP((1 + eps) x_i + Σ over edges j -> i of x_j), MLP = Linear, norm, ReLU, Linear.

    Args:
        width: of the input; out: of the output (width); inner: of the hidden layer (out).
        norm: makes the norm of the hidden layer from its width; nn.Identity for none.
        eps: its start; learn_eps: whether it is trained. mlp: any other map in the MLP's place.

    Shapes: (n, C), edge_index (2, E) or a Graph -> (n, out). Edge features are not read. Cost: 2 E C and the
    MLP. ValueError: shapes (see `graph_of`).
    """

    def __init__(
        self,
        width: int,
        out: int | None = None,
        *,
        inner: int | None = None,
        norm: Callable[[int], nn.Module] = RaggedBatchNorm,
        eps: float = 0.0,
        learn_eps: bool = True,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        out = width if out is None else out
        inner = out if inner is None else inner
        if mlp is None:  # an empty Sequential is False
            mlp = nn.Sequential(nn.Linear(width, inner), norm(inner), nn.ReLU(), nn.Linear(inner, out))
        self.mlp = mlp
        self.eps = nn.Parameter(torch.tensor(float(eps)), requires_grad=learn_eps)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, _ = graph_of("GIN", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        found: Tensor = self.mlp(torch.addcmul(neighbour_sum(x, graph), x, 1 + self.eps))
        return found


def _make(setting: GraphSetting) -> nn.Module:
    return GIN(setting.width)


register_graph_layer(GraphEntry("gin", _make, reach=1))
