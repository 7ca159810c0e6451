"""Tasks whose answer stands far away, solved by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import csgraph

from attlas.graph import to_scipy, unbatch
from attlas.tasks import digit_neighbours, distant_hubs, ring_transfer, two_cliques


def distances(graph):
    return csgraph.shortest_path(to_scipy(graph).T, unweighted=True)


def test_the_opposite_node_has_the_answer():
    task = ring_transfer(3, 8, seed=0)
    ring = unbatch(task.graph)[1]
    away = distances(ring)
    assert (away.max(1) == 4).all() and ring.in_degree.unique().tolist() == [2]
    opposite = torch.from_numpy(away.argmax(1))
    classes = task.x[8:16, :5].argmax(1)
    assert torch.equal(task.labels[8:16], classes[opposite]) and task.asked.tolist() == list(range(24))


def test_one_source_carries_the_class():
    task = ring_transfer(4, 6, everywhere=False, seed=0)
    assert (task.x[:, :5].sum(1) > 0).nonzero()[:, 0].tolist() == [0, 6, 12, 18]
    assert torch.equal(task.x[::6, :5].argmax(1), task.labels)
    assert task.asked.tolist() == [3, 9, 15, 21] and (task.x[task.asked, 5] == 1).all()


def test_the_asking_node_is_in_the_other_clique():
    task = two_cliques(20, seed=0)
    carrier = task.x[:, 4].nonzero()[:, 0]
    assert torch.equal(task.x[carrier, :4].argmax(1), task.labels)
    assert torch.equal(task.x[:, 5].nonzero()[:, 0], task.asked)
    away = distances(unbatch(task.graph)[0])
    assert away.shape == (22, 22)
    far = [away[a % 22, c % 22] for a, c in zip(task.asked.tolist(), carrier.tolist(), strict=True)]
    assert min(far) >= 13 and max(far) <= 15 and len(set(task.labels.tolist())) == 4


def test_the_hub_with_the_key_has_the_value():
    task = distant_hubs(3, seed=0)
    assert task.graph.pointer.tolist() == [0, 100, 200, 300] and len(task.asked) == 3 * 96
    hubs = task.x[:, 4].nonzero()[:, 0]
    for node, label in zip(task.asked.tolist(), task.labels.tolist(), strict=True):
        own = hubs[hubs // 100 == node // 100]
        same = own[task.x[own, :4].argmax(1) == task.x[node, :4].argmax()]
        assert len(same) == 1 and task.x[same[0], 5:].argmax() == label
    away = distances(unbatch(task.graph)[0])
    assert away.max() < 1000 and away.max() >= 20


def test_digits_are_joined_with_near_ones():
    data = digit_neighbours(seed=0, rewired=0.0)
    assert data.graph.nodes == 1797 and data.x.shape == (1797, 64)
    same = data.labels[data.graph.sender] == data.labels[data.graph.receiver]
    assert same.float().mean() > 0.95
    moved = digit_neighbours(seed=0)
    assert torch.equal(moved.graph.in_degree, moved.graph.out_degree)
    same = moved.labels[moved.graph.sender] == moved.labels[moved.graph.receiver]
    assert 0.75 < same.float().mean() < 0.85


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="size must be even and 4 or more, got 7"):
        ring_transfer(1, 7, seed=0)
    with pytest.raises(ValueError, match="rewired must be a share from 0 to 1, got 2"):
        digit_neighbours(rewired=2, seed=0)
