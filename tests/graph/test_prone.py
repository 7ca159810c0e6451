"""ProNE against dense matrices, and what it says about communities."""

import sys

import numpy as np
import pytest
import torch
from scipy.special import iv

from attlas.graph import Graph, prone
from graph.test_hops import joined


def communities(size: int = 20, parts: int = 3) -> Graph:
    generator = torch.Generator().manual_seed(0)
    nodes = size * parts
    ends = torch.randint(0, nodes, (2, 12 * nodes), generator=generator)
    inside = ends[0] // size == ends[1] // size
    kept = inside | (torch.rand(inside.shape, generator=generator) < 0.05)
    return Graph.from_edge_index(ends[:, kept], num_nodes=nodes + 1)  # the last one is isolated


def test_it_is_the_definition_in_dense_matrices(monkeypatch):
    monkeypatch.setattr(
        sys.modules["attlas.graph.prone"], "SPARE", 1000
    )  # all columns: the range is found exactly
    graph, width = communities(), 4
    matrix = joined(graph).astype(float)
    degree = matrix.sum(1)
    chance = matrix / np.maximum(degree, 1)[:, None]
    column = chance.sum(0) ** 0.75
    share = column / column.sum()
    logs = np.zeros_like(matrix)
    for i, j in zip(*np.nonzero(matrix), strict=True):
        logs[i, j] = np.log(chance[i, j]) - np.log(share[j])

    def scaled(x):
        left, values, _ = np.linalg.svd(x, full_matrices=False)
        found = left[:, :width] * np.sqrt(values[:width])
        norm = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(norm > 1e-9, norm, 1.0)

    looped = matrix + np.eye(len(matrix))
    shift = np.eye(len(matrix)) - looped / looped.sum(1, keepdims=True) - 0.2 * np.eye(len(matrix))
    square = shift @ shift
    start = scaled(logs)
    terms = [start, 0.5 * square @ start - start]
    while len(terms) < 10:
        terms.append(square @ terms[-1] - 2 * terms[-1] - terms[-2])
    total = sum((1 if t == 0 else 2) * (-1) ** t * iv(t, 0.5) * one for t, one in enumerate(terms))
    wanted = scaled(looped @ (start - total))
    found = prone(graph, width).double().numpy()
    # Signs, and bases of equal singular values, are free: what nodes have in common is not.
    assert np.allclose(found @ found.T, wanted @ wanted.T, atol=2e-3)
    assert not found[-1].any() and np.allclose(np.linalg.norm(found[:-1], axis=1), 1.0, atol=1e-5)


def test_nodes_of_a_community_are_near_each_other():
    found = prone(communities(), 3)[:-1]
    alike = found @ found.T
    same = torch.arange(60)[:, None] // 20 == torch.arange(60) // 20
    assert float(alike[same].mean()) > 0.8 > 0.5 > float(alike[~same].mean())
    assert torch.equal(found, prone(communities(), 3)[:-1])


def test_no_edges_and_wrong_widths():
    assert not prone(Graph.from_edge_index([[0], [0]], num_nodes=3), 2).any()
    with pytest.raises(ValueError, match="width must be 1 to 3, the number of nodes, got 4"):
        prone(Graph.from_edge_index([[0], [1]], num_nodes=3), 4)
