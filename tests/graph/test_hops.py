"""Who is joined with whom, and averages over it, against dense matrices."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from attlas.graph import Graph, adjacency, average, hop_features


def messy(nodes: int = 9, edges: int = 30, seed: int = 0) -> Graph:
    """Equal edges, loops, edges one way and both, an isolated node at the end."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    ends = torch.cat([ends, ends[:, :5], torch.tensor([[2, 3], [2, 3]])], 1)
    return Graph.from_edge_index(ends, num_nodes=nodes)


def joined(graph: Graph) -> np.ndarray:
    matrix = np.zeros((graph.nodes, graph.nodes), dtype=bool)
    matrix[graph.sender, graph.receiver] = True
    matrix |= matrix.T
    np.fill_diagonal(matrix, False)
    return matrix


def test_rows_hold_every_neighbour_once_in_rising_order():
    for seed in range(5):
        graph = messy(seed=seed)
        pointer, other = adjacency(graph)
        rows = [other[a:b].tolist() for a, b in pairwise(pointer)]
        assert rows == [np.flatnonzero(row).tolist() for row in joined(graph)]
    assert adjacency(graph) is adjacency(graph), "found once"
    assert adjacency(graph.replace(edge_attr=torch.zeros(graph.edges, 1))) is not adjacency(graph)


def test_ranges_of_rows_are_put_together(monkeypatch):
    monkeypatch.setattr("attlas.graph.hops.ROWS", 4)
    pointer, other = adjacency(messy(20, 60))
    rows = [other[a:b].tolist() for a, b in pairwise(pointer)]
    assert rows == [np.flatnonzero(row).tolist() for row in joined(messy(20, 60))]


def test_nothing_to_join():
    pointer, other = adjacency(Graph.from_edge_index([[0, 1], [0, 1]], num_nodes=3))
    assert pointer.tolist() == [0, 0, 0, 0] and other.numel() == 0
    assert adjacency(Graph.from_edge_index([[], []], num_nodes=0)).pointer.tolist() == [0]
    x = torch.randn(3, 2)
    assert torch.equal(average(Graph.from_edge_index([[0], [0]], num_nodes=3), x), x)


def test_averages_are_differentiable_and_the_same_for_any_number_of_threads():
    graph = messy()
    matrix = joined(graph) + np.eye(9)
    root = matrix.sum(1) ** -0.5
    wanted = root[:, None] * matrix * root
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    assert np.allclose(average(graph, x).detach(), wanted @ x.detach().numpy(), atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: average(graph, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: average(graph, x) ** 2, (x,))
    assert average(graph, x.detach().bfloat16()).dtype == torch.bfloat16
    big = Graph.from_edge_index(torch.randint(0, 20_000, (2, 60_000)), num_nodes=20_000)
    y, before = torch.randn(20_000, 3), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(hop_features(big, y, 2)[2])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_what_is_no_row_per_node_is_refused():
    with pytest.raises(ValueError, match=r"x must be \(9, channels\), one row per node, got \(8, 2\)"):
        average(messy(), torch.zeros(8, 2))
    with pytest.raises(ValueError, match="a bipartite graph has senders and receivers, not nodes"):
        adjacency(Graph.from_edge_index([[0], [0]], num_nodes=2, num_receivers=1))
