"""KGAT's attention and aggregators against sums written out, dense and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from attlas.graph import Graph
from attlas.layers.kgat import (
    BiInteraction,
    GraphConvolution,
    GraphSage,
    KGATLayer,
    RelationAttention,
    gather_neighbours,
    initial_weights,
    relation_groups,
)

# (head, relation, tail): two relations between 0 and 1, one triple twice, node 5 only a tail, 6 alone.
TRIPLES = [
    (0, 0, 1),
    (0, 2, 1),
    (0, 1, 2),
    (2, 1, 0),
    (2, 1, 3),
    (3, 0, 2),
    (4, 2, 0),
    (4, 2, 0),
    (1, 0, 5),
    (2, 2, 2),
]
NODES, KINDS, WIDTH, RELATION = 7, 4, 5, 3


def the_graph(order=None):
    rows = [TRIPLES[at] for at in (order if order is not None else range(len(TRIPLES)))]
    head, kind, tail = torch.tensor(rows).T.contiguous()
    return Graph(tail.clone(), head.clone(), NODES, NODES, edge_type=kind.clone())


def dense_alpha(x, attention):
    """alpha of every triple by loops over heads, in numpy float64."""
    relation, transform = (
        part.detach().double().numpy() for part in (attention.relation, attention.transform)
    )
    x = x.detach().double().numpy()
    score = [float((transform[r] @ x[t]) @ np.tanh(transform[r] @ x[h] + relation[r])) for h, r, t in TRIPLES]
    found = np.zeros(len(TRIPLES))
    for node in range(NODES):
        mine = [at for at, (head, _, _) in enumerate(TRIPLES) if head == node]
        power = np.exp([score[at] for at in mine])
        found[mine] = power / power.sum() if mine else 0.0
    return found


@pytest.fixture
def made():
    torch.manual_seed(3)
    attention = RelationAttention(WIDTH, RELATION, KINDS).double()
    return torch.randn(NODES, WIDTH, dtype=torch.float64), attention


def test_alpha_is_one_softmax_over_all_triples_of_the_head(made):
    x, attention = made
    graph = the_graph()
    alpha = attention(x, graph, graph.edge_type)
    np.testing.assert_allclose(alpha.numpy(), dense_alpha(x, attention), atol=1e-12, rtol=0)
    assert not alpha.requires_grad, "attention is not differentiated"


def test_the_softmax_runs_over_heads_and_not_over_tails(made):
    x, attention = made
    graph = the_graph()
    alpha = attention(x, graph, graph.edge_type)
    by_head = torch.zeros(NODES, dtype=torch.float64).index_add_(0, graph.receiver, alpha)
    has = torch.tensor([1, 1, 1, 1, 1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(by_head, has)
    assert alpha[6] == alpha[7] == 0.5, "equal triples are terms of their own"


def test_groups_hold_every_edge_once_and_every_node_of_a_relation_once():
    graph = the_graph()
    groups = relation_groups(graph, graph.edge_type, KINDS)
    assert [group.relation for group in groups] == [0, 1, 2]
    assert sorted(torch.cat([group.edges for group in groups]).tolist()) == list(range(len(TRIPLES)))
    for group in groups:
        assert group.nodes.unique().numel() == group.nodes.numel()
        assert torch.equal(group.nodes[group.head], graph.receiver[group.edges])
        assert torch.equal(group.nodes[group.tail], graph.sender[group.edges])


def test_long_relations_are_projected_in_pieces(made, monkeypatch):
    x, attention = made
    graph = the_graph()
    whole = attention(x, graph, graph.edge_type)
    monkeypatch.setattr("attlas.layers.kgat.CHUNK", 2)
    assert torch.equal(attention(x, graph, graph.edge_type), whole)


def test_initial_weights_are_row_normalised_relation_by_relation():
    graph = the_graph()
    alpha = initial_weights(graph, graph.edge_type)
    dense = torch.zeros(KINDS, NODES, NODES)
    for head, kind, tail in TRIPLES:
        dense[kind, head, tail] += 1
    dense = (dense / dense.sum(2, keepdim=True).clamp_min(1)).sum(0)
    mine = torch.zeros(NODES, NODES).index_put_((graph.receiver, graph.sender), alpha, accumulate=True)
    torch.testing.assert_close(mine, dense)
    assert mine[0].sum() == 3, "a head with three relations has weights that sum to 3"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gathering_is_the_dense_product_and_its_gradient(dtype):
    graph = the_graph()
    weights = torch.rand(graph.edges, dtype=torch.float64)
    dense = torch.zeros(NODES, NODES, dtype=torch.float64)
    dense.index_put_((graph.receiver, graph.sender), weights, accumulate=True)
    x = torch.randn(NODES, WIDTH, dtype=torch.float64)
    grad = torch.randn(NODES, WIDTH, dtype=torch.float64)
    mine = x.to(dtype).requires_grad_()
    out = gather_neighbours(mine, graph, weights)
    out.backward(grad.to(dtype))
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out.double(), dense @ x, atol=close, rtol=close)
    torch.testing.assert_close(mine.grad.double(), dense.T @ grad, atol=close, rtol=close)
    assert out.dtype == dtype and torch.equal(out[6], torch.zeros(WIDTH, dtype=dtype))


def test_energies_and_their_gradients_are_those_of_single_triples(made):
    x, attention = made
    x = x.requires_grad_()
    triples, others = torch.tensor(TRIPLES), torch.tensor([3, 4, 5, 6, 0, 1, 2, 3, 4, 5])
    right, wrong, squares = attention.energy(x, triples, others)
    expected = torch.zeros((), dtype=torch.float64)
    for at, (head, kind, tail) in enumerate(TRIPLES):
        matrix, moved = attention.transform[kind], attention.relation[kind]
        h, t, o = (matrix @ x[node] for node in (head, tail, int(others[at])))
        torch.testing.assert_close(right[at], (h + moved - t).square().sum())
        torch.testing.assert_close(wrong[at], (h + moved - o).square().sum())
        expected = expected + sum(part.square().sum() for part in (h, moved, t, o))
    torch.testing.assert_close(squares, expected)
    parameters = (x, attention.relation, attention.transform)
    for mine, theirs in zip(
        torch.autograd.grad(squares, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        (BiInteraction, lambda m, x, n, f: f(m.sum(x + n)) + f(m.product(x * n))),
        (GraphConvolution, lambda m, x, n, f: f((x + n) @ m.sum.weight.T + m.sum.bias)),
        (
            GraphSage,
            lambda m, x, n, f: f(x @ m.both.weight[:, :5].T + n @ m.both.weight[:, 5:].T + m.both.bias),
        ),
    ],
)
def test_aggregators(kind, formula):
    module = kind(WIDTH, 4, 0.01)
    x, near = torch.randn(2, NODES, WIDTH)
    expected = formula(module, x, near, lambda part: functional.leaky_relu(part, 0.01))
    torch.testing.assert_close(module(x, near), expected)


def test_a_layer_takes_an_edge_index_with_types_or_a_typed_graph():
    layer = KGATLayer(WIDTH, 4, KINDS).eval()
    x, graph = torch.randn(NODES, WIDTH), the_graph()
    out = layer(x, graph)
    torch.testing.assert_close(layer(x, graph.edge_index, graph.edge_type), out)
    order = torch.randperm(len(TRIPLES)).tolist()
    torch.testing.assert_close(layer(x, the_graph(order)), out)


@pytest.mark.parametrize(
    ("kinds", "error", "text"),
    [
        (None, ValueError, "KGATLayer: edges need types: give edge_attr"),
        (torch.zeros(10), TypeError, r"edge_attr must be int64 types of shape \(10,\), got torch.float32"),
        (torch.full((10,), 4), ValueError, r"edge types must be in 0 \.\. 3, got 4 \.\. 4"),
    ],
)
def test_wrong_types_of_edges(kinds, error, text):
    with pytest.raises(error, match=text):
        KGATLayer(WIDTH, 4, KINDS)(torch.randn(NODES, WIDTH), the_graph().edge_index, kinds)
