"""The constructions of a virtual node, against dense attention of each graph."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.graph import Graph
from attlas.inspect import linear_by_virtual_node, margin, softmax_by_virtual_node

SIZES = (5, 1, 9)


def drawn(width=4, scale=1.0):
    torch.manual_seed(0)
    batch = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    graph = Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=sum(SIZES), batch=batch)
    x = functional.normalize(torch.randn(sum(SIZES), width, dtype=torch.float64), dim=1)
    maps = [nn.Linear(width, out).double() for out in (3, 3, 2)]
    for one in maps[:2]:
        one.weight.data *= scale
    return graph, x, maps


def features(x):
    return torch.cat([functional.elu(x) + 1, x.square() + 0.5], 1)


def test_linear_attention_in_two_rounds():
    graph, x, maps = drawn()
    query, key, value = (one(x) for one in maps)
    found = linear_by_virtual_node(query, key, value, graph, features)
    wanted = []
    for q, k, v in zip(*(part.split(SIZES) for part in (query, key, value)), strict=True):
        weights = features(q) @ features(k).T
        wanted.append(weights @ v / weights.sum(1, keepdim=True))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-12, atol=1e-12)


def dense_softmax(x, maps):
    found = []
    for own in x.split(SIZES):
        q, k, v = (one(own) for one in maps)
        found.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
    return torch.cat(found)


@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_softmax_attention_one_sender_a_round(scale):
    """Also where logits are in the thousands."""
    graph, x, maps = drawn(scale=scale)
    found = softmax_by_virtual_node(x, graph, *maps)
    assert found.isfinite().all()
    torch.testing.assert_close(found, dense_softmax(x, maps), rtol=1e-10, atol=1e-10)


def test_a_warm_selector_errs_exponentially_less_as_it_cools():
    graph, x, maps = drawn()
    wanted, lead = dense_softmax(x, maps), margin(x, x, graph)
    assert lead > 0
    errors = [
        (softmax_by_virtual_node(x, graph, *maps, temperature=lead / sharp) - wanted).abs().max().item()
        for sharp in (4.0, 8.0, 16.0)
    ]
    for (one, two), sharp in zip(pairwise(errors), (4.0, 8.0), strict=True):
        # exp(-sharp) of the weight, or less, lies beside the one that is meant.
        assert math.log(one / two) == pytest.approx(sharp, rel=0.25)


def test_graphs_without_nodes():
    _, x, maps = drawn()
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    alone = Graph.from_edge_index(nothing, num_nodes=0)
    assert softmax_by_virtual_node(x[:0], alone, *maps).shape == (0, 2)
    pointer = torch.tensor([0, 5, 5, 15])
    graph = Graph(*nothing, 15, 15, pointer=pointer)
    found = softmax_by_virtual_node(x, graph, *maps)
    wanted = softmax_by_virtual_node(x, graph.replace(pointer=pointer[[0, 1, 3]]), *maps)
    torch.testing.assert_close(found, wanted)


def test_margin_is_the_least_lead():
    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=3)
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert margin(x, x, graph) == pytest.approx(0.2)


def test_gradients_reach_the_maps():
    graph, x, maps = drawn()
    softmax_by_virtual_node(x, graph, *maps).square().sum().backward()
    ours = [one.weight.grad.clone() for one in maps]
    for one in maps:
        one.zero_grad()
    dense_softmax(x, maps).square().sum().backward()
    for one, grad in zip(maps, ours, strict=True):
        torch.testing.assert_close(grad, one.weight.grad, rtol=1e-8, atol=1e-10)


def test_errors_say_what_to_change():
    graph, x, maps = drawn()
    with pytest.raises(ValueError, match="equal features cannot be told apart"):
        softmax_by_virtual_node(torch.ones_like(x), graph, *maps)
    with pytest.raises(ValueError, match="temperature must be 0 or above, got -1"):
        softmax_by_virtual_node(x, graph, *maps, temperature=-1)
