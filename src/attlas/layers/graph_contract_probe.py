"""A small graph layer and graphs for it, as the checks of `graph_contract_checks` need them.

Legend: n nodes, E edges.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attlas.graph import Graph
from attlas.layers.contract_probe import DISTURBED
from attlas.layers.graph_layers import GraphEntry, GraphSetting

__all__ = ["EDGES", "ISOLATED", "NODES", "SILENT", "Given", "GraphProbe", "Out"]

NODES = 11
EDGES = (
    (0, 1), (1, 0), (2, 1), (3, 1), (3, 2), (1, 2), (4, 3), (0, 3), (5, 4), (6, 5), (4, 5), (5, 6), (2, 6),
    (7, 6), (6, 7), (8, 7), (9, 7), (9, 3), (2, 8), (0, 1), (5, 5),
)  # fmt: skip
"""(sender, receiver): hardly any goes both ways; 0 -> 1 stands twice and 5 has a loop."""
ISOLATED, SILENT = 10, 9
"""A node without edges, and one that sends and receives nothing."""


class Given(NamedTuple):
    """What a layer is called with: features of nodes, the edges, features or types of edges or None."""

    x: Tensor
    graph: Graph
    edge: Tensor | None

    def at(self, node: int | Tensor, x: Tensor) -> "Given":
        """The same with other features at a node or at several."""
        other = self.x.clone()
        other[node] = x
        return self._replace(x=other)


class Out(NamedTuple):
    """What it returns: nodes (n, width), and its edge state or None."""

    x: Tensor
    edge: Tensor | None


@dataclass(eq=False)
class GraphProbe:
    """The layer in float64, in evaluation mode, its weights disturbed, and inputs for it."""

    entry: GraphEntry
    setting: GraphSetting
    module: nn.Module = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.module = self.entry.make(self.setting).double().eval()
        with torch.no_grad():
            # A path that starts at zero would hide what is wrong in it.
            for weight in self.module.parameters():
                weight.add_(DISTURBED * self.random(*weight.shape))

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def edge_features(self, count: int) -> Tensor | None:
        """Of `count` edges, as the entry says that it reads them."""
        if self.entry.edges == "none":
            return None
        if self.entry.edges == "types":
            kinds = self.setting.edge_types or 1
            return torch.randint(kinds, (count,), generator=self.generator)
        return self.random(count, self.setting.edge_width or self.setting.width)

    def given(self, ends: tuple[tuple[int, int], ...] = EDGES, nodes: int = NODES) -> Given:
        """Random features on a graph, the usual one by default."""
        graph = Graph.from_edge_index(torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T, num_nodes=nodes)
        return Given(self.random(nodes, self.setting.width), graph, self.edge_features(len(ends)))

    def run(self, given: Given) -> Out:
        return self.call(given.x, given.graph, given.edge)

    def call(self, *arguments: Tensor | Graph | None, **named: Tensor) -> Out:
        """The module's answer; TypeError where it is not what the entry says."""
        found = self.module(*arguments, **named)
        if self.entry.edges == "state":
            if not isinstance(found, tuple) or len(found) != 2:
                raise TypeError(f"it must return (x, edge_attr), got {type(found).__name__}")
            return Out(*found)
        if not isinstance(found, Tensor):
            raise TypeError(f"it must return x alone, got {type(found).__name__}")
        return Out(found, None)
