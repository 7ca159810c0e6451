"""Every registered graph layer keeps the contract, and the checks find layers that do not."""

import pytest
import torch
from torch import nn

from attlas.layers import GRAPH_LAYERS, GraphEntry, GraphFinding, GraphSetting, check_graph_layer
from attlas.layers.graph_contract import GRAPH_CHECKS
from attlas.layers.graph_layers import GRAPH_CONTRACT, graph_entry
from contracts import wrong_graph_layers as wrong


@pytest.mark.parametrize("name", sorted(GRAPH_LAYERS))
def test_registered(name):
    findings = check_graph_layer(GRAPH_LAYERS[name])
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("kind", "declared"),
    [
        (wrong.Right, {"reach": 1}),
        (wrong.Right, {"edges": "features", "reach": 1}),
        (wrong.Right, {"edges": "types", "reach": 1}),
        (wrong.RightState, {"edges": "state", "reach": 1}),
        (wrong.TwoHops, {"reach": 2}),
        (wrong.EverySeesEvery, {"reach": None}),
    ],
)
def test_what_is_right_has_no_findings(kind, declared):
    findings = check_graph_layer(kind, **declared)
    assert not findings, "\n".join(map(str, findings))


WRONG = [
    (wrong.Shortens, {}, "shape", "the output has shape (10, 8), not (11, 8)"),
    (wrong.ReturnsMore, {}, "shape", "TypeError: it must return x alone, got tuple"),
    (wrong.Right, {"edges": "state"}, "shape", "TypeError: it must return (x, edge_attr), got Tensor"),
    (wrong.Random, {}, "shape", "a second run gives another output, nodes (by "),
    (wrong.NoNumber, {}, "shape", "the output is not finite"),
    (wrong.Narrow, {}, "shape", "the output of float64 features is torch.float32"),
    (wrong.Backwards, {}, "convention", "an edge_index gives another output than a Graph and edge_attr"),
    (
        wrong.ForgetsTheGraphsFeatures,
        {"edges": "features"},
        "convention",
        "a Graph that holds edge_attr gives another output than a Graph and edge_attr",
    ),
    (
        wrong.ForgetsTheBatch,
        {"reach": None},
        "convention",
        "an edge_index and batch give another output than the Graph of the batch",
    ),
    (wrong.TakesAnything, {}, "convention", "x with a row too many is taken without a ValueError"),
    (wrong.CountsNodes, {}, "permutation", "another numbering of the nodes changes, nodes (by "),
    (wrong.CountsEdges, {}, "edge_order", "another order of the edges changes, nodes (by "),
    (
        wrong.StatesByPlace,
        {"edges": "state"},
        "edge_order",
        "another order of the edges changes, edge states",
    ),
    (
        wrong.MixesTheBatch,
        {"reach": None},
        "batch",
        "graph 0 (11 nodes) in a batch differs from the same graph alone, nodes (by ",
    ),
    (wrong.DividesByNothing, {}, "isolated", "a graph without edges: the output is not finite"),
    (wrong.RootOfNothing, {}, "isolated", "one node without edges: the gradient of x is not finite"),
    (
        wrong.HearsNobody,
        {},
        "isolated",
        "the output of the node that only sends changes with other nodes: it gets a message from nobody",
    ),
    (
        wrong.AddsLoops,
        {},
        "loops",
        "a loop at a node that nobody sends to changes nothing: loops are left out, or there already",
    ),
    (wrong.LeavesOutLoops, {}, "loops", "a loop at a node that others send to changes nothing: loops are"),
    (wrong.Merges, {}, "multi_edges", "an edge that stands twice counts once: equal edges are merged"),
    (
        wrong.StatesByPlace,
        {"edges": "state"},
        "multi_edges",
        "equal edges with equal features differ in state (by ",
    ),
    (
        wrong.Pads,
        {"reach": None},
        "padding",
        "graph 0 (11 nodes) beside graphs of NaN and of no nodes differs from the same graph alone",
    ),
    (wrong.MixesTheBatch, {}, "padding", "isolated nodes of NaN behind the others change, nodes (by inf"),
    (
        wrong.SendsBack,
        {},
        "reach",
        "node 1 of the path 0 -> 1 -> ... changes the output of 0, beyond its reach of 1 hops along",
    ),
    (
        wrong.TwoHops,
        {},
        "reach",
        "node 0 of the path 0 -> 1 -> ... changes the output of 2, beyond its reach",
    ),
    (
        wrong.Right,
        {"reach": 2},
        "reach",
        "reach 2 is said, but no output changes with the node 2 hops before it",
    ),
    (
        wrong.Right,
        {"reach": None},
        "reach",
        "reach None says that any node matters, but over 6 hops nothing changes",
    ),
    (wrong.IgnoresFeatures, {"edges": "features"}, "gradient", "no gradient reaches edge_attr"),
    (wrong.IgnoresNodes, {}, "gradient", "no gradient reaches x"),
    (wrong.Unused, {}, "gradient", "no gradient reaches never.weight"),
    (wrong.HalfTheGradient, {}, "gradient", "the gradient of x is not that of finite differences: "),
    (wrong.OneRowAtLeast, {}, "shape", "the output of no nodes has shape (1, 8), not (0, 8)"),
    (
        wrong.IgnoresTypes,
        {"edges": "types"},
        "reads",
        "another type of an edge changes no node: edge_attr is not read",
    ),
    (
        wrong.IgnoresFeatures,
        {"edges": "features"},
        "reads",
        "other features change no node: edge_attr is not read",
    ),
    (
        wrong.NormalisedInTraining,
        {},
        "training",
        "one node without edges in training: ValueError: Expected more than 1 value per channel",
    ),
    (wrong.CentredInTraining, {}, "training", "one node without edges in training: the output is not finite"),
    (wrong.OneRowAtLeast, {}, "training", "no nodes in training: the output has 1 rows"),
    (wrong.NoGraph, {}, "convention", "an edge_index is taken, but no Graph, which it must accept"),
    (wrong.NoFloat32, {}, "narrow", "torch.float32 is off by "),
]


