"""Kernels, roles and what is kept, against dense numpy on networkx's small graphs."""

import networkx
import numpy as np
import pytest
import torch

from attlas.graph import (
    Graph,
    batch,
    complete,
    electrostatic_statistics,
    from_networkx,
    heat_kernel_diagonals,
    laplacian_eigenvectors,
    random_walk_diagonals,
    size_buckets,
    subgraph,
    wl_roles,
)


def atlas() -> list[networkx.Graph]:
    """Every 40th graph of the atlas: up to 7 nodes, connected or not, some isolated."""
    return [graph for graph in networkx.graph_atlas_g()[1::40] if len(graph)]


def mixed() -> Graph:
    return batch([from_networkx(graph)[0] for graph in atlas()])


def by_graph(graph: Graph, x: torch.Tensor) -> list[np.ndarray]:
    return [part.numpy() for part in x.split(graph.pointer.diff().tolist())]


def test_heat_diagonals_are_those_of_the_matrix_exponential_without_its_constant_part() -> None:
    from scipy.linalg import expm

    graph, times = mixed(), (0.5, 1.0, 3.0)
    found = by_graph(graph, heat_kernel_diagonals(graph, times))
    for drawn, rows in zip(atlas(), found, strict=True):
        laplacian = networkx.laplacian_matrix(drawn).toarray().astype(float)
        constant = np.zeros(len(drawn))
        for nodes in networkx.connected_components(drawn):
            constant[sorted(nodes)] = 1 / len(nodes)
        for column, time in enumerate(times):
            assert np.allclose(rows[:, column], np.diag(expm(-time * laplacian)) - constant, atol=1e-10)


def test_electrostatic_numbers_are_those_of_the_pseudo_inverse() -> None:
    graph = mixed()
    for drawn, rows in zip(atlas(), by_graph(graph, electrostatic_statistics(graph)), strict=True):
        laplacian = networkx.laplacian_matrix(drawn).toarray().astype(float)
        inverse = np.linalg.pinv(laplacian, rcond=1e-9, hermitian=True)
        adjacency = networkx.to_numpy_array(drawn)
        for node in range(len(drawn)):
            column = [inverse[i, node] - inverse[node, node] for i in range(len(drawn))]
            row = [inverse[node, j] - inverse[j, j] for j in range(len(drawn))]
            wanted = []
            for numbers in (column, row):
                mean = sum(numbers) / len(numbers)
                squares = sum((number - mean) ** 2 for number in numbers)
                wanted += [min(numbers), max(numbers), mean, (squares / max(1, len(numbers) - 1)) ** 0.5]
            degree = adjacency.sum(1).clip(1)
            wanted.append(sum(adjacency[i, node] / degree[i] * column[i] for i in range(len(drawn))))
            wanted.append(sum(adjacency[node, j] / degree[node] * row[j] for j in range(len(drawn))))
            assert np.allclose(rows[node], wanted, atol=1e-10)


def test_a_long_path_has_small_eigenvalues_and_none_is_taken_for_zero() -> None:
    nodes = 400
    rows = heat_kernel_diagonals(from_networkx(networkx.path_graph(nodes))[0], (1e-6,))
    # Almost no time: all heat is still there but the constant part of one component.
    assert np.allclose(rows.numpy(), 1 - 1 / nodes, atol=1e-5)


def test_random_walks_and_eigenvectors_of_the_atlas() -> None:
    graph = mixed()
    walks = by_graph(graph, random_walk_diagonals(graph, 5))
    values, vectors = laplacian_eigenvectors(graph, 3, skip=0, fill=float("nan"))
    for drawn, rows, level, vector in zip(
        atlas(), walks, by_graph(graph, values), by_graph(graph, vectors), strict=True
    ):
        adjacency = networkx.to_numpy_array(drawn)
        degree = adjacency.sum(1).clip(1)
        walk = adjacency / degree[:, None]
        for step in range(5):
            wanted = np.diag(np.linalg.matrix_power(walk, step + 1))
            assert np.allclose(rows[:, step], wanted, atol=1e-10)
        matrix = np.eye(len(drawn)) - adjacency / np.sqrt(np.outer(degree, degree))
        kept = min(3, len(drawn))
        assert np.allclose(level[0, :kept], np.linalg.eigvalsh(matrix)[:kept], atol=1e-10)
        assert np.allclose(matrix @ vector[:, :kept], vector[:, :kept] * level[:, :kept], atol=1e-10)
        assert np.isnan(level[:, kept:]).all() and np.isnan(vector[:, kept:]).all()


