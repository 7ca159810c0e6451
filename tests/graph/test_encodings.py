"""Encodings against dense matrices of small graphs, and networkx."""

import re

import networkx
import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from attlas.graph import (
    Graph,
    batch,
    electrostatic_statistics,
    encodings,
    flip_signs,
    from_networkx,
    hop_features,
    laplacian_eigenvectors,
    random_walk_diagonals,
    relative_random_walks,
    segment_reduce,
    shortest_paths,
    undirected,
)
from graph.test_graph import drawn


def dense(graph: Graph) -> np.ndarray:
    """Rows receive."""
    matrix = np.zeros((graph.nodes, graph.nodes))
    np.add.at(matrix, (graph.receiver.numpy(), graph.sender.numpy()), 1.0)
    return matrix


def ring(nodes: int) -> Graph:
    return from_networkx(networkx.cycle_graph(nodes))[0]


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_eigenvectors_solve_the_equation(
    monkeypatch: pytest.MonkeyPatch, normalised: bool, sparse: bool
) -> None:
    if sparse:
        monkeypatch.setattr(encodings, "DENSE", 0)
    graph = from_networkx(networkx.barbell_graph(9, 3))[0]
    adjacency = dense(graph)
    degree = adjacency.sum(1)
    laplacian = np.diag(degree) - adjacency
    if normalised:
        laplacian = laplacian / np.sqrt(np.outer(degree, degree))
    values, vectors = laplacian_eigenvectors(graph, 4, normalised=normalised)
    wanted = np.linalg.eigvalsh(laplacian)[1:5]
    assert np.allclose(values[0], wanted, atol=1e-8)
    assert np.allclose(laplacian @ vectors.numpy(), vectors.numpy() * wanted, atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=0), 1.0)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_graph_in_pieces_has_as_many_zeros(monkeypatch: pytest.MonkeyPatch, normalised: bool) -> None:
    pieces = networkx.disjoint_union_all([networkx.path_graph(7), networkx.cycle_graph(6)])
    pieces.add_nodes_from(range(13, 16))
    graph = from_networkx(pieces)[0]
    wanted, _ = laplacian_eigenvectors(graph, 8, skip=0, normalised=normalised)
    monkeypatch.setattr(encodings, "DENSE", 0)
    values, vectors = laplacian_eigenvectors(graph, 8, skip=0, normalised=normalised)
    assert torch.allclose(values, wanted, atol=1e-8)
    assert torch.allclose(vectors.T @ vectors, torch.eye(8, dtype=torch.float64), atol=1e-8)
    empty, _ = laplacian_eigenvectors(Graph.from_edge_index([[], []], num_nodes=30), 2, skip=0)
    assert empty.unique().tolist() == [1.0]  # isolated nodes count as degree 1


def test_each_graph_of_a_batch_has_its_own_and_small_ones_are_filled() -> None:
    graphs = [ring(5), ring(3), Graph.from_edge_index([[], []], num_nodes=1)]
    values, vectors = laplacian_eigenvectors(batch(graphs), 3, fill=7.0)
    alone, _ = laplacian_eigenvectors(graphs[0], 3)
    assert torch.allclose(values[:5], alone)
    assert (values[5:8, 2] == 7.0).all() and (vectors[8] == 7.0).all()
    none, _ = laplacian_eigenvectors(graphs[0], 3, skip=0)
    assert abs(float(none[0, 0])) < 1e-9


def test_a_batch_of_no_graphs_and_graphs_of_no_nodes() -> None:
    nothing = Graph.from_edge_index([[], []], num_nodes=0).replace(pointer=torch.tensor([0]))
    values, vectors = laplacian_eigenvectors(nothing, 2)
    assert values.shape == vectors.shape == (0, 2)
    assert electrostatic_statistics(nothing.replace(pointer=torch.tensor([0, 0]))).shape == (0, 10)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("alone", [0, 5000])
def test_equal_eigenvalues_of_a_long_ring_and_many_nodes_alone(normalised: bool, alone: int) -> None:
    nodes = torch.arange(600)
    graph = Graph.from_edge_index(torch.stack([nodes, (nodes + 1) % 600]), num_nodes=600 + alone)
    values, vectors = laplacian_eigenvectors(graph, 4, skip=0, normalised=normalised)
    wanted = (1 if normalised else 2) * (1 - np.cos(2 * np.pi / 600 * np.array([0, 1, 1, 2])))
    if alone and not normalised:
        wanted[:] = 0  # a node alone has 0, but 1 normalised
    assert np.allclose(values[0], wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64))
    turned = 2 * vectors[:600] - vectors[:600].roll(1, 0) - vectors[:600].roll(-1, 0)
    torch.testing.assert_close(turned, (2 if normalised else 1) * values[:600] * vectors[:600])


