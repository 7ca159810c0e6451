"""The register of graph layers: what every one declares and is tested for, and how it takes its graph.

A graph layer is a module with PyG's calling convention, `module(x, edge_index, edge_attr=None, batch=None)`,
where `edge_index` is (2, E) or a `Graph`: x (nodes, width) gives (nodes, width), and with an edge state
(nodes, width), (E, edge width).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from attlas.graph import Graph

__all__ = [
    "GRAPH_CONTRACT", "GRAPH_LAYERS", "GraphEntry", "GraphSetting", "graph_entry", "graph_of",
    "register_graph_layer",
]  # fmt: skip

EDGES_READ = ("none", "features", "state", "types")
"""What a graph layer reads of edges (see `GraphEntry`)."""

GRAPH_CONTRACT = (
    "permutation", "edge_order", "batch", "isolated", "loops", "multi_edges", "padding", "gradient",
)  # fmt: skip
"""What a graph layer keeps, in the order of the tests; each can be excused by a reason."""


@dataclass(frozen=True)
class GraphSetting:
    """What a graph layer is made for: channels of nodes and edges, heads, kinds of typed edges."""

    width: int
    heads: int = 1
    edge_width: int | None = None
    edge_types: int | None = None


@dataclass(frozen=True)
class GraphEntry:
    """A graph layer and what it promises; `make(setting)` builds the module.

    edges: "none" it reads no edge features, "features" it reads them as edge_attr (E, edge_width), "state" it
    also returns new ones, "types" edge_attr is (E,) int64 below edge_types. reach: hops from which a node's
    output may be changed (None: any node of its graph), along the edges, or with both_ways against them too.
    excused: a name of GRAPH_CONTRACT -> why it cannot hold, in a sentence.
    """

    name: str
    make: Callable[[GraphSetting], nn.Module]
    edges: str = "none"
    reach: int | None = None
    both_ways: bool = False
    excused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.edges not in EDGES_READ:
            raise ValueError(
                f"graph layer {self.name}: edges must be one of {', '.join(EDGES_READ)}, got {self.edges!r}"
            )
        wrong = sorted(set(self.excused) - set(GRAPH_CONTRACT))
        if wrong:
            raise ValueError(
                f"graph layer {self.name}: excused must name some of {', '.join(GRAPH_CONTRACT)}, got "
                f"{', '.join(wrong)}"
            )


GRAPH_LAYERS: dict[str, GraphEntry] = {}
"""Every graph layer by its name; importing `attlas.layers` fills it."""


def register_graph_layer(entry: GraphEntry) -> GraphEntry:
    """Enter a graph layer under its name; ValueError if the name is taken."""
    if entry.name in GRAPH_LAYERS:
        raise ValueError(f"a graph layer named {entry.name!r} is already registered")
    GRAPH_LAYERS[entry.name] = entry
    return entry


def graph_entry(name: str) -> GraphEntry:
    """The entry of a registered name; ValueError with the names there are."""
    if name not in GRAPH_LAYERS:
        raise ValueError(f"graph layer must be one of {', '.join(sorted(GRAPH_LAYERS))}, got {name!r}")
    return GRAPH_LAYERS[name]


_SEEN: WeakIdKeyDictionary = WeakIdKeyDictionary()


@overload
def graph_of(
    name: str, x: Tensor, edge_index: Tensor | Graph, edge_attr: Tensor | None = None,
    batch: Tensor | None = None, *, width: int | None = None, edge_width: int,
    layer: nn.Module | None = None,
) -> tuple[Graph, Tensor]: ...  # fmt: skip


@overload
def graph_of(
    name: str, x: Tensor, edge_index: Tensor | Graph, edge_attr: Tensor | None = None,
    batch: Tensor | None = None, *, width: int | None = None, edge_width: int | None = None,
    layer: nn.Module | None = None,
) -> tuple[Graph, Tensor | None]: ...  # fmt: skip


def graph_of(
    name: str,
    x: Tensor,
    edge_index: Tensor | Graph,
    edge_attr: Tensor | None = None,
    batch: Tensor | None = None,
    *,
    width: int | None = None,
    edge_width: int | None = None,
    layer: nn.Module | None = None,
) -> tuple[Graph, Tensor | None]:
    """The graph of a layer's call, and its edge features: those given, or the graph's own.

    An edge_index is turned into a Graph once, as long as it lives and is not written to, so that a net of
    many layers sorts its edges once. Writes that torch does not count are not seen: through numpy, or
    `.data`; give a new tensor then. name: the layer's, for errors.

    width: the channels that x must have, of floating numbers. edge_width: those of edge features, which must
    be there then, in x's dtype. layer: x must have the dtype of its weights; under autocast dtypes are free.
    ValueError, TypeError: what is not so, x that has not one row per node, a batch beside a Graph,
    features that have not one row per edge.
    """
    _check_nodes(name, x, width, layer)
    if isinstance(edge_index, Graph):
        graph = edge_index
        if batch is not None:
            raise ValueError(f"{name}: batch must not be given beside a Graph, which has its own pointer")
        if x.shape[0] != graph.nodes:
            raise ValueError(f"{name}: x must have a row for each of {graph.nodes} nodes, got {x.shape[0]}")
    elif isinstance(edge_index, Tensor):
        graph = _graph(x.shape[0], edge_index, batch)
    else:
        raise TypeError(
            f"{name}: edge_index must be a (2, edges) tensor or a Graph, got {type(edge_index).__name__}"
        )
    features = graph.edge_attr if edge_attr is None else edge_attr
    if features is not None and (features.dim() < 1 or features.shape[0] != graph.edges):
        raise ValueError(
            f"{name}: edge_attr must have one row for each of {graph.edges} edges, got "
            f"{tuple(features.shape)}"
        )
    if edge_width is not None:
        _check_edges(name, x, features, edge_width)
    return graph, features


def _check_nodes(name: str, x: Tensor, width: int | None, layer: nn.Module | None) -> None:
    if x.dim() != 2:
        raise ValueError(f"{name}: x must be (nodes, channels), got {tuple(x.shape)}")
    if width is None:
        return
    if x.shape[1] != width:
        raise ValueError(f"{name}: x must be (nodes, {width}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating, got {x.dtype}: give x.float()")
    weight = None if layer is None else next(layer.parameters(), None)
    if weight is not None and weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{name}: x must have the dtype of the layer's weights, {weight.dtype}, got {x.dtype}: convert "
            "x, or the layer with layer.to(x.dtype)"
        )


def _check_edges(name: str, x: Tensor, features: Tensor | None, width: int) -> None:
    if features is None or features.dim() != 2 or features.shape[1] != width:
        got = "none" if features is None else f"{tuple(features.shape)}"
        raise ValueError(f"{name}: edge_attr must be (edges, {width}), got {got}")
    if features.dtype != x.dtype and not (
        features.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    ):
        raise TypeError(f"{name}: edge_attr must have the dtype of x, {x.dtype}, got {features.dtype}")


def _graph(nodes: int, edge_index: Tensor, batch: Tensor | None) -> Graph:
    given = [edge_index] if batch is None else [edge_index, batch]
    # Tensors of inference mode do not tell whether they were written to: nothing can be remembered by them.
    remember = not any(one.is_inference() for one in given)
    mark = (nodes, batch is None or id(batch), *(one._version for one in given if remember))
    kept = _SEEN.get(edge_index) if remember else None
    if kept is not None and kept[0] == mark and (batch is None or kept[2] is batch):
        return kept[1]
    with torch.inference_mode(False):  # training may use the remembered graph afterwards
        # A copy: the graph must not keep alive the tensor that it is found by.
        graph = Graph.from_edge_index(edge_index.clone(), num_nodes=nodes, batch=batch)
    if remember:
        _SEEN[edge_index] = (mark, graph, batch)
    return graph
