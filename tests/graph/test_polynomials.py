"""Polynomials against the sum over all tuples of nodes in exact integers, and copies against NetworkX."""

import itertools
import tracemalloc

import networkx
import numpy as np
import pytest
import torch

from attlas.graph import Graph, batch, from_networkx, to_scipy
from attlas.graph.motif import Motif, clique, cycle, motifs, path
from attlas.graph.polynomials import count_all, homomorphisms, motif_features
from attlas.graph.subgraph_counts import injective, injective_terms, quotients, subgraph_counts

TAILED = Motif(4, ((0, 1), (1, 2), (0, 2), (2, 3)))
DIAMOND = Motif(4, ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2)))


def brute(motif, matrix, different=False):
    """The definition: every map of the vertices to the nodes, in Python's integers."""
    n = len(matrix)
    out = np.zeros((n,) * len(motif.red), dtype=object)
    for j in itertools.product(range(n), repeat=motif.vertices):
        if different and len(set(j)) < len(j):
            continue
        product = 1
        for r, s in motif.edges:
            product *= int(matrix[j[r], j[s]])
        out[tuple(j[v] for v in motif.red)] += product
    return out.astype(np.int64) if out.shape else np.int64(out[()])


def symmetric(n, seed, low=-2, high=3):
    drawn = np.random.default_rng(seed).integers(low, high, (n, n))
    return drawn + drawn.T


def few(found, step):
    return [one for one in found if one.vertices <= 4][::step]


@pytest.mark.parametrize("red", [0, 1, 2])
@pytest.mark.parametrize("counted", [homomorphisms, injective])
def test_values_of_any_symmetric_matrix(red, counted):
    matrix = symmetric(4, 1)
    assert matrix.diagonal().any()  # loops have values
    for motif in few(motifs(4, red=red, simple=False, connected=False), 17):
        found = counted(motif, torch.from_numpy(matrix))
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found.numpy(), brute(motif, matrix, counted is injective))


@pytest.mark.parametrize("red", [0, 1, 2])
def test_directions_of_a_matrix_that_is_not_symmetric(red):
    matrix = np.random.default_rng(2).integers(-2, 3, (4, 4))
    for motif in few(motifs(3, red=red, simple=False, connected=False, directed=True), 8):
        found = homomorphisms(motif, torch.from_numpy(matrix)).numpy()
        np.testing.assert_array_equal(found, brute(motif, matrix))


PRISM = Motif(6, (*cycle(3).edges, (3, 4), (4, 5), (3, 5), (0, 3), (1, 4), (2, 5)))
WITHOUT = Motif(4, ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))  # K4 without an edge
HUNG = Motif(5, (*clique(4).edges, (3, 4)))  # K4 and an edge more
WIDE = [
    clique(4), clique(4, 0), clique(4, 1, 0), clique(5), WITHOUT.rooted(0, 1), WITHOUT.rooted(1, 0),
    HUNG.rooted(4), HUNG.rooted(4, 0), HUNG.rooted(0, 3), PRISM, PRISM.rooted(0), PRISM.rooted(0, 4),
]  # fmt: skip


@pytest.mark.parametrize("motif", WIDE, ids=str)
def test_beyond_matrix_products_a_vertex_is_fixed(motif):
    matrix = symmetric(3, 3, 0, 2)
    np.testing.assert_array_equal(
        homomorphisms(motif, torch.from_numpy(matrix)).numpy(), brute(motif, matrix)
    )
    graph, _ = from_networkx(networkx.gnp_random_graph(5, 0.9, seed=1))
    wanted = brute(motif, to_scipy(graph).toarray())
    if len(motif.red) == 2:
        wanted = wanted[graph.receiver.numpy(), graph.sender.numpy()]
    np.testing.assert_array_equal(homomorphisms(motif, graph).numpy(), np.atleast_1d(wanted))


def test_a_directed_graph_s_edges_are_entries_of_receiver_and_sender():
    graph = Graph.from_edge_index([[0, 1, 1, 2, 2, 3], [1, 2, 2, 0, 2, 0]], num_nodes=4)
    matrix = to_scipy(graph).toarray()  # two equal edges, a loop
    for motif in (
        Motif(2, ((0, 1),), (0,), True),
        Motif(3, ((0, 1), (1, 2), (2, 0)), (0,), True),
        Motif(3, ((0, 1), (1, 2)), (0, 2), True),
        Motif(3, ((0, 1), (1, 2), (0, 2)), (0, 2), True),
        Motif(2, ((0, 0),), (0, 1), True),
    ):
        wanted = brute(motif, matrix)
        if len(motif.red) == 2:
            wanted = wanted[graph.receiver.numpy(), graph.sender.numpy()]
        np.testing.assert_array_equal(homomorphisms(motif, graph).numpy(), wanted)
    # The first red vertex stands at the receiver.
    assert homomorphisms(Motif(2, ((0, 1),), (0,), True), graph).tolist() == [2, 1, 3, 0]
    with pytest.raises(ValueError, match=r"has no directions, but X is not symmetric: give Motif\(..., dir"):
        homomorphisms(path(1), graph)