def test_a_solver_that_does_not_converge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise scipy.sparse.linalg.ArpackNoConvergence("no convergence", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(encodings, "DENSE", 0)
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", failing)
    with pytest.raises(RuntimeError, match="a component of 9 nodes is too long for the sparse solver"):
        laplacian_eigenvectors(ring(9), 2)


def test_signs_are_flipped_graph_by_graph() -> None:
    graph = batch([ring(4), ring(5)])
    ones = torch.ones(9, 6)
    flipped = flip_signs(ones, graph, torch.Generator().manual_seed(0))
    assert set(flipped.flatten().tolist()) == {-1.0, 1.0}
    assert (flipped[:4] == flipped[0]).all() and (flipped[4:] == flipped[4]).all()


def test_random_walks_are_powers_of_the_matrix() -> None:
    graph = drawn(11, 40)
    matrix = dense(graph)
    walk = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    diagonals = random_walk_diagonals(batch([graph, ring(4)]), 6)
    pairs = relative_random_walks(graph, 7)
    assert pairs.edge_attr is not None and pairs.edges == 121
    for power in range(7):
        wanted = np.linalg.matrix_power(walk, power)
        if power:
            assert np.allclose(diagonals[:11, power - 1], np.diag(wanted), atol=1e-12)
        got = pairs.edge_attr[:, power].numpy()
        assert np.allclose(got, wanted[pairs.receiver.numpy(), pairs.sender.numpy()], atol=1e-12)
    assert diagonals[11:, 1].tolist() == [0.5] * 4  # a ring: back after two steps
    assert random_walk_diagonals(Graph.from_edge_index([[], []], num_nodes=2), 3).sum() == 0


def test_ways_are_those_of_networkx_from_sender_to_receiver() -> None:
    given = networkx.gnp_random_graph(12, 0.12, seed=3, directed=True)
    graph, _ = from_networkx(given)
    pairs = shortest_paths(graph, 4)
    lengths = dict(networkx.all_pairs_shortest_path_length(given))
    assert pairs.edge_type is not None
    for a, b, got in zip(
        pairs.sender.tolist(), pairs.receiver.tolist(), pairs.edge_type.tolist(), strict=True
    ):
        assert got == min(lengths[a].get(b, 5), 4 if b in lengths[a] else 5)


def test_what_is_made_in_inference_mode_serves_training_too() -> None:
    graph = ring(5)
    with torch.inference_mode():
        chance = random_walk_diagonals(graph, 3)
        _ = graph.by_receiver, graph.by_sender, graph.in_degree, graph.graph_of
    assert random_walk_diagonals(graph, 3) is chance
    x = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    total = segment_reduce((x * chance)[graph.sender], graph.by_receiver)[graph.graph_of].sum()
    total.backward()
    assert x.grad is not None and x.grad.shape == (5, 3)


def test_hop_features_are_powers_of_the_normalised_adjacency() -> None:
    graph, _ = undirected(drawn(10, 14))
    matrix = (dense(graph) > 0).astype(float)
    np.fill_diagonal(matrix, 1.0)
    degree = matrix.sum(1)
    matrix /= np.sqrt(np.outer(degree, degree))
    x = torch.randn(10, 3, dtype=torch.float64)
    found = hop_features(graph, x, 2)
    for power, got in enumerate(found):
        assert np.allclose(got, np.linalg.matrix_power(matrix, power) @ x.numpy(), atol=1e-12)
    assert hop_features(graph, x.float(), 1)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda g: laplacian_eigenvectors(g, 0), "count must be 1 or more"),
        (lambda g: relative_random_walks(g, 0), "steps must be 1 or more"),
        (lambda g: shortest_paths(g, 0), "most must be 1 or more"),
        (lambda g: hop_features(g, torch.zeros(4, 1), -1), "hops must be 0 or more"),
    ],
)
def test_errors_say_what_was_expected(run: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        run(drawn(4, 6))  # type: ignore[operator]


def test_pairs_of_a_large_graph_are_made_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "LARGE", 5)
    for run in (random_walk_diagonals, relative_random_walks, shortest_paths):
        with pytest.raises(ValueError, match="a graph of 6 nodes has 36 pairs; pass large=True"):
            run(ring(6), 3)  # type: ignore[operator]
        run(ring(6), 3, large=True)  # type: ignore[operator]
