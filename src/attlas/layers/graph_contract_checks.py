"""The checks of `attlas.layers.check_graph_layer`: each yields a sentence for every promise not kept.

Legend: n nodes, E edges.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from attlas.graph import Graph, keep_edges
from attlas.layers.contract_probe import differs, gap
from attlas.layers.graph_contract_numbers import gradient, narrow, training
from attlas.layers.graph_contract_probe import (
    EDGES,
    ISOLATED,
    NODES,
    SILENT,
    Given,
    GraphProbe,
    Out,
    alone,
    differ,
    finite,
    same_bits,
    together,
    with_edge,
)

__all__ = ["GRAPH_CHECKS"]

NOTHING = 1e-12  # below it an output has not changed
PATH = 12  # nodes of a path on which the reach is measured


def _shape(probe: GraphProbe) -> Iterator[str]:
    """A row for every node and of every edge state, all numbers, of the input's dtype, the same again."""
    given = probe.given()
    out = probe.run(given)
    width = (NODES, probe.setting.width)
    if tuple(out.x.shape) != width:
        yield f"the output has shape {tuple(out.x.shape)}, not {width}"
    if out.edge is not None and given.edge is not None and out.edge.shape != given.edge.shape:
        yield f"the edge state has shape {tuple(out.edge.shape)}, not {tuple(given.edge.shape)}"
    if out.x.dtype != torch.float64:
        yield f"the output of float64 features is {out.x.dtype}"
    if not finite(out):
        yield "the output is not finite"
    yield from differ(probe.run(given), out, "a second run gives another output")
    nothing = probe.run(probe.given((), 0))
    if tuple(nothing.x.shape) != (0, probe.setting.width):
        yield f"the output of no nodes has shape {tuple(nothing.x.shape)}, not {(0, probe.setting.width)}"


def _convention(probe: GraphProbe) -> Iterator[str]:
    """(x, edge_index, edge_attr, batch) as PyG has them gives the bits of (x, Graph); wrong rows raise."""
    given = probe.given()
    wanted = probe.run(given)
    index = given.graph.edge_index
    forms = {"an edge_index": probe.call(given.x, index, given.edge)}
    if given.edge is not None:
        forms["an edge_attr by name"] = probe.call(given.x, index, edge_attr=given.edge)
        forms["a Graph that holds edge_attr"] = probe.call(given.x, given.graph.replace(edge_attr=given.edge))
    for what, found in forms.items():
        if not same_bits(found, wanted):
            yield f"{what} gives another output than a Graph and edge_attr"
    both = together([given, probe.given(EDGES[:5], 4)])
    of = both.graph.graph_of
    if not same_bits(probe.call(both.x, both.graph.edge_index, both.edge, batch=of), probe.run(both)):
        yield "an edge_index and batch give another output than the Graph of the batch"
    for what, wrong in (
        ("x with a row too many", (torch.cat([given.x, given.x[:1]]), given.graph, given.edge)),
        ("edge_attr with a row too few", None if given.edge is None else (*given[:2], given.edge[1:])),
    ):
        if wrong is None:
            continue
        try:
            probe.call(*wrong)
        except (ValueError, TypeError):
            continue
        yield f"{what} is taken without a ValueError"


def _permutation(probe: GraphProbe) -> Iterator[str]:
    """Nodes numbered otherwise give the same outputs at their new places, and the same edge states."""
    given = probe.given()
    wanted = probe.run(given)
    number = torch.randperm(NODES, generator=probe.generator)
    x = torch.empty_like(given.x)
    x[number] = given.x
    graph = Graph.from_edge_index(number[given.graph.edge_index], num_nodes=NODES)
    found = probe.run(Given(x, graph, given.edge))
    yield from differ(Out(found.x[number], found.edge), wanted, "another numbering of the nodes changes")


def _edge_order(probe: GraphProbe) -> Iterator[str]:
    """Edges in another order, with their features, give the same nodes, and their states in that order."""
    given = probe.given()
    wanted = probe.run(given)
    for order in (torch.arange(len(EDGES)).flip(0), torch.randperm(len(EDGES), generator=probe.generator)):
        edge = None if given.edge is None else given.edge[order]
        found = probe.run(Given(given.x, keep_edges(given.graph, order), edge))
        state = None if wanted.edge is None else wanted.edge[order]
        told = differ(found, Out(wanted.x, state), "another order of the edges changes")
        yield from told
        if told:
            return


def _batch(probe: GraphProbe) -> Iterator[str]:
    """Graphs in a batch get the outputs that each gets alone, one without edges and one of one node too."""
    parts = [probe.given(), probe.given((), 3), probe.given(EDGES[:6], 5), probe.given(((0, 0),), 1)]
    yield from alone(probe, parts, range(len(parts)), "in a batch")


def _isolated(probe: GraphProbe) -> Iterator[str]:
    """Nodes without edges give numbers and gradients that are numbers; no message where nobody sends."""
    for what, given in (
        ("a graph with an isolated node", probe.given()),
        ("a graph without edges", probe.given((), 4)),
        ("one node without edges", probe.given((), 1)),
    ):
        x = given.x.requires_grad_()
        out = probe.run(given)
        if not finite(out):
            yield f"{what}: the output is not finite"
        loss = out.x.sum() if out.edge is None else out.x.sum() + out.edge.sum()
        named = {"x": x, **dict(probe.module.named_parameters())}
        slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, slope in zip(named, slopes, strict=True):
            if slope is not None and not torch.isfinite(slope).all():
                yield f"{what}: the gradient of {name} is not finite"
    if probe.entry.reach is None:
        return
    given = probe.given()
    others = torch.arange(NODES) < SILENT
    with torch.no_grad():
        was, now = (
            probe.run(given),
            probe.run(given.at(others, 3 * probe.random(SILENT, probe.setting.width))),
        )
    for node, what in ((SILENT, "that only sends"), (ISOLATED, "without edges")):
        if gap(now.x[node], was.x[node]) > NOTHING:
            yield f"the output of the node {what} changes with other nodes: it gets a message from nobody"


