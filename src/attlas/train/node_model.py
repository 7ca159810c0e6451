"""A net for the nodes of a user's graph: features and encodings scaled, then any registered graph layer.

Legend: n nodes, E edges, F features, K columns of encodings.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.graph.encode import encode, parse_encodings
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_entry
from attlas.models.graph_net import GraphNet

__all__ = ["NodeInputs", "NodeModel", "NodeSettings", "edge_reading", "node_inputs"]

SIGNED = "laplacian"  # its columns' signs are arbitrary


@dataclass(frozen=True)
class NodeSettings:
    """What `attlas graph train` trains and how; seed decides every random choice.

    batch: labelled nodes per step, each with a sampled surrounding of at most `fanout` edges into a node per
    layer; 0: the whole graph in every step. check: steps between two looks at the validation nodes, which
    is also when the state is saved. UsageError: a name or number that cannot be.
    """

    model: str = "gin"
    task: str = "classification"
    depth: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 200
    learning_rate: float = 5e-3
    weight_decay: float = 5e-4
    encodings: str = ""
    batch: int = 0
    fanout: int = 10
    check: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            graph_entry(self.model)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if self.task not in ("classification", "regression"):
            raise UsageError(f"task must be classification or regression, got {self.task!r}")
        for name in ("depth", "width", "heads", "steps", "fanout", "check"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.batch < 0:
            raise UsageError(f"batch must be 0 (the whole graph) or more nodes, got {self.batch}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning rate must be a finite number above 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight decay must be a finite number from 0, got {self.weight_decay}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        for one in parse_encodings(self.encodings):
            if one.name not in ("degree", "rwse", "laplacian"):
                raise UsageError(f"training takes the encodings degree, rwse and laplacian, got {one.name}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class NodeInputs(NamedTuple):
    """What a net reads: x (n, F), encodings (n, K) or None, features or types of edges or None.

    The graph holds nothing beside its edges, but the types for layers of typed edges.
    """

    graph: Graph
    x: Tensor
    extra: Tensor | None
    edge: Tensor | None

    def part(self, graph: Graph, nodes: Tensor, edges: Tensor) -> "NodeInputs":
        """Of a sampled graph: the rows of its nodes and edges."""
        return NodeInputs(
            graph,
            self.x[nodes],
            None if self.extra is None else self.extra[nodes],
            None if self.edge is None else self.edge[edges],
        )


def node_inputs(graph: Graph, x: Tensor | None, settings: NodeSettings, *, large: bool = False) -> NodeInputs:
    """The inputs of a net on a graph; without features x the degrees are used.

    UsageError: a bipartite graph, a model of typed edges on a graph without types, an encoding of too large a
    graph (see `encode`).
    """
    if graph.bipartite:
        raise UsageError("the graph has senders and receivers of two kinds: training needs one kind of nodes")
    asked = parse_encodings(settings.encodings)
    made = [encode(graph, one, large=large)[one.name] for one in asked]
    if x is None:
        x = encode(graph, parse_encodings("degree")[0])["degree"].float()
    extra = torch.cat(made, 1).float() if made else None
    edge = _edges(graph, settings.model)
    typed = graph_entry(settings.model).edges == "types"
    bare = graph.replace(edge_attr=edge if typed else None, edge_type=None)
    return NodeInputs(bare, x, extra, None if typed else edge)


def edge_reading(graph: Graph, model: str) -> Literal["types", "numbers", "nothing"]:
    """What layers of this model read of this graph's edges: numbers before types where they can read both."""
    reads = graph_entry(model).edges
    if reads in ("features", "state") and graph.edge_attr is not None:
        return "numbers"
    return "nothing" if reads == "none" or graph.edge_type is None else "types"


