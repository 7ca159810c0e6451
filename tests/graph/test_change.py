"""Graphs out of graphs, batches, padded nodes, reductions."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.graph import (
    Graph,
    batch,
    coalesce,
    keep_edges,
    ragged,
    reverse,
    segment_reduce,
    segment_softmax,
    subgraph,
    to_padded,
    unbatch,
    undirected,
    with_self_loops,
    without_self_loops,
)
from graph.test_graph import drawn

TWO_KINDS = Graph.from_edge_index([[0, 1], [0, 1]], num_nodes=3, num_receivers=3)
sizes = (st.integers(1, 9), st.integers(0, 30), st.integers(0, 99))


def pairs(graph: Graph) -> list[tuple[int, int]]:
    return list(zip(graph.sender.tolist(), graph.receiver.tolist(), strict=True))


@given(*sizes)
@settings(max_examples=30, deadline=None)
def test_changes_keep_what_they_promise(nodes: int, edges: int, seed: int) -> None:
    graph = drawn(nodes, edges, seed, edge_attr=torch.arange(float(edges))[:, None])
    assert pairs(reverse(reverse(graph))) == pairs(graph)
    both, old = undirected(graph)
    assert sorted(pairs(both)) == sorted(pairs(reverse(both)))
    assert both.edge_attr is not None and torch.equal(both.edge_attr[:, 0], old.double().float())
    looped = with_self_loops(graph, fill=-1.0)
    assert {a for a, b in pairs(looped) if a == b} == set(range(nodes))
    assert pairs(looped)[:edges] == pairs(graph)
    bare, left = without_self_loops(graph)
    assert pairs(bare) == [pair for pair in pairs(graph) if pair[0] != pair[1]]
    assert pairs(keep_edges(graph, left)) == pairs(bare)
    joined, new = coalesce(graph, "sum")
    assert len(set(pairs(joined))) == joined.edges == len(set(pairs(graph)))
    assert all(pairs(joined)[int(new[edge])] == pair for edge, pair in enumerate(pairs(graph)))
    assert joined.edge_attr is not None
    assert float(joined.edge_attr.sum()) == edges * (edges - 1) / 2


def test_joined_edges_keep_the_first_feature_or_their_mean_and_types_apart() -> None:
    graph = Graph.from_edge_index(
        [[0, 0, 0, 1], [1, 1, 1, 0]],
        edge_attr=torch.tensor([1.0, 2.0, 9.0, 5.0]),
        edge_type=torch.tensor([0, 0, 3, 0]),
    )
    for reduce, wanted in (("first", [5.0, 1.0, 9.0]), ("mean", [5.0, 1.5, 9.0])):
        joined, _ = coalesce(graph, reduce)
        assert joined.edge_attr is not None and joined.edge_attr.tolist() == wanted
        assert joined.edge_type is not None and joined.edge_type.tolist() == [0, 0, 3]


@given(*sizes)
@settings(max_examples=30, deadline=None)
def test_a_subgraph_holds_the_edges_between_its_nodes(nodes: int, edges: int, seed: int) -> None:
    graph = drawn(nodes, edges, seed)
    chosen = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))[: (nodes + 1) // 2]
    part, old = subgraph(graph, chosen)
    number = {int(node): place for place, node in enumerate(chosen)}
    wanted = [(edge, a, b) for edge, (a, b) in enumerate(pairs(graph)) if a in number and b in number]
    assert old.tolist() == [edge for edge, _, _ in wanted]
    assert pairs(part) == [(number[a], number[b]) for _, a, b in wanted]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda g: subgraph(g, torch.tensor([0, 0])), "name each node once"),
        (lambda g: subgraph(g, torch.tensor([9])), "nodes must be in 0 .. 3, got 9 .. 9"),
        (lambda g: subgraph(g, torch.ones(3, dtype=torch.bool)), "one bool for each of 4 nodes"),
        (lambda g: keep_edges(g, torch.ones(3, dtype=torch.bool)), "one bool for each of 6 edges"),
        (lambda g: coalesce(g, "max"), "reduce must be 'first', 'sum' or 'mean', got 'max'"),
        (lambda g: segment_reduce(torch.zeros(5), g.by_receiver), "one row for each of 6 edges, got (5,)"),
        (lambda g: to_padded(g, torch.zeros(5, 2)), "one row for each of 4 nodes, got (5, 2)"),
        (lambda g: undirected(TWO_KINDS), "senders and receivers, not nodes"),
        (lambda g: without_self_loops(TWO_KINDS), "senders and receivers, not nodes"),
        (
            lambda g: with_self_loops(g.replace(edge_attr=torch.zeros(6, 1, dtype=torch.int64)), fill=0.5),
            "which cannot hold fill=0.5",
        ),
        (lambda g: batch([]), "at least one graph"),
        (
            lambda g: batch([g, g.replace(edge_attr=torch.zeros(6, 1))]),
            "graph 0 has no edge_attr, others have",
        ),
        (
            lambda g: with_self_loops(g.replace(edge_type=torch.zeros(6, dtype=torch.int64))),
            "needs kind=, the type of the new loops",
        ),
    ],
)
def test_errors_say_what_was_expected(run: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        run(drawn(4, 6))  # type: ignore[operator]


def test_a_batch_comes_apart_again() -> None:
    graphs = [
        drawn(nodes, edges, nodes, edge_attr=torch.rand(edges, 2))
        for nodes, edges in ((3, 5), (1, 0), (4, 7))
    ]
    together = batch([batch(graphs[:2]), graphs[2]])
    assert together.pointer is not None and together.pointer.tolist() == [0, 3, 4, 8]
    for one, again in zip(graphs, unbatch(together), strict=True):
        assert pairs(one) == pairs(again) and one.nodes == again.nodes
        assert torch.equal(torch.as_tensor(one.edge_attr), torch.as_tensor(again.edge_attr))


def test_padded_nodes_are_the_nodes() -> None:
    graph = batch([drawn(3, 2), drawn(1, 1), drawn(5, 4)])
    x = torch.arange(18.0).reshape(9, 2)
    padded, there = to_padded(graph, x)
    assert padded.shape == (3, 5, 2) and there.sum(1).tolist() == [3, 1, 5]
    assert torch.equal(ragged(padded, there), x)
    assert not padded[~there].any()


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("edges", [0, 25])
def test_reductions_are_those_of_a_loop(reduce: str, edges: int) -> None:
    graph = drawn(8, edges)
    x = torch.randn(edges, 3, dtype=torch.float64, requires_grad=True)
    found = segment_reduce(x, graph.by_receiver, reduce)
    for node in range(8):
        mine = x[graph.receiver == node]
        wanted = torch.zeros(3, dtype=torch.float64)
        if len(mine):
            got = getattr(mine, {"max": "amax", "min": "amin"}.get(reduce, reduce))(0)
            wanted = got
        assert torch.allclose(found[node], wanted, rtol=1e-12, atol=1e-12)
    if edges:
        run = lambda x: segment_reduce(x, graph.by_receiver, reduce)  # type: ignore[arg-type]  # noqa: E731
        assert torch.autograd.gradcheck(run, (x,))


def test_softmax_over_edges_is_that_of_each_node_and_order_does_not_matter() -> None:
    graph = drawn(6, 30)
    logits = torch.randn(30, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        logits[4] = -float("inf")
    weights = segment_softmax(logits, graph.by_receiver)
    for node in range(6):
        mine = graph.receiver == node
        assert torch.allclose(weights[mine], logits[mine].softmax(0))
    mixed = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    again = segment_softmax(logits[mixed], keep_edges(graph, mixed).by_receiver)
    assert torch.allclose(again, weights[mixed], rtol=1e-12)
    with pytest.raises(ValueError, match=r"logits must have one row for each of 30 edges, got \(29, 2\)"):
        segment_softmax(logits[1:], graph.by_receiver)
    one = Graph.from_edge_index([[0], [0]], num_nodes=2)
    assert segment_softmax(torch.full((1,), -float("inf")), one.by_receiver).tolist() == [0.0]
