"""A small graph layer and graphs for it, as the checks of `graph_contract_checks` need them.

Legend: n nodes, E edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attlas.graph import Graph, batch
from attlas.layers.contract_probe import DISTURBED, differs
from attlas.layers.graph_layers import GraphEntry, GraphSetting

__all__ = [
    "EDGES", "ISOLATED", "NODES", "SILENT", "Given", "GraphProbe", "Out", "alone", "differ", "finite",
    "same_bits", "together", "with_edge",
]  # fmt: skip

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


def finite(out: Out) -> bool:
    """Whether all of it are numbers."""
    return all(bool(torch.isfinite(part).all()) for part in out if part is not None)


def same_bits(found: Out, wanted: Out) -> bool:
    """Whether both are the same numbers, to the last bit."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(found, wanted, strict=True)
    )


def differ(found: Out, wanted: Out, text: str) -> list[str]:
    """`text` with the difference of nodes, and of edge states, where there is one."""
    told = differs(found.x, wanted.x, f"{text}, nodes")
    if found.edge is not None and wanted.edge is not None:
        told += differs(found.edge, wanted.edge, f"{text}, edge states")
    return told


def together(parts: list[Given]) -> Given:
    """One call with all graphs as a batch."""
    edges = [part.edge for part in parts if part.edge is not None]
    edge = torch.cat(edges) if edges else None
    return Given(torch.cat([part.x for part in parts]), batch([part.graph for part in parts]), edge)


def alone(probe: GraphProbe, parts: list[Given], asked: range | tuple[int, ...], where: str) -> Iterator[str]:
    """Which of the graphs that are asked for get another output in the batch than each alone."""
    out = probe.run(together(parts))
    nodes = out.x.split([part.graph.nodes for part in parts])
    sizes = [part.graph.edges for part in parts]
    states = [None] * len(parts) if out.edge is None else out.edge.split(sizes)
    for place in asked:
        text = f"graph {place} ({parts[place].graph.nodes} nodes) {where} differs from the same graph alone"
        yield from differ(Out(nodes[place], states[place]), probe.run(parts[place]), text)


def with_edge(
    probe: GraphProbe, given: Given, sender: int, receiver: int, features: Tensor | None = None
) -> Given:
    """The same with one more edge behind all others, of random features unless given."""
    ends = torch.cat([given.graph.edge_index, torch.tensor([[sender], [receiver]])], 1)
    new = probe.edge_features(1) if features is None else features
    edge = None if given.edge is None or new is None else torch.cat([given.edge, new])
    return Given(given.x, Graph.from_edge_index(ends, num_nodes=given.graph.nodes), edge)