def _edges(graph: Graph, model: str) -> Tensor | None:
    """What layers of this model are given of edges."""
    entry = graph_entry(model)
    if entry.edges == "none":
        return None
    if entry.edges == "types":
        if graph.edge_type is None:
            raise UsageError(
                f"model {model} reads types of edges, but the graph has none: name their column (--kind)"
            )
        return graph.edge_type
    if graph.edge_attr is not None:
        numbers = graph.edge_attr.reshape(graph.edges, -1).float()
        if not bool(numbers.isfinite().all()):
            raise UsageError("a number of an edge is not finite in float32: scale them, or leave it out")
        return numbers
    return graph.edge_type if graph.edge_type is not None else torch.ones(graph.edges, 1)


class _Scaled(nn.Module):
    """(x - mean) / deviation of what it was made for; a column without deviation is only centred."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, rows: Tensor) -> None:
        """Take mean and deviation from rows (m, width); of no rows neither."""
        if not len(rows):
            return
        wide = rows.double()
        deviation = wide.std(0, correction=0)
        self.mean.copy_(wide.mean(0))
        # Equal numbers deviate by what their mean is rounded, which must not become the unit.
        varies = deviation > torch.finfo(torch.float32).eps * wide.abs().amax(0)
        self.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class NodeModel(nn.Module):
    """`GraphNet` of a registered layer over scaled inputs: (n, outputs), targets in their own unit.

    Args:
        outputs: classes, or 1 of a regression. features, extra: columns of features and encodings.
        edge_width: columns of real edge features; edge_kinds: number of edge types; at most one of them.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        outputs: int,
        features: int,
        extra: int = 0,
        edge_width: int | None = None,
        edge_kinds: int | None = None,
    ) -> None:
        super().__init__()
        entry = graph_entry(settings.model)
        self.outputs = outputs
        self.signed = _columns(settings.encodings, SIGNED)
        self.x_scale, self.extra_scale = _Scaled(features), _Scaled(extra)
        self.edge_scale = _Scaled(edge_width or 0)
        self.target = _Scaled(1)
        read = entry.edges in ("features", "state")
        self.net = GraphNet(
            lambda: entry.make(_setting(entry, settings, edge_kinds)),
            depth=settings.depth,
            width=settings.width,
            outputs=outputs,
            node_width=features,
            edge_width=edge_width if read else None,
            edge_kinds=edge_kinds if read else None,
            readout=None,
            extra=extra or None,
        )

    def fit_scales(self, inputs: NodeInputs, targets: Tensor | None) -> None:
        """Take means and deviations from the training graph, and of targets from those to train on."""
        self.x_scale.fit(inputs.x)
        if inputs.extra is not None:
            self.extra_scale.fit(inputs.extra)
        if inputs.edge is not None and inputs.edge.is_floating_point():
            self.edge_scale.fit(inputs.edge)
        if targets is not None:
            self.target.fit(targets[:, None])

    def forward(self, inputs: NodeInputs) -> Tensor:
        """Logits, or targets (n, 1) in units of their deviation (`unscaled` gives them back)."""
        extra = inputs.extra
        if extra is not None:
            extra = self.extra_scale(extra)
            if self.training and self.signed:
                signs = torch.ones(extra.shape[1])
                signs[self.signed] = torch.randint(0, 2, (len(self.signed),)) * 2.0 - 1.0
                extra = extra * signs
        edge = inputs.edge
        if edge is not None and edge.is_floating_point():
            edge = self.edge_scale(edge)
        found: Tensor = self.net(self.x_scale(inputs.x), inputs.graph, edge, extra=extra)
        return found

    def unscaled(self, out: Tensor) -> Tensor:
        """Targets in their own unit."""
        return out * self.target.scale + self.target.mean


def _setting(entry: GraphEntry, settings: NodeSettings, edge_kinds: int | None) -> GraphSetting:
    return GraphSetting(
        settings.width,
        settings.heads,
        settings.width if entry.edges in ("features", "state") else None,
        edge_kinds if entry.edges == "types" else None,
    )


def _columns(encodings: str, name: str) -> list[int]:
    """The columns of an encoding among all."""
    first, found = 0, []
    for one in parse_encodings(encodings):
        width = min(one.size, 2) if one.name == "degree" else one.size
        found += list(range(first, first + width)) if one.name == name else []
        first += width
    return found
