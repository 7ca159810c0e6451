"""GIN, SAGE and GCN against PyG with the same weights, and the sums below them."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from attlas.graph import Graph
from attlas.graph.neighbours import at_most, neighbour_mean, neighbour_sum
from attlas.layers import GCN, GIN, SAGE
from skips import needs


def drawn(seed=0, nodes=13, edges=40, width=6):
    """An asymmetric graph with loops, equal edges and an isolated last node, and features."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    ends[:, 1] = ends[:, 0]
    ends[1, 2] = ends[0, 2]
    x = torch.randn(nodes, width, generator=generator, dtype=torch.float64)
    return Graph.from_edge_index(ends, num_nodes=nodes), x


def dense(graph, weights=None):
    matrix = torch.zeros(graph.receivers, graph.senders, dtype=torch.float64)
    ones = torch.ones(graph.edges, dtype=torch.float64) if weights is None else weights
    return matrix.index_put((graph.receiver, graph.sender), ones, accumulate=True)


def test_sums_are_products_with_the_dense_adjacency_and_have_its_gradients():
    graph, x = drawn()
    weights = torch.randn(graph.edges, dtype=torch.float64)
    torch.testing.assert_close(neighbour_sum(x, graph), dense(graph) @ x)
    torch.testing.assert_close(neighbour_sum(x, graph, weights), dense(graph, weights) @ x)
    degree = dense(graph).sum(1).clamp(min=1)
    torch.testing.assert_close(neighbour_mean(x, graph), dense(graph) @ x / degree[:, None])
    given = x[:, :2].clone().requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: neighbour_sum(a, graph, w), given)
    assert torch.autograd.gradgradcheck(lambda a: neighbour_sum(a, graph, weights.detach()), given[:1])


def test_sums_of_two_kinds_of_nodes_and_of_tensors_with_more_axes():
    graph = Graph.from_edge_index([[0, 3, 3], [1, 1, 0]], num_nodes=4, num_receivers=2)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(neighbour_sum(x, graph), torch.stack([x[3], x[0] + x[3]]))
    empty = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=3)
    assert torch.equal(neighbour_sum(torch.ones(3, 2), empty), torch.zeros(3, 2))


def test_half_precision_is_summed_in_float32():
    graph = Graph.from_edge_index([[0] * 1000, [1] * 1000], num_nodes=2)
    assert neighbour_sum(torch.ones(2, 1, dtype=torch.bfloat16), graph)[1].item() == 1000
    x, weights = torch.ones(2, 1, requires_grad=True), torch.ones(1000, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbour_sum(x, graph, weights)
        found.sum().backward()
    assert found[1].item() == 1000 and x.grad[0].item() == 1000
    assert torch.equal(weights.grad, torch.ones(1000))


@needs("torch_geometric")
@pytest.mark.parametrize("learnt", [True, False])
def test_gin_is_pygs(learnt):
    from torch_geometric.nn import GINConv

    graph, x = drawn(1)
    mlp = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()
    theirs = GINConv(mlp, eps=0.3, train_eps=learnt)
    ours = GIN(6, 4, inner=5, eps=0.3, learn_eps=learnt).double()
    ours.mlp.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(ours(x, graph), theirs(x, graph.edge_index), rtol=1e-6, atol=1e-7)
    assert ours.eps.requires_grad is learnt


def test_gins_map_is_any_module():
    graph, x = drawn(1)
    for none in (nn.Identity(), nn.Sequential()):
        torch.testing.assert_close(GIN(6, mlp=none).double()(x, graph), x + dense(graph) @ x)
    plain = GIN(6, norm=nn.Identity)
    assert [type(part).__name__ for part in plain.mlp] == ["Linear", "Identity", "ReLU", "Linear"]


@needs("torch_geometric")
@pytest.mark.parametrize("normalise", [True, False])
def test_sage_is_pygs(normalise):
    from torch_geometric.nn import SAGEConv

    graph, x = drawn(2)
    theirs = SAGEConv(6, 4, normalize=normalise).double()
    ours = SAGE(6, 4, normalise=normalise).double()
    ours.near.load_state_dict(theirs.lin_l.state_dict())
    ours.own.load_state_dict(theirs.lin_r.state_dict())
    torch.testing.assert_close(ours(x, graph), theirs(x, graph.edge_index))


def test_sage_samples_in_training_only():
    graph, x = drawn(3, nodes=8, edges=60)
    ours = SAGE(6, sampled=2, generator=torch.Generator().manual_seed(0)).double()
    every = SAGE(6).double()
    every.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(x, graph), every(x, graph))
    torch.testing.assert_close(ours.eval()(x, graph), every(x, graph))
    many = SAGE(6, sampled=60).double()
    many.load_state_dict(every.state_dict())
    torch.testing.assert_close(many(x, graph), every(x, graph))


def test_sampled_edges_are_so_many_of_each_node_and_every_one_comes_up():
    graph, _ = drawn(4, nodes=8, edges=60)
    seen = torch.zeros(graph.edges, dtype=torch.bool)
    for seed in range(60):
        kept = at_most(graph, 2, torch.Generator().manual_seed(seed))
        counts = torch.bincount(graph.receiver[kept], minlength=8)
        assert torch.equal(counts, graph.in_degree.clamp(max=2))
        seen |= kept
    assert seen.all()


@needs("torch_geometric")
def test_gcn_is_pygs():
    from torch_geometric.nn import GCNConv

    graph, x = drawn(5)
    theirs = GCNConv(6, 4).double()
    ours = GCN(6, 4).double()
    ours.map.weight.data = theirs.lin.weight.data
    ours.map.bias.data = theirs.bias.data.normal_()
    # PyG joins the loops of a node: the graph here has at most one at each.
    kept = torch.unique(graph.edge_index, dim=1)
    torch.testing.assert_close(ours(x, kept), theirs(x, kept))


def test_errors_name_the_argument():
    graph, x = drawn()
    with pytest.raises(ValueError, match="x must have a row for each of 13 senders, got \\(12, 6\\)"):
        neighbour_sum(x[1:], graph)
    with pytest.raises(ValueError, match="weights must be one number for each of 40 edges, got \\(3,\\)"):
        neighbour_sum(x, graph, x[:3, 0])
    with pytest.raises(ValueError, match="most must be 1 or more edges into a node, got 0"):
        at_most(graph, 0)
    with pytest.raises(ValueError, match="SAGE: sampled must be 1 or more edges into a node, got 0"):
        SAGE(4, sampled=0)


def test_sums_of_nothing_and_of_integers():
    graph = Graph.from_edge_index([[], []], num_nodes=0)
    assert neighbour_sum(torch.zeros(0, 3, 2), graph).shape == (0, 3, 2)
    assert neighbour_mean(torch.zeros(0), graph).shape == (0,)
    two = Graph.from_edge_index([[0], [1]])
    assert neighbour_sum(torch.zeros(2, 3, 0), two).shape == (2, 3, 0)
    with pytest.raises(TypeError, match="x must be floating point .* got torch.int64"):
        inspect.unwrap(neighbour_sum)(torch.tensor([[33554433], [0]]), two)  # as without checks of types


def test_a_graph_met_in_inference_mode_first_can_be_trained_on():
    edges, x = torch.tensor([[0, 1], [1, 2]]), torch.randn(3, 4)
    layer = GCN(4, 4)
    wanted = layer(x, edges.clone())
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, edges), wanted)
        torch.testing.assert_close(layer(x, edges.clone()), wanted)  # a tensor without a version
        torch.testing.assert_close(layer(x, edges, batch=torch.zeros(3, dtype=torch.int64)), wanted)
    layer(x, edges).sum().backward()
