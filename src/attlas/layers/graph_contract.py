"""What a graph layer keeps, checked on a small one: `check_graph_layer` lists where it breaks its word."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from attlas.layers.graph_contract_checks import GRAPH_CHECKS
from attlas.layers.graph_contract_probe import GraphProbe
from attlas.layers.graph_layers import GraphEntry, GraphSetting

__all__ = ["GRAPH_CHECKS", "GraphFinding", "check_graph_layer"]


@dataclass(frozen=True)
class GraphFinding:
    """A promise that a graph layer does not keep: which check of GRAPH_CHECKS found it, and how."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


def check_graph_layer(
    layer: GraphEntry | Callable[[GraphSetting], nn.Module],
    *,
    edges: str = "none",
    reach: int | None = None,
    width: int = 8,
    heads: int = 2,
    edge_width: int = 8,
    edge_types: int = 3,
    checks: tuple[str, ...] | None = None,
) -> list[GraphFinding]:
    """Make the layer small, in float64 and evaluation mode, and check what every graph layer has to keep.

    layer: a registered entry, or a function that makes a module of your own out of a `GraphSetting`; then
    edges and reach are what a `GraphEntry` would declare. checks: which of GRAPH_CHECKS, all by default.

    Returns findings, none if all is kept; an error that the layer raises is a finding, and so is an excuse
    that is not needed. Cost: about 60 passes over graphs of 12 nodes. ValueError: an unknown
    check, edges that no `GraphEntry` has.

        findings = check_graph_layer(lambda setting: MyConv(setting.width), reach=1)
        assert not findings, "\\n".join(map(str, findings))
    """
    wrong = sorted(set(checks or ()) - set(GRAPH_CHECKS))
    if wrong:
        raise ValueError(
            f"check_graph_layer: checks must be of {', '.join(GRAPH_CHECKS)}, got {', '.join(wrong)}"
        )
    entry = layer if isinstance(layer, GraphEntry) else GraphEntry("layer", layer, edges, reach)
    setting = GraphSetting(
        width,
        heads,
        edge_width if entry.edges in ("features", "state") else None,
        edge_types if entry.edges == "types" else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            probe = GraphProbe(entry, setting)
        except Exception as error:
            return [GraphFinding("made", f"{type(error).__name__}: {error}")]
        refused = _refuses_a_graph(probe)
        if refused is not None:
            return [GraphFinding("convention", refused)]
        return [
            GraphFinding(name, text)
            for name in GRAPH_CHECKS
            if checks is None or name in checks
            for text in _texts(probe, name)
        ]


def _refuses_a_graph(probe: GraphProbe) -> str | None:
    """How a layer that takes an edge_index, as PyG's do, takes no Graph; None: it does, or takes neither."""
    given = probe.given()
    more = () if given.edge is None else (given.edge,)
    try:
        probe.module(given.x, given.graph, *more)
        return None
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    try:
        probe.module(given.x, given.graph.edge_index, *more)
    except Exception:
        return None
    return (
        "an edge_index is taken, but no Graph, which it must accept in its place: begin forward with graph, "
        f"edge_attr = attlas.layers.graph_of(name, x, edge_index, edge_attr, batch) ({told})"
    )


def _texts(probe: GraphProbe, name: str) -> list[str]:
    """What a check says; of an excused one, that it has nothing to say."""
    probe.generator.manual_seed(2)  # what a check finds must not depend on those before it
    try:
        with torch.set_grad_enabled(name in ("gradient", "isolated")):
            found = list(GRAPH_CHECKS[name](probe))
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"]
    excuse = probe.entry.excused.get(name)
    if excuse is None:
        return found
    return [] if found else [f"it is excused ({excuse}), but it holds: take the excuse away"]
