"""The graph itself: edges, their two sorted forms, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.graph import Graph, to_scipy


def drawn(nodes: int, edges: int, seed: int = 0, **more: Tensor) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes, (2, edges), generator=generator)
    return Graph.from_edge_index(ends, num_nodes=nodes, **more)


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sorted_edges_hold_every_edge_once_in_the_given_order(nodes: int, edges: int, seed: int) -> None:
    graph = drawn(nodes, edges, seed)
    for by, own, other in (
        (graph.by_receiver, graph.receiver, graph.sender),
        (graph.by_sender, graph.sender, graph.receiver),
    ):
        assert sorted(by.order.tolist()) == list(range(edges))
        assert torch.equal(by.other, other[by.order])
        for node in range(nodes):
            mine = by.order[by.pointer[node] : by.pointer[node + 1]].tolist()
            assert mine == [edge for edge in range(edges) if int(own[edge]) == node]


def test_degrees_and_matrix_agree() -> None:
    graph = drawn(9, 50)
    matrix = to_scipy(graph)
    assert np.array_equal(matrix.sum(1), graph.in_degree.numpy())
    assert np.array_equal(matrix.sum(0), graph.out_degree.numpy())


def test_the_number_of_nodes_is_the_largest_end_unless_given() -> None:
    assert Graph.from_edge_index([[0, 4], [1, 1]]).nodes == 5
    assert Graph.from_edge_index([[0, 4], [1, 1]], num_nodes=8).nodes == 8
    assert Graph.from_edge_index([[], []], num_nodes=3).edges == 0


def test_a_bipartite_graph_has_two_kinds_of_nodes() -> None:
    graph = Graph.from_edge_index([[0, 5], [1, 0]], num_nodes=6, num_receivers=2)
    assert (graph.senders, graph.receivers) == (6, 2)
    assert graph.by_receiver.pointer.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="senders and receivers, not nodes"):
        _ = graph.nodes


def test_a_batch_names_the_graph_of_every_node() -> None:
    graph = Graph.from_edge_index([[0, 3], [1, 2]], num_nodes=5, batch=torch.tensor([0, 0, 2, 2, 2]))
    assert graph.pointer is not None and graph.pointer.tolist() == [0, 2, 2, 5]
    assert graph.graphs == 3
    assert graph.graph_of.tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Graph.from_edge_index([[0, 1, 7], [0, 9, 1]], num_nodes=3),
            "sender of edge 2 is 7, but there are 3",
        ),
        (lambda: Graph.from_edge_index([[0, -1], [0, 1]], num_nodes=3), "sender of edge 1 is -1"),
        (lambda: Graph.from_edge_index([[0, 1]]), r"edge_index must be (2, edges)"),
        (lambda: Graph.from_edge_index(torch.rand(2, 3)), "edge_index must hold integers, got torch.float32"),
        (
            lambda: drawn(3, 4, edge_attr=torch.rand(3, 2)),
            "edge_attr must have one row per edge, (4, ...), got (3, 2)",
        ),
        (lambda: drawn(3, 4, edge_type=torch.rand(4)), "edge_type must be int64 of shape (4,)"),
        (
            lambda: Graph.from_edge_index([[0], [2]], batch=torch.tensor([0, 0, 1])),
            "edge 0 (0 -> 2) leads from one graph of the batch into another",
        ),
        (lambda: drawn(3, 2, batch=torch.tensor([0, 1, 0])), "batch must not fall"),
        (lambda: drawn(3, 2, batch=torch.tensor([0, 1])), "one entry for each of 3 nodes"),
        (lambda: Graph.from_edge_index([[0], [0]], num_receivers=2), "needs num_nodes"),
        (
            lambda: Graph(torch.tensor([0]), torch.tensor([0]), 2, 3),
            "are the same nodes, but there are 2 and 3: give bipartite=True",
        ),
        (
            lambda: Graph(torch.tensor([0]), torch.tensor([0]), 2, 2, pointer=torch.tensor([0, 1])),
            "pointer must rise from 0 to the number of nodes, 2, got 0 .. 1",
        ),
    ],
)
def test_errors_name_the_edge(make: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        make()  # type: ignore[operator]


def test_a_graph_shows_its_size() -> None:
    graph = drawn(3, 4, edge_attr=torch.rand(4, 2), batch=torch.tensor([0, 0, 0]))
    assert repr(graph) == "Graph(3 nodes, 4 edges, 1 graphs, edge_attr (4, 2))"