def test_weights_of_edges_are_real_and_have_no_limit():
    graph, _ = from_networkx(networkx.cycle_graph(3))
    weights = torch.full((6,), 0.5, dtype=torch.float64)
    found = homomorphisms(cycle(3, 0), graph, weights=weights)
    torch.testing.assert_close(found, torch.full((3,), 2 * 0.125, dtype=torch.float64))
    assert homomorphisms(cycle(3), graph, weights=torch.full((6,), 2)).tolist() == [6 * 8]
    big = torch.full((3, 3), 10**5)
    with pytest.raises(ValueError, match=r"counts reach .*2\^53 or more, where float64 is no longer exact"):
        homomorphisms(cycle(4), big)
    approximate = homomorphisms(cycle(4), big.double())
    torch.testing.assert_close(approximate, torch.tensor(81e20, dtype=torch.float64))


def test_integers_that_cancel_or_are_too_large_are_refused_too():
    large = 2**27
    x = torch.zeros(4, 4, dtype=torch.int64)
    for i, j, value in ((0, 2, large + 1), (2, 1, large + 1), (0, 3, -large), (3, 1, large)):
        x[i, j] = x[j, i] = value
    two_steps = Motif(3, ((0, 1), (1, 2)), (0, 2))
    with pytest.raises(ValueError, match=r"counts reach .*2\^53 or more"):
        homomorphisms(two_steps, x)  # (large + 1)^2 - large^2: both are rounded before they cancel
    small = torch.where(x.abs() > 0, x.sign() * 3, 0)
    assert torch.equal(homomorphisms(two_steps, small), small @ small)
    loop = Motif(1, ((0, 0),), (0,))
    with pytest.raises(ValueError, match=r"2\^53 or more"):
        homomorphisms(loop, torch.tensor([[2**53 + 1]]))
    ends = Graph.from_edge_index([[0], [0]])
    with pytest.raises(ValueError, match=r"2\^53 or more"):
        homomorphisms(loop, ends, weights=torch.tensor([-(2**53) - 1]))


def test_a_motif_with_a_loop_has_no_copy_where_there_are_none():
    graph = Graph.from_edge_index([[0, 1], [1, 0]])
    assert injective(Motif(1, ((0, 0),), (0,)), graph).tolist() == [0, 0]
    assert injective(Motif(2, ((0, 0), (0, 1)), ()), graph).tolist() == [0]


def test_a_batch_is_counted_graph_by_graph():
    nets = [networkx.gnp_random_graph(n, 0.6, seed=n) for n in (5, 1, 7)]
    parts = [from_networkx(net)[0] for net in nets]
    together = batch([*parts, Graph.from_edge_index([], num_nodes=0)])
    apart = Motif(
        6, (*cycle(3).edges, (3, 4)), (4,)
    )  # a triangle anywhere, an edge at the node, a lone vertex
    for motif in (cycle(3), cycle(3, 0), clique(4, 0, 1), apart, Motif(3, ((0, 1),), (2,))):
        alone = [homomorphisms(motif, part) for part in parts]
        found = homomorphisms(motif, together)
        wanted = torch.cat([one.reshape(-1) for one in alone])
        assert torch.equal(found[: len(wanted)], wanted) and not found[len(wanted) :].any()


