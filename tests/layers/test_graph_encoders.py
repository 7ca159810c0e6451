"""The learned parts of encodings: what they must not see, and their formulas."""

import networkx
import pytest
import torch

from attlas.graph import Graph, batch, from_networkx, laplacian_eigenvectors, subgraph, wl_roles
from attlas.layers import (
    DegreeEncoder,
    EigenDeepSet,
    EigenTransformer,
    NormLinear,
    RoleEncoder,
    SignedPositions,
    SignNet,
    Together,
)

NAN = float("nan")


def mixed():
    drawn = [networkx.path_graph(7), networkx.path_graph(2), networkx.gnp_random_graph(9, 0.4, seed=1)]
    return batch([from_networkx(graph)[0] for graph in drawn])


def eigen(graph, count=4):
    return laplacian_eigenvectors(graph, count, skip=0, fill=NAN)


def test_deep_set_is_its_formula_and_leaves_out_what_is_not_there():
    torch.manual_seed(0)
    encoder, graph = EigenDeepSet(6).double().eval(), mixed()
    values, vectors = eigen(graph)
    found = encoder((values, vectors), graph)
    one, _, two, _ = encoder.net
    for node in range(graph.nodes):
        wanted = torch.zeros(6).double()
        for k in range(2 if int(graph.graph_of[node]) == 1 else 4):
            pair = torch.stack([vectors[node, k], values[node, k]])
            hidden = (one.weight @ pair + one.bias).clamp(min=0)
            wanted += (two.weight @ hidden + two.bias).clamp(min=0)
        torch.testing.assert_close(found[node], wanted)


@pytest.mark.parametrize("kind", [EigenDeepSet, EigenTransformer])
def test_eigenvector_encoders_do_not_see_the_order_of_pairs_nor_padding(kind):
    torch.manual_seed(1)
    encoder, graph = kind(8).double().eval(), mixed()
    values, vectors = eigen(graph)
    found = encoder((values, vectors), graph)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder((values[:, order], vectors[:, order]), graph), found)
    padded = [torch.cat([part, torch.full((graph.nodes, 3), NAN)], 1) for part in (values, vectors)]
    torch.testing.assert_close(encoder((padded[0], padded[1]), graph), found)
    assert found.isfinite().all() and not torch.allclose(encoder((values, -vectors), graph), found)


@pytest.mark.parametrize("kind", [EigenDeepSet, EigenTransformer])
def test_signs_are_drawn_in_training_alone(kind):
    torch.manual_seed(2)
    encoder, graph = kind(8).double(), mixed()
    pairs = eigen(graph)
    assert not torch.allclose(encoder(pairs, graph), encoder(pairs, graph))
    encoder.eval()
    torch.testing.assert_close(encoder(pairs, graph), encoder(pairs, graph))


@pytest.mark.parametrize("count", [4, None])
def test_signnet_does_not_see_signs_and_follows_the_nodes(count):
    torch.manual_seed(3)
    encoder, graph = SignNet(5, count).double().eval(), mixed()
    _, vectors = eigen(graph)
    found = encoder(vectors, graph)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    torch.testing.assert_close(encoder(vectors * signs, graph), found)
    assert not torch.allclose(encoder(vectors.roll(1, 1), graph), found) or count is None
    one = graph.pointer[2]
    part, _ = subgraph(graph, torch.arange(int(one), graph.nodes))
    order = torch.randperm(part.nodes)
    other, _ = subgraph(part, order)
    torch.testing.assert_close(encoder(vectors[one:][order], other), found[one:][order])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_node_without_any_eigenvector_gets_0_from_the_transformer(training, gradients):
    graph = batch([Graph.from_edge_index([], num_nodes=1), from_networkx(networkx.path_graph(4))[0]])
    values, vectors = laplacian_eigenvectors(graph, 3, skip=1, fill=NAN)
    assert vectors[0].isnan().all() and vectors[1:].isfinite().all()
    encoder = EigenTransformer(8).double().train(training)
    with torch.set_grad_enabled(gradients):  # without gradients torch takes another way
        found = encoder((values, vectors), graph)
    assert not found[0].any() and found.isfinite().all() and found[1:].any()


@pytest.mark.parametrize(("nodes", "count"), [(0, 3), (2, 0)])
def test_eigenvector_encoders_take_no_nodes_and_no_eigenvectors(nodes, count):
    graph, nothing = Graph.from_edge_index([], num_nodes=nodes), torch.zeros(nodes, count)
    for encoder in (EigenDeepSet(8), EigenTransformer(8)):
        assert torch.equal(encoder((nothing, nothing), graph), torch.zeros(nodes, 8))
    assert SignNet(8, None)(nothing, graph).shape == (nodes, 8)


def test_signnet_in_training_does_not_see_padding():
    torch.manual_seed(6)
    graph = mixed()
    vectors = eigen(graph)[1]
    plain, padded = SignNet(5, None).double(), SignNet(5, None).double()
    padded.load_state_dict(plain.state_dict())
    wide = torch.cat([vectors, torch.full((graph.nodes, 3), NAN)], 1)
    torch.testing.assert_close(padded(wide, graph), plain(vectors, graph))
    torch.testing.assert_close(padded.state_dict(), plain.state_dict())


def test_signnet_is_even_but_keeps_more_than_absolute_values():
    torch.manual_seed(4)
    graph = from_networkx(networkx.path_graph(5))[0]
    encoder = SignNet(5, 1).double().eval()
    vector = torch.tensor([[1.0], [2.0], [0.0], [-2.0], [-1.0]]).double()
    assert not torch.allclose(encoder(vector, graph), encoder(vector.abs(), graph))


def test_the_simple_encoders():
    torch.manual_seed(5)
    graph = mixed()
    x = 3 + 2 * torch.randn(graph.nodes, 4)
    linear = NormLinear(4, 3)
    wanted = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() @ linear.linear.weight.T
    torch.testing.assert_close(linear(x, graph), wanted + linear.linear.bias)
    roles = RoleEncoder(2, 3)
    torch.testing.assert_close(
        roles(wl_roles(graph), graph), roles.table.weight[wl_roles(graph).clamp(max=1)]
    )
    degrees = DegreeEncoder(2, 3)
    torch.testing.assert_close(degrees(None, graph), degrees.table.weight[graph.in_degree.clamp(max=2)])
    together = Together(linear.eval(), degrees)
    assert together.width == 6
    parts = torch.cat([linear(x, graph), degrees(None, graph)], -1)
    torch.testing.assert_close(together([x, None], graph), parts)
    signed = SignedPositions(4, 3).eval()
    torch.testing.assert_close(signed(x, graph), signed.linear(x))


def test_errors_say_what_came():
    graph = mixed()
    with pytest.raises(ValueError, match=r"SignNet was made for 3 eigenvectors, got \(18, 4\)"):
        SignNet(5, 3).double()(eigen(graph)[1], graph)
    with pytest.raises(ValueError, match="Together has 1 encoders, got 2 encodings"):
        Together(DegreeEncoder(2, 3))([None, None], graph)
