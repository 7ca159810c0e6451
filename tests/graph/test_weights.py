"""Weights of all edges of a graph, in its order, and sums with them."""

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas.attend import (
    Entropy,
    SenderSoftmax,
    Sigmoid,
    Softmax,
    Threshold,
    apply_weights,
    reduce,
    sum_over_edges,
    weights,
)
from attlas.graph import Graph, segment_softmax
from attlas.score import Cosine, Dot
from graph.test_edge_tensors import Features, inputs
from graph.test_graph import drawn


def logits(graph: Graph, q: Tensor, k: Tensor) -> Tensor:
    return (q[0, :, graph.receiver] * k[0, :, graph.sender]).sum(-1) / q.shape[-1] ** 0.5


def test_weights_of_all_edges_are_the_softmax_of_each_receiver() -> None:
    graph = drawn(9, 50)
    assert graph.has_equal_edges
    q, k, v = (x.requires_grad_() for x in inputs(9))
    found = weights(q, k, graph=graph)
    wanted = segment_softmax(logits(graph, q, k).T, graph.by_receiver).T[None]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(weights(q, k, pattern=graph), found)
    way = torch.randn(50, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * way).sum(), (q, k), retain_graph=True),
        torch.autograd.grad((wanted * way).sum(), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(apply_weights(found, v, graph), at.attend(q, k, v, pattern=graph))
    _, state = at.attend(q, k, v, pattern=graph, return_state=True)
    torch.testing.assert_close(weights(q, k, graph=graph, state=state), found)


def test_weights_of_any_normaliser_and_score() -> None:
    graph = drawn(9, 50)
    q, k, v = inputs(9)
    features = torch.randn(50, 2, dtype=torch.float64)
    for normaliser in (Sigmoid(), Softmax() >> Threshold(0.1), SenderSoftmax(), Softmax(0.2)):
        options = {"score": Dot() + Features(features), "normaliser": normaliser}
        found = weights(q, k, graph=graph, **options)
        out = at.attend(q, k, v, pattern=graph, backend="edge", **options)
        torch.testing.assert_close(apply_weights(found, v, graph), out)
    shares = weights(q, k, graph=graph, normaliser=SenderSoftmax(), score=Cosine())
    sums = torch.zeros(2, 9, dtype=torch.float64).index_add(1, graph.sender, shares[0])
    torch.testing.assert_close(sums, (torch.bincount(graph.sender, minlength=9) > 0).double().expand(2, 9))


def test_what_weights_of_a_graph_refuse() -> None:
    graph = drawn(9, 50)
    q, k, v = inputs(9)
    with pytest.raises(ValueError, match=r"graph=\.\.\. asks for all its edges, and takes no pattern"):
        weights(q, k, graph=graph, columns=torch.tensor([0]))
    with pytest.raises(ValueError, match="or graph= for all its edges"):
        weights(q, k)
    with pytest.raises(ValueError, match="has tensors of edges, so that pairs have no logit"):
        weights(q, k, pattern=graph, score=Features(torch.zeros(50)), columns=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"second pass: the graph has equal edges.*graph=graph\) gives"):
        reduce(q, k, reducers=[Entropy()], pattern=graph)
    with pytest.raises(ValueError, match=r"must be \(batch, heads, 50 edges\)"):
        apply_weights(torch.zeros(1, 2, 49, dtype=v.dtype), v, graph)
    with pytest.raises(ValueError, match="a graph of 9 senders takes a value of each"):
        apply_weights(torch.zeros(1, 2, 50, dtype=v.dtype), v[:, :, :5], graph)
    with pytest.raises(ValueError, match="weights and value must have one batch, or 1, got 3 and 2"):
        apply_weights(torch.zeros(3, 2, 50, dtype=v.dtype), v.expand(2, -1, -1, -1), graph)
    for wrong in (torch.int64, torch.float32):
        with pytest.raises(TypeError, match=f"floating-point tensors of one dtype, got {wrong} and"):
            apply_weights(torch.zeros(1, 2, 50, dtype=wrong), v, graph)


def test_weights_of_a_batch_of_one_are_shared() -> None:
    graph = drawn(9, 50)
    _, _, v = inputs(9)
    each = torch.rand(2, 2, 50, dtype=v.dtype, requires_grad=True)
    values = torch.cat([v, 2 * v]).requires_grad_()
    for given, more in ((each[:1], values), (each, values[:1])):
        found = apply_weights(given, more, graph)
        wanted = [
            apply_weights(given[i % len(given)][None], more[i % len(more)][None], graph) for i in (0, 1)
        ]
        torch.testing.assert_close(found, torch.cat(wanted))
        for one, other in zip(
            torch.autograd.grad(found.square().sum(), (each, values)),
            torch.autograd.grad(torch.cat(wanted).square().sum(), (each, values)),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("row_ptr", [[1, 2, 3], [0, 1, 2], [0, 5, 3], []])
def test_sums_over_edges_refuse_pointers_that_are_none(row_ptr: list[int]) -> None:
    with pytest.raises(
        ValueError, match="sum_over_edges: row_ptr must rise from 0 to the number of edges, 3"
    ):
        sum_over_edges(
            torch.ones(3), torch.ones(4, 2), torch.tensor(row_ptr, dtype=torch.int64), torch.tensor([0, 1, 3])
        )