def test_copies_are_those_that_networkx_finds():
    net = networkx.gnp_random_graph(14, 0.45, seed=5)
    graph, _ = from_networkx(net)
    triangles = networkx.triangles(net)
    assert subgraph_counts(cycle(3, 0), graph).tolist() == [triangles[v] for v in range(14)]
    sizes = [len(one) for one in networkx.enumerate_all_cliques(net)]
    for size in (3, 4, 5):
        assert subgraph_counts(clique(size), graph).tolist() == [sizes.count(size)]
    cycles = [len(one) for one in networkx.simple_cycles(net, length_bound=5)]
    for size in (4, 5):
        assert subgraph_counts(cycle(size), graph).tolist() == [cycles.count(size)]
    # A tail at every triangle's corner, a diamond for every two triangles on an edge.
    tails = sum(triangles[v] * (net.degree[v] - 2) for v in net)
    common = [len(list(networkx.common_neighbors(net, a, b))) for a, b in net.edges]
    assert subgraph_counts(TAILED, graph).tolist() == [tails]
    assert subgraph_counts(DIAMOND, graph).tolist() == [sum(c * (c - 1) // 2 for c in common)]


def test_homomorphisms_of_the_cycle_are_traces_and_count_walks():
    net = networkx.gnp_random_graph(9, 0.4, seed=3)
    graph, _ = from_networkx(net)
    adjacency = np.rint(networkx.to_numpy_array(net)).astype(np.int64)
    fourth = np.linalg.matrix_power(adjacency, 4)
    assert homomorphisms(cycle(4), graph).tolist() == [int(np.trace(fourth))]
    assert homomorphisms(cycle(4, 0), graph).tolist() == fourth.diagonal().tolist()
    assert int(np.trace(fourth)) > 8 * int(subgraph_counts(cycle(4), graph))
    third = np.linalg.matrix_power(adjacency, 3)
    assert homomorphisms(cycle(3, 0), graph).tolist() == third.diagonal().tolist()


def test_the_two_bases_are_inverse():
    for motif in (cycle(4), path(3, 0), TAILED.rooted(2, 3), Motif(3, ((0, 1), (0, 1), (1, 2)))):
        back = {}
        for one, factor in quotients(motif).items():
            for inner, other in injective_terms(one).items():
                back[inner] = back.get(inner, 0) + factor * other
        assert {one: c for one, c in back.items() if c} == {motif.canonical: 1}
    assert dict(injective_terms(cycle(3), loops=False)) == {cycle(3).canonical: 1}


def strongly_regular():
    """The 4x4 rook's graph and the Shrikhande graph: 16 nodes, degree 6, 2 common neighbours of any two."""
    rook = networkx.line_graph(networkx.complete_bipartite_graph(4, 4))
    steps = [(0, 1), (1, 0), (1, 1)]
    shrikhande = networkx.Graph(
        ((a, b), ((a + x) % 4, (b + y) % 4)) for a in range(4) for b in range(4) for x, y in steps
    )
    return from_networkx(rook)[0], from_networkx(shrikhande)[0]


def test_strongly_regular_graphs_differ_in_k4_alone():
    small = motifs(6)
    counts = [count_all(small, graph) for graph in strongly_regular()]
    differ = [one for one, a, b in zip(small, *counts, strict=True) if not torch.equal(a, b)]
    assert differ == [clique(4).canonical]
    assert [int(subgraph_counts(clique(4), graph)) for graph in strongly_regular()] == [8, 0]


def test_features_are_logarithms_and_follow_the_nodes():
    net = networkx.gnp_random_graph(10, 0.5, seed=8)
    graph, _ = from_networkx(net)
    chosen = [cycle(3, 0), cycle(4, 0), cycle(5, 0), clique(4, 0)]
    found = motif_features(graph, chosen, dtype=torch.float64)
    for column, motif in enumerate(chosen):
        torch.testing.assert_close(found[:, column], homomorphisms(motif, graph).double().add(1).log())
    number = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    moved = Graph.from_edge_index(number[graph.edge_index], num_nodes=10)
    torch.testing.assert_close(motif_features(moved, chosen, dtype=torch.float64)[number], found)
    assert motif_features(graph, []).shape == (10, 0)
    with pytest.raises(ValueError, match=r"a motif needs one red vertex, the node, got \[0-1 0-2 1-2\]"):
        motif_features(graph, [cycle(3)])


def test_products_are_shared(monkeypatch):
    from attlas.graph import tensor_network

    made = []
    was = tensor_network.scaled
    monkeypatch.setattr(tensor_network, "scaled", lambda *given: made.append(1) or was(*given))
    graph, _ = from_networkx(networkx.gnp_random_graph(9, 0.4, seed=3))
    count_all([cycle(4, 0), cycle(4), cycle(4, 0, 1), path(2, 0, 2)], graph)
    together = len(made)
    made.clear()
    for motif in (cycle(4, 0), cycle(4), cycle(4, 0, 1), path(2, 0, 2)):
        homomorphisms(motif, graph)
    assert together < len(made)


def test_a_large_sparse_graph_needs_no_matrix_of_all_pairs():
    graph, _ = from_networkx(networkx.random_regular_graph(4, 3000, seed=0))
    tracemalloc.start()
    found = count_all([path(5, 0), cycle(3, 0), cycle(5, 0), clique(4, 0), clique(4, 0, 1)], graph)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3000**2 * 8 / 2  # half of one dense matrix
    assert found[0].unique().tolist() == [4**5]


def test_what_is_wrong_is_said():
    graph, _ = from_networkx(networkx.path_graph(3))
    for run, text in (
        (
            lambda: homomorphisms(path(1), torch.zeros(2, 3)),
            r"a Graph or a square matrix .*got \(2, 3\)",
        ),
        (lambda: homomorphisms(path(1), torch.eye(2), weights=torch.ones(2)), r"\(weights= is for graphs\)"),
        (lambda: homomorphisms(path(1), graph, weights=torch.ones(3)), r"one number for each of 4 edges"),
        (lambda: injective_terms(path(9)), r"at most 9 vertices can be partitioned, got 10"),
        (lambda: subgraph_counts(path(1), Graph.from_edge_index([[0, 0, 1, 1], [1, 1, 0, 0]])), r"coalesce"),
    ):
        with pytest.raises(ValueError, match=text):
            run()
