"""Retrieved subgraphs against NetworkX, and what must not be in them."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from attlas.graph import Graph
from attlas.graph.retrieve import Incidence

# A star of 6 around 0, a path 1 - 7 - 8, a double edge 2 -> 9, a loop at 3, and 10 alone.
ENDS = [(0, 1), (0, 2), (3, 0), (4, 0), (0, 5), (6, 0), (1, 7), (8, 7), (2, 9), (2, 9), (3, 3)]
GRAPH = Graph.from_edge_index(torch.tensor(ENDS).T, num_nodes=11)


def rng():
    return np.random.default_rng(5)


def test_edges_at_a_node_are_those_of_either_end():
    graph = Incidence(GRAPH)
    for node in range(11):
        assert sorted(graph.at(node).tolist()) == [at for at, ends in enumerate(ENDS) if node in ends]
    with pytest.raises(ValueError, match=r"node must be in 0 \.\. 10, got 11"):
        graph.at(11)


def test_one_hop_draws_each_edge_once():
    graph = Incidence(GRAPH)
    assert sorted(graph.one_hop(0, 99, generator=rng()).tolist()) == [0, 1, 2, 3, 4, 5]
    some = graph.one_hop(0, 3, generator=rng())
    assert len(set(some.tolist())) == 3 and torch.equal(some, graph.one_hop(0, 3, generator=rng()))
    assert sorted(graph.one_hop(0, 99, generator=rng(), without=(1, 4)).tolist()) == [0, 2, 3, 5]
    assert graph.one_hop(10, 5, generator=rng()).numel() == 0


def test_breadth_first_reaches_every_node_by_one_edge_in_order_of_distance():
    graph = Incidence(GRAPH)
    edges = graph.breadth_first(0, 99, generator=rng(), fanout=99).tolist()
    plain = nx.Graph(ENDS)
    reached, distances = {0}, []
    for edge in edges:
        new = set(ENDS[edge]) - reached
        assert len(new) == 1, "an edge is kept only if it reaches a node for the first time"
        reached |= new
        distances.append(nx.shortest_path_length(plain, 0, new.pop()))
    assert reached == set(range(10)) and distances == sorted(distances)


def test_breadth_first_stops_and_hides():
    graph = Incidence(GRAPH)
    assert len(graph.breadth_first(0, 4, generator=rng())) == 4
    assert len(graph.breadth_first(0, 99, generator=rng(), fanout=1)) < 4
    hidden = graph.breadth_first(0, 99, generator=rng(), without=(0,)).tolist()
    assert 0 not in hidden and 6 not in hidden, "what only the hidden edge leads to is not found"
    assert graph.breadth_first(10, 9, generator=rng()).numel() == 0


def test_counts_are_not_negative():
    edges = Incidence(Graph.from_edge_index([[0], [1]]))
    with pytest.raises(ValueError, match="most must be 0 edges or more, got -1"):
        edges.one_hop(0, -1, generator=rng())
    with pytest.raises(ValueError, match="fanout must be 0 edges or more, got -2"):
        edges.breadth_first(0, 1, generator=rng(), fanout=-2)


def test_draws_without_replacement_are_even():
    graph, generator = Incidence(GRAPH), rng()
    drawn = torch.cat([graph.one_hop(0, 2, generator=generator) for _ in range(3000)])
    counts = torch.bincount(drawn, minlength=6)
    assert (counts - 1000).abs().max() < 130  # four standard deviations of 3000 draws with chance 1/3: 103