def _loops(probe: GraphProbe) -> Iterator[str]:
    """A loop is an edge as any other: it brings its node a message, and none is there unless it is given."""
    for node, what in ((SILENT, "that nobody sends to"), (3, "that others send to")):
        given = probe.given()
        was, now = probe.run(given), probe.run(with_edge(probe, given, node, node))
        if not finite(now):
            yield f"the output with a loop at a node {what} is not finite"
        elif gap(now.x[node], was.x[node]) <= NOTHING:
            yield f"a loop at a node {what} changes nothing: loops are left out, or there already"


def _multi_edges(probe: GraphProbe) -> Iterator[str]:
    """An edge that stands twice sends two messages; equal edges with equal features have equal states."""
    given = probe.given()
    double = 6  # 4 -> 3, and others send to 3 as well
    sender, receiver = EDGES[double]
    was = probe.run(given)
    copied = None if given.edge is None else given.edge[double : double + 1]
    now = probe.run(with_edge(probe, given, sender, receiver, copied))
    if gap(now.x[receiver], was.x[receiver]) <= NOTHING:
        yield "an edge that stands twice counts once: equal edges are merged"
    if now.edge is not None:
        yield from differs(now.edge[-1], now.edge[double], "equal edges with equal features differ in state")


def _padding(probe: GraphProbe) -> Iterator[str]:
    """What stands beside a graph changes nothing: graphs of NaN too, and isolated nodes for local layers."""
    nan = probe.given(EDGES[:7], 6)
    nan.x[:] = float("nan")
    if nan.edge is not None and nan.edge.is_floating_point():
        nan.edge[:] = float("nan")
    parts = [probe.given(), nan, probe.given((), 0), probe.given(EDGES[:3], 3), nan]
    yield from alone(probe, parts, (0, 3), "beside graphs of NaN and of no nodes")
    if probe.entry.reach is None:
        return
    given = probe.given()
    for fill, what in ((0.0, "zeros"), (float("nan"), "NaN")):
        x = torch.cat([given.x, torch.full((3, given.x.shape[1]), fill, dtype=given.x.dtype)])
        graph = Graph(given.graph.sender, given.graph.receiver, NODES + 3, NODES + 3)
        found = probe.run(Given(x, graph, given.edge))
        yield from differ(
            Out(found.x[:NODES], found.edge),
            probe.run(given),
            f"isolated nodes of {what} behind the others change",
        )


def _reach(probe: GraphProbe) -> Iterator[str]:
    """Along a directed path: outputs change with the nodes up to `reach` hops before them, and no others."""
    given = probe.given(tuple(pairwise(range(PATH))), PATH)
    was, reach = probe.run(given), probe.entry.reach
    changed = {}
    for node in range(PATH):
        now = probe.run(given.at(node, 3 * probe.random(probe.setting.width)))
        changed[node] = {other for other in range(PATH) if gap(now.x[other], was.x[other]) > NOTHING}
    if reach is None:
        far = PATH // 2
        if not any(abs(node - other) >= far for node, others in changed.items() for other in others):
            yield f"reach None says that any node matters, but over {far} hops nothing changes"
        return
    for node, others in changed.items():
        if wrong := sorted(others - set(range(node - reach * probe.entry.both_ways, node + reach + 1))):
            yield (
                f"node {node} of the path 0 -> 1 -> ... changes the output of {wrong[0]}, beyond its reach "
                f"of {reach} hops along the edges"
            )
            return
    if reach and reach not in changed[0]:
        yield f"reach {reach} is said, but no output changes with the node {reach} hops before it"


def _reads(probe: GraphProbe) -> Iterator[str]:
    """What is said of an edge is read: with other features, or another type, something changes."""
    given = probe.given()
    kinds = probe.setting.edge_types or 1
    if given.edge is None or (probe.entry.edges == "types" and kinds == 1):
        return
    was, double = probe.run(given), 6  # 4 -> 3, and others send to 3 as well
    edge = given.edge.clone()
    edge[double] = (edge[double] + 1) % kinds if probe.entry.edges == "types" else 3 - edge[double]
    now = probe.run(given._replace(edge=edge))
    if gap(now.x, was.x) <= NOTHING:
        what = "another type of an edge changes" if probe.entry.edges == "types" else "other features change"
        yield f"{what} no node: edge_attr is not read"


GRAPH_CHECKS: dict[str, Callable[[GraphProbe], Iterator[str]]] = {
    "shape": _shape,
    "convention": _convention,
    "permutation": _permutation,
    "edge_order": _edge_order,
    "batch": _batch,
    "isolated": _isolated,
    "loops": _loops,
    "multi_edges": _multi_edges,
    "padding": _padding,
    "reach": _reach,
    "reads": _reads,
    "gradient": gradient,
    "training": training,
    "narrow": narrow,
}
"""The checks by name, in order; each has its sentence. Those of GRAPH_CONTRACT can be excused."""