def test_exactly_one_vector_is_dropped_also_in_pieces_and_small_graphs_are_filled() -> None:
    pieces = networkx.disjoint_union(networkx.path_graph(3), networkx.path_graph(2))
    values, vectors = laplacian_eigenvectors(from_networkx(pieces)[0], 6)
    wanted = np.linalg.eigvalsh(networkx.normalized_laplacian_matrix(pieces).toarray())[1:]
    assert np.allclose(values[0, :4], wanted, atol=1e-10) and wanted[0] == pytest.approx(0)
    assert vectors[:, 4:].abs().sum() == 0


def test_roles_are_the_classes_of_refinement() -> None:
    path = from_networkx(networkx.path_graph(6))[0]
    assert wl_roles(path, 0).tolist() == [0] * 6
    ends, inner = wl_roles(path, 1)[[0, 5]], wl_roles(path, 1)[1:5]
    assert len(set(ends.tolist())) == len(set(inner.tolist())) == 1 and ends[0] != inner[0]
    second = wl_roles(path, 2).tolist()
    assert second == second[::-1] and len(set(second)) == 3
    ring = from_networkx(networkx.cycle_graph(7))[0]
    assert wl_roles(ring, 5).tolist() == [0] * 7


def test_roles_follow_the_nodes_whatever_their_numbers() -> None:
    drawn = networkx.gnp_random_graph(12, 0.3, seed=4)
    graph = from_networkx(drawn)[0]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    renumbered, _ = subgraph(graph, order)
    assert torch.equal(wl_roles(renumbered), wl_roles(graph)[order])


def test_what_was_found_is_kept_with_the_graph() -> None:
    graph = from_networkx(networkx.path_graph(5))[0]
    first = heat_kernel_diagonals(graph, (1.0, 2.0))
    assert heat_kernel_diagonals(graph, [1.0, 2.0]) is first
    assert heat_kernel_diagonals(graph, (2.0, 1.0)) is not first
    assert laplacian_eigenvectors(graph, 2) is laplacian_eigenvectors(graph, count=2, skip=1)
    assert laplacian_eigenvectors(graph, 2, skip=0) is not laplacian_eigenvectors(graph, 2)
    assert heat_kernel_diagonals(graph.replace(), (1.0, 2.0)) is not first


def test_large_graphs_are_refused() -> None:
    large = Graph.from_edge_index([[0], [1]], num_nodes=10_001)
    for encode in (lambda: heat_kernel_diagonals(large, (1.0,)), lambda: electrostatic_statistics(large)):
        with pytest.raises(ValueError, match=r"10001 nodes has 100020001 pairs; pass large=True"):
            encode()
    with pytest.raises(ValueError, match="times must name at least one time"):
        heat_kernel_diagonals(large, ())
    with pytest.raises(ValueError, match="rounds must be 0 or more, got -1"):
        wl_roles(large, -1)


def test_complete_joins_every_two_nodes_of_a_graph_and_marks_its_edges() -> None:
    first = Graph.from_edge_index([[0, 0, 2, 1], [1, 1, 1, 1]], num_nodes=3)
    both = batch([first, Graph.from_edge_index([[], []], num_nodes=1), first])
    everyone, real = complete(both)
    edges = list(zip(everyone.receiver.tolist(), everyone.sender.tolist(), strict=True))
    part = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert edges == part + [(i + 4, j + 4) for i, j in part]
    assert real.tolist() == [pair in ((1, 0), (1, 2)) for pair in part] * 2
    assert everyone.pointer is both.pointer and complete(both)[0] is everyone


def test_buckets_hold_graphs_of_similar_size_and_lead_back() -> None:
    sizes = [1, 7, 0, 8, 3, 15, 4, 16, 2, 7]
    graph = batch([Graph.from_edge_index([[], []], num_nodes=size) for size in sizes])
    x = torch.randn(graph.nodes, 2)
    for equal in (False, True):
        buckets, place = size_buckets(graph, equal)
        shown = sorted(number for bucket in buckets for number in bucket.graphs.tolist())
        assert shown == [0, 1, 3, 4, 5, 6, 7, 8, 9]
        assert torch.equal(torch.cat([x[bucket.nodes][bucket.there] for bucket in buckets])[place], x)
        for bucket in buckets:
            counts = bucket.there.sum(1)
            assert counts.max() < 2 * counts.min() and bucket.there.shape[1] == counts.max()
            assert counts.tolist() == [sizes[number] for number in bucket.graphs]
            assert not equal or bool(bucket.there.all())
    assert len(size_buckets(graph)[0]) == 5


def test_graphs_without_nodes_have_no_rows():
    none, path = Graph.from_edge_index([], num_nodes=0), from_networkx(networkx.path_graph(4))[0]
    assert electrostatic_statistics(none).shape == (0, 10)
    assert torch.equal(electrostatic_statistics(batch([path, none])), electrostatic_statistics(path))
