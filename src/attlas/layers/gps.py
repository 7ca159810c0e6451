"""GPS: the sum of a local message-passing part and global attention, then an MLP.

Source: Rampasek et al. 2022, arXiv 2205.12454. Legend: n nodes, E edges, C width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from attlas.graph import Graph
from attlas.layers.by_graph import GraphAttention
from attlas.layers.favor import FavorAttention
from attlas.layers.gated_gcn import GatedGCN
from attlas.layers.gine import GINE
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.ragged_norm import RaggedBatchNorm

__all__ = ["GPS"]


class GPS(nn.Module):
    """x_M = norm(x + dropout(local(x))), x_T = norm(x + dropout(everywhere(x))), y = x_M + x_T,
    x' = norm(y + dropout(W_2 dropout(relu(W_1 y)))), W_1: C -> 2 C.

    Args:
        width: C.
        local: any graph layer `layer(x, graph, edge_attr)` giving x or (x, edge state), or None. One with an
            attribute `residual_inside` (GatedGCN) gets no residual and no dropout here.
        everywhere: what attends in each graph, `module(x, graph)`: `GraphAttention` (softmax),
            `FavorAttention` (Performer), `mixer_by_graph(name, width, heads)` of any registered mixer, or
            None.
        dropout; norm: makes a norm of the width.

    Shapes: x (n, C), edge_index (2, E) or a Graph, edge_attr of the local part -> (n, C), or with an edge
    state (n, C), (E, C). Cost: that of the parts. ValueError: neither part (see also `graph_of`).
    """

    def __init__(
        self,
        width: int,
        local: nn.Module | None,
        everywhere: nn.Module | None,
        *,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = RaggedBatchNorm,
    ) -> None:
        super().__init__()
        if local is None and everywhere is None:
            raise ValueError("GPS: give a local part, a global one (everywhere), or both")
        self.width, self.local, self.everywhere = width, local, everywhere
        self.local_norm = None if local is None else norm(width)
        self.global_norm = None if everywhere is None else norm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )
        self.norm = norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """positions: for a local part that is gated by them."""
        graph, features = graph_of("GPS", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        found, state = [], None
        if self.local is not None and self.local_norm is not None:
            more = {} if positions is None else {"positions": positions}
            near = self.local(x, graph, features, **more)
            if isinstance(near, tuple):
                near, state = near
            inside = getattr(self.local, "residual_inside", False)
            found.append(self.local_norm(near if inside else x + self.dropout(near)))
        if self.everywhere is not None and self.global_norm is not None:
            found.append(self.global_norm(x + self.dropout(self.everywhere(x, graph))))
        summed = sum(found[1:], found[0])
        nodes = self.norm(summed + self.feed(summed))
        return nodes if state is None else (nodes, state)


def _softmax(setting: GraphSetting) -> nn.Module:
    width = setting.width
    return GPS(width, GINE(width), GraphAttention(width, setting.heads))


def _linear(setting: GraphSetting) -> nn.Module:
    width = setting.width
    return GPS(width, GatedGCN(width), FavorAttention(width, setting.heads))


register_graph_layer(GraphEntry("gps", _softmax, edges="features", reach=None))
register_graph_layer(GraphEntry("gps-performer", _linear, edges="state", reach=None))
