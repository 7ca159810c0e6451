"""Samples: lists and draws against dense matrices, even chances, neighbourhoods, repeatability."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import attlas.graph.sample as module
from attlas.graph import Graph, NeighbourLoader, batch, sample_hops, sample_neighbours
from graph.test_hops import joined, messy


def lists(graph: Graph, hops: int) -> list[list[int]]:
    """N1 ++ N2 ++ ... of every node, out of powers of the dense adjacency."""
    matrix = joined(graph).astype(int)
    powers = [np.linalg.matrix_power(matrix, hop) > 0 for hop in range(1, hops + 1)]
    return [[int(k) for power in powers for k in np.flatnonzero(power[i])] for i in range(graph.nodes)]


def star_and_ring() -> Graph:
    """Node 0 is joined with 1 .. 12, which form a ring: many ways lead to the same ends."""
    ring = list(range(1, 13))
    sender = [0] * 12 + ring
    return Graph.from_edge_index([sender, ring + ring[1:] + ring[:1]], num_nodes=13)


@pytest.mark.parametrize("limit", [module.WAYS, 0])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_row_draws_the_list_without_replacement_or_repeats_it(monkeypatch, hops, limit):
    monkeypatch.setattr(module, "WAYS", limit)
    graph = messy(16, 24)
    for count in (1, 4, 40):
        table = sample_hops(graph, count, hops=hops, seed=3).tolist()
        for row, listed in zip(table, lists(graph, hops), strict=True):
            if not listed:
                assert all(0 <= node < 16 for node in row)
                continue
            drawn, whole = Counter(row), Counter(listed)
            if len(listed) >= count:
                assert drawn <= whole
            else:
                once = row[: len(listed)]
                assert Counter(once) == whole, "each entry once before any twice"
                assert row == [once[place % len(listed)] for place in range(count)]


@pytest.mark.parametrize("limit", [module.WAYS, 0])
def test_every_entry_of_the_list_is_drawn_with_the_same_chance(monkeypatch, limit):
    monkeypatch.setattr(module, "WAYS", limit)
    graph = star_and_ring()
    for node in (0, 1):
        listed = lists(graph, 2)[node]
        one, pairs = Counter(), Counter()
        for seed in range(4000):
            row = sample_hops(graph, 3, nodes=torch.tensor([node]), seed=seed)[0].tolist()
            one.update(row)
            pairs[row[0] == row[1]] += 1
        times = Counter(listed)
        assert set(one) == set(times)
        wanted = [12_000 * times[k] / len(listed) for k in times]
        assert chisquare([one[k] for k in times], wanted).pvalue > 1e-3
        # A node that stands in both hops may be drawn twice: as often as two entries of the list are equal.
        equal = sum(m * (m - 1) for m in times.values()) / (len(listed) * (len(listed) - 1))
        assert abs(pairs[True] / 4000 - equal) < 4 * (equal / 4000) ** 0.5


def test_listing_takes_over_where_drawing_ways_takes_too_long():
    # A complete bipartite graph: 400 ways lead to each of 400 ends, so that one in 400 is kept.
    sides = torch.cartesian_prod(torch.arange(400), torch.arange(400, 800)).T
    graph = Graph.from_edge_index(sides, num_nodes=800)
    row = sample_hops(graph, 700, nodes=torch.tensor([0]))[0]
    assert row.unique().numel() == 700


def test_nodes_are_sampled_alike_in_any_company_and_by_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    graph = Graph.from_edge_index(torch.randint(0, 3000, (2, 9000), generator=generator), num_nodes=3000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sample_hops(graph, 6, seed=5)
        torch.set_num_threads(3)
        assert torch.equal(one, sample_hops(graph, 6, seed=5))
        some = torch.tensor([7, 2999, 7, 0])
        assert torch.equal(one[some], sample_hops(graph, 6, nodes=some, seed=5))
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(one, sample_hops(graph, 6, seed=6))


def test_a_node_without_neighbours_draws_from_its_own_graph():
    graph = batch([messy(), messy(seed=1), messy(seed=2)])
    table = sample_hops(graph, 200)
    for part in range(3):
        drawn = table[9 * part + 8]
        assert set(drawn.tolist()) == set(range(9 * part, 9 * part + 9))


def edges_of(found) -> list[tuple[int, int]]:
    ends = found.nodes[found.graph.edge_index]
    return list(zip(*ends.tolist(), strict=True))


def test_with_all_edges_it_is_the_neighbourhood():
    graph = messy(20, 25)
    seeds = torch.tensor([4, 1])
    for hops in (1, 2, 3):
        found = sample_neighbours(graph, seeds, [-1] * hops)
        known, last, edges = {4, 1}, {4, 1}, Counter()
        for _ in range(hops):
            into = [e for e in range(graph.edges) if int(graph.receiver[e]) in last]
            edges.update(into)
            last = {int(graph.sender[e]) for e in into} - known
            known |= last
        assert found.nodes[:2].tolist() == [4, 1] and found.seeds == 2
        assert set(found.nodes.tolist()) == known and len(known) == len(found.nodes) == found.hops[-1]
        assert Counter(found.edges.tolist()) == edges
        assert edges_of(found) == list(
            zip(graph.sender[found.edges].tolist(), graph.receiver[found.edges].tolist(), strict=True)
        )


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("replace", [False, True])
def test_so_many_edges_are_drawn_and_none_twice_without_replacement(count, replace):
    generator = torch.Generator().manual_seed(1)
    graph = Graph.from_edge_index(torch.randint(0, 30, (2, 1500), generator=generator), num_nodes=31)
    found = sample_neighbours(graph, torch.arange(31), [count], replace=replace, seed=2)
    drawn = found.graph.in_degree[:31]
    wanted = (graph.in_degree > 0) * count if replace else graph.in_degree.clamp(max=count)
    assert torch.equal(drawn, wanted)
    assert (found.edges.unique().numel() == found.edges.numel()) is not replace or count == 1


@pytest.mark.parametrize(("count", "replace"), [(5, False), (33, False), (5, True)])
def test_every_edge_is_drawn_with_the_same_chance(count, replace):
    graph = Graph.from_edge_index([list(range(1, 41)), [0] * 40], num_nodes=41)
    drawn = torch.cat([
        sample_neighbours(graph, torch.tensor([0]), [count], replace=replace, seed=seed).edges
        for seed in range(600)
    ])  # fmt: skip
    assert chisquare(drawn.bincount(minlength=40)).pvalue > 1e-3


def test_a_fanout_above_all_degrees_takes_no_more_memory():
    graph = star_and_ring()
    found = sample_neighbours(graph, torch.tensor([0]), [10**12])
    assert found.edges.sort().values.tolist() == (graph.receiver == 0).nonzero()[:, 0].tolist()


def test_features_and_types_come_along():
    graph = messy().replace(edge_attr=torch.randn(37, 2), edge_type=torch.arange(37))
    found = sample_neighbours(graph, torch.tensor([0, 5]), [2, 2])
    assert torch.equal(found.graph.edge_attr, graph.edge_attr[found.edges])
    assert torch.equal(found.graph.edge_type, found.edges)


def test_a_loader_goes_through_every_node_and_repeats_itself_for_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    graph = Graph.from_edge_index(torch.randint(0, 500, (2, 4000), generator=generator), num_nodes=500)
    nodes = torch.arange(0, 500, 2)
    before, epochs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loader = NeighbourLoader(graph, nodes, [3, 2], batch=64, seed=9)
            epochs.append([[(one.nodes, one.edges) for one in loader] for _ in range(2)])
    finally:
        torch.set_num_threads(before)
    assert len(loader) == len(epochs[0][0]) == 4
    for first, second in zip(*epochs, strict=True):
        for one, other in zip(first, second, strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    seeds = [torch.cat([nodes[: 64 if b < 3 else 58] for b, (nodes, _) in enumerate(e)]) for e in epochs[0]]
    assert all(torch.equal(one.sort().values, nodes) for one in seeds) and not torch.equal(*seeds)
    loader.epoch = 1
    again = next(iter(loader))
    assert torch.equal(again.edges, epochs[0][1][0][1])
    plain = NeighbourLoader(graph, nodes, [1], batch=100, shuffle=False)
    assert torch.equal(next(iter(plain)).nodes[:100], nodes[:100])


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda g: sample_hops(g, 0), "count and hops must be 1 or more, got 0 and 2"),
        (lambda g: sample_hops(g, 1, nodes=torch.tensor([9])), r"nodes must be in 0 .. 8, got 9 .. 9"),
        (lambda g: sample_hops(g, 1, nodes=torch.zeros(2)), r"nodes must be int64 \(N,\), got torch.float32"),
        (lambda g: sample_neighbours(g, torch.tensor([1, 1]), [2]), "must name each node once"),
        (lambda g: sample_neighbours(g, torch.tensor([1]), []), r"edges per node for each hop .* got \(\)"),
        (lambda g: sample_neighbours(g, torch.tensor([1]), [-2]), r"\(-1: all\), got \(-2,\)"),
        (
            lambda g: NeighbourLoader(g, torch.tensor([1]), [2], batch=0),
            "batch must be 1 node or more, got 0",
        ),
    ],
)
def test_errors_say_what_was_expected(run, words):
    with pytest.raises(ValueError, match=words):
        run(messy())


def test_a_batch_draws_what_each_graph_draws_alone():
    parts = [messy(), messy(12, 20, seed=1), messy(7, 9, seed=2)]
    table = sample_hops(batch(parts), 5)
    starts = (0, 9, 21)
    alone = [sample_hops(part, 5) + start for part, start in zip(parts, starts, strict=True)]
    assert torch.equal(table, torch.cat(alone))
