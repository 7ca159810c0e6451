"""GraphSAGE with the mean of the neighbours.

Source: Hamilton et al. 2017, arXiv 1706.02216. Legend: n nodes, E edges, C width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.graph import Graph
from attlas.graph.neighbours import at_most, neighbour_mean, neighbour_sum
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer

__all__ = ["SAGE"]


class SAGE(nn.Module):
    """x_i' = W_near mean over edges j -> i of x_j + b + W_own x_i; 0 for the mean of a node without edges.

    Args:
        width: of the input; out: of the output (width).
        sampled: in training at most so many edges into each node, drawn anew in every call; evaluation
            always takes all. generator: for these draws, torch's own unless given.
        normalise: outputs of length 1, as in the paper.

    Shapes: (n, C), edge_index (2, E) or a Graph -> (n, out). Edge features are not read. Cost: 2 E C and
    two products. ValueError: shapes (see `graph_of`), sampled below 1.
    """

    def __init__(
        self,
        width: int,
        out: int | None = None,
        *,
        sampled: int | None = None,
        generator: torch.Generator | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if sampled is not None and sampled < 1:
            raise ValueError(f"SAGE: sampled must be 1 or more edges into a node, got {sampled}")
        out = width if out is None else out
        self.near, self.own = nn.Linear(width, out), nn.Linear(width, out, bias=False)
        self.sampled, self.generator, self.normalise = sampled, generator, normalise

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """One round of messages."""
        graph, _ = graph_of("SAGE", x, edge_index, edge_attr, batch, width=self.own.in_features, layer=self)
        found: Tensor = self.near(self._mean(x, graph)) + self.own(x)
        return functional.normalize(found, dim=-1) if self.normalise else found

    def _mean(self, x: Tensor, graph: Graph) -> Tensor:
        if self.sampled is None or not self.training:
            return neighbour_mean(x, graph)
        kept = at_most(graph, self.sampled, self.generator)
        share = graph.in_degree.clamp(1, self.sampled).to(x.dtype).reciprocal()
        return neighbour_sum(x, graph, kept.to(x.dtype)) * share[:, None]


def _make(setting: GraphSetting) -> nn.Module:
    return SAGE(setting.width)


register_graph_layer(GraphEntry("sage", _make, reach=1))