@pytest.mark.parametrize(
    ("kind", "declared", "check", "text"), WRONG, ids=lambda one: getattr(one, "__name__", None)
)
def test_what_is_wrong_is_found(kind, declared, check, text):
    findings = check_graph_layer(kind, **({"reach": 1} | declared), checks=(check,))
    assert any(one.text.startswith(text) for one in findings), findings
    assert {one.check for one in findings} == {check}


def test_every_check_is_shown_to_find_something():
    assert {check for _, _, check, _ in WRONG} == set(GRAPH_CHECKS)
    assert set(GRAPH_CONTRACT) <= set(GRAPH_CHECKS)


def test_an_excuse_is_shown_to_be_true():
    why = "its equal edges are one"
    needed = GraphEntry("merges", wrong.Merges, reach=1, excused={"multi_edges": why})
    assert check_graph_layer(needed) == []
    (finding,) = check_graph_layer(GraphEntry("right", wrong.Right, reach=1, excused={"multi_edges": why}))
    assert str(finding) == f"multi_edges: it is excused ({why}), but it holds: take the excuse away"


def test_what_cannot_be_made_or_run_is_a_finding():
    def refuses(setting):
        raise ValueError("width must be 9")

    assert check_graph_layer(refuses) == [GraphFinding("made", "ValueError: width must be 9")]
    (finding,) = check_graph_layer(lambda setting: nn.Linear(8, 8), checks=("permutation",))
    assert str(finding).startswith("permutation: TypeError: ")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="checks must be of shape, convention, .*, got speed"):
        check_graph_layer(wrong.Right, checks=("speed",))
    with pytest.raises(ValueError, match="excused must name some of permutation, .*, got reach"):
        GraphEntry("x", wrong.Right, excused={"reach": "far"})
    with pytest.raises(ValueError, match="graph layer x: edges must be one of none, .*, types, got 'typed'"):
        GraphEntry("x", wrong.Right, edges="typed")
    with pytest.raises(ValueError, match="edges must be one of none, .*, got 'typed'"):
        check_graph_layer(wrong.Right, edges="typed")
    with pytest.raises(ValueError, match="graph layer must be one of .*, got 'nothing'"):
        graph_entry("nothing")


def test_the_settings_of_the_user_reach_the_layer():
    seen = []

    def make(setting):
        seen.append(setting)
        return wrong.Right(setting)

    check_graph_layer(make, edges="types", width=6, heads=3, edge_types=5, checks=("shape",))
    check_graph_layer(make, edges="features", width=6, edge_width=4, checks=("shape",))
    assert seen == [GraphSetting(6, 3, None, 5), GraphSetting(6, 2, 4, None)]


def test_it_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    check_graph_layer(wrong.Right, reach=1, checks=("shape",))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_layer_that_takes_edges_both_ways_says_so():
    entry = GraphEntry("both", wrong.SendsBack, reach=1, both_ways=True)
    assert check_graph_layer(entry, checks=("reach",)) == []
    (finding,) = check_graph_layer(GraphEntry("one", wrong.SendsBack, reach=1), checks=("reach",))
    assert finding.text.startswith("node 1 of the path 0 -> 1 -> ... changes the output of 0")
