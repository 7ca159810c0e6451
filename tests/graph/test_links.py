"""Links of a mesh against NetworkX's distances, batch by batch."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from attlas.graph import Graph, batch, from_networkx, to_scipy
from attlas.graph.links import (
    at_distances,
    farthest_points,
    global_links,
    k_hop,
    locality_order,
    random_links,
)


def pairs(graph):
    """{(receiver, sender)}; fails where a link stands twice."""
    found = list(zip(graph.receiver.tolist(), graph.sender.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


def ways(plain):
    """{(receiver, sender): distance from sender to receiver}."""
    lengths = dict(nx.all_pairs_shortest_path_length(plain))
    return {(to, of): length for of, row in lengths.items() for to, length in row.items() if to != of}


@pytest.mark.parametrize("directed", [False, True])
def test_hops_and_distances(directed):
    plain = nx.gnp_random_graph(25, 0.06, seed=3, directed=directed)
    plain.add_edge(2, 2)  # a loop is no link
    graph = from_networkx(plain)[0]
    length = ways(plain)
    for hops in (1, 2, 3, 9):
        assert pairs(k_hop(graph, hops)) == {pair for pair, one in length.items() if one <= hops}
    for chosen in ({2}, {1, 3}, {1, 2, 4}):
        assert pairs(at_distances(graph, chosen)) == {pair for pair, one in length.items() if one in chosen}


def test_the_direction_of_a_path_is_kept():
    graph = Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    assert pairs(at_distances(graph, {2})) == {(2, 0)}, "node 2 hears node 0, and not the other way"


def two_rings():
    one, other = (from_networkx(nx.cycle_graph(size))[0] for size in (12, 7))
    return batch([one, other])


def test_links_stay_in_their_graphs():
    graph = two_rings()
    generator = torch.Generator().manual_seed(0)
    for linked in (
        k_hop(graph, 3),
        at_distances(graph, {1, 3}),
        random_links(graph, 2.0, generator=generator),
        global_links(graph, torch.tensor([3, 14])),
    ):
        assert linked.pointer.tolist() == [0, 12, 19]  # checked by Graph: no edge leaves its graph
        _ = pairs(linked)
        assert not (linked.sender == linked.receiver).any()


def test_random_links_are_new_undirected_and_of_the_asked_number():
    graph = two_rings()
    linked = random_links(graph, 0.5, generator=torch.Generator().manual_seed(1))
    new = pairs(linked) - pairs(graph)
    assert len(new) == 2 * round(0.5 * 19) and {(of, to) for to, of in new} == new
    again = random_links(graph, 0.5, generator=torch.Generator().manual_seed(1))
    assert pairs(again) == pairs(linked)
    assert pairs(random_links(graph, 0.0, generator=torch.Generator())) == pairs(graph)
    full = from_networkx(nx.complete_graph(4))[0]
    assert pairs(random_links(full, 1.0, generator=torch.Generator())) == pairs(full), "no room for new ones"


def test_random_links_know_those_of_one_direction():
    ends = [(high, low) for low in range(8) for high in range(low + 1, 8) if (low, high) != (2, 5)]
    graph = Graph.from_edge_index(torch.tensor(ends).T, num_nodes=8)
    linked = random_links(graph, 0.1, generator=torch.Generator().manual_seed(0))
    assert pairs(linked) - pairs(graph) == {(2, 5), (5, 2)}, "all others are there, from the higher node"


def test_global_links_keep_loops_and_equal_edges():
    graph = Graph.from_edge_index(torch.tensor([[2, 1, 1, 0], [2, 2, 2, 1]]), num_nodes=3)
    linked = global_links(graph, torch.tensor([1]))
    expected = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 1), (2, 2)]
    assert list(zip(linked.receiver.tolist(), linked.sender.tolist(), strict=True)) == expected


def test_global_nodes_see_and_are_seen_by_all_of_their_graph():
    graph = two_rings()
    linked = pairs(global_links(graph, torch.tensor([3, 14, 15])))
    expected = pairs(graph)
    for hub, mine in ((3, range(12)), (14, range(12, 19)), (15, range(12, 19))):
        expected |= {pair for node in mine if node != hub for pair in ((node, hub), (hub, node))}
    assert linked == expected
    with pytest.raises(ValueError, match=r"nodes must be in 0 \.\. 18, got 3 \.\. 19"):
        global_links(graph, torch.tensor([3, 19]))


def test_farthest_points_are_spread():
    line = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [5.5]])
    assert farthest_points(line, 4).tolist() == [0, 4, 5, 2]
    with pytest.raises(ValueError, match=r"count must be 1 \.\. 6, the number of points, got 7"):
        farthest_points(line, 7)
    assert sorted(farthest_points(torch.ones(3, 2), 3).tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"first must be 0 \.\. 5, one of the points, got 6"):
        farthest_points(line, 2, first=6)


def test_locality_order_brings_neighbours_together():
    plain = nx.grid_2d_graph(12, 12)
    order = np.random.default_rng(0).permutation(144)
    plain = nx.relabel_nodes(plain, {node: int(at) for node, at in zip(plain, order, strict=True)})
    graph = from_networkx(nx.Graph(sorted(plain.edges)))[0]
    found = locality_order(graph)
    assert sorted(found.tolist()) == list(range(144))
    matrix = to_scipy(graph).toarray()[np.ix_(found, found)]
    assert locality_order(Graph.from_edge_index([[], []], num_nodes=0)).shape == (0,)
    rows, columns = np.nonzero(matrix)
    before = (graph.sender - graph.receiver).abs().double().mean()
    assert np.abs(rows - columns).max() <= 13 and before > 30


def test_wrong_numbers():
    graph = two_rings()
    with pytest.raises(ValueError, match="hops must be 1 or more, got 0"):
        k_hop(graph, 0)
    with pytest.raises(
        ValueError, match=r"distances must be whole numbers from 1 on, at least one, got \[0, 2\]"
    ):
        at_distances(graph, {2, 0})
    with pytest.raises(ValueError, match="fraction must be finite and not negative, got -1"):
        random_links(graph, -1.0, generator=torch.Generator())
    with pytest.raises(ValueError, match="fraction must be finite and not negative, got inf"):
        random_links(graph, float("inf"), generator=torch.Generator())
    with pytest.raises(ValueError, match=r"distances must be whole numbers from 1 on.*got \[1\.5\]"):
        at_distances(graph, iter([1.5]))
    with pytest.raises(TypeError, match=r"nodes must be int64 \(s,\), got torch.float32 \(1,\)"):
        global_links(graph, torch.tensor([1.0]))
