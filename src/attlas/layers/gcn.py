"""GCN: graph convolution with symmetric normalisation.

Source: Kipf and Welling 2017, arXiv 1609.02907. Legend: n nodes, E edges, C width.
"""

from torch import Tensor, nn

from attlas.graph import Graph
from attlas.graph.neighbours import neighbour_sum
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer

__all__ = ["GCN"]


class GCN(nn.Module):
    """X' = D^-1/2 (A + I) D^-1/2 X W + b, D the degrees of A + I: x_i' = Σ_j W x_j / sqrt(d_i d_j) + b.

    The loop of I is added at every node that has none; d_i counts edges into i, loops and equal edges as
    often as they stand. Args: width: of the input; out: of the output (width).

    Shapes: (n, C), edge_index (2, E) or a Graph -> (n, out). Edge features are not read. Cost: 2 E out and
    one product. ValueError: shapes (see `graph_of`).
    """

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        self.map = nn.Linear(width, width if out is None else out)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, _ = graph_of("GCN", x, edge_index, edge_attr, batch, width=self.map.in_features, layer=self)
        alone = graph.in_degree.new_ones(graph.nodes)
        alone[graph.receiver[graph.sender == graph.receiver]] = 0
        root = (graph.in_degree + alone).to(x.dtype).rsqrt()[:, None]
        scaled = root * (x @ self.map.weight.mT)
        return root * (neighbour_sum(scaled, graph) + alone[:, None] * scaled) + self.map.bias


def _make(setting: GraphSetting) -> nn.Module:
    return GCN(setting.width)


register_graph_layer(
    GraphEntry("gcn", _make, reach=1, excused={"loops": "its definition gives every node without a loop one"})
)
