"""GRIT against its formulas on (n, n, d) tensors, and its pairs against powers of the walk's matrix."""

import math

import networkx
import numpy as np
import pytest
import torch

from attlas.graph import Graph, PairGraph, batch, from_networkx, pairs_of
from attlas.layers.graph_layers import graph_entry
from attlas.layers.grit import GRIT, GRITEncoder, GRITLayer, GRITScore, random_walks, signed_root

# Irregular and directed, with a loop, two equal edges (3 -> 1), a node that only sends (4) and one alone (5).
EDGES = [(0, 1), (2, 1), (3, 1), (3, 1), (1, 2), (4, 2), (2, 2), (4, 3), (1, 0), (0, 3)]
NODES, STEPS = 6, 5


def given(edges=EDGES, nodes=NODES):
    return Graph.from_edge_index(torch.tensor(edges).T, num_nodes=nodes)


def walk_matrix(graph):
    """D^-1 A with rows that receive, equal edges counted: from the definition, edge by edge."""
    adjacency = np.zeros((graph.nodes, graph.nodes))
    for sender, receiver in zip(graph.sender.tolist(), graph.receiver.tolist(), strict=True):
        adjacency[receiver, sender] += 1
    return adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1)


def powers(graph, steps=STEPS):
    walk = walk_matrix(graph)
    return torch.from_numpy(np.stack([np.linalg.matrix_power(walk, step) for step in range(steps)], -1))


def prepared(module):
    """In evaluation mode, all numbers away from their starts, in float64."""
    generator = torch.Generator().manual_seed(7)
    for _, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(tensor + 0.3 * noise)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return module.double().eval()


def rho(x):
    return x.sign() * x.abs().sqrt()


def dense_layer(layer, x, e, degree):
    """The sheet's steps 2 to 6, one head at a time, x (n, d), e (n, n, d)."""
    width = x.shape[1]
    f = width // layer.heads
    outs, states = [], []
    for head in range(layer.heads):
        cut = slice(head * f, (head + 1) * f)
        q = x @ layer.query.weight[cut].T + layer.query.bias[cut]
        k, v = x @ layer.key.weight[cut].T, x @ layer.value.weight[cut].T
        start = 2 * head * f
        w = e @ layer.pair.weight[start : start + f].T + layer.pair.bias[start : start + f]
        b = e @ layer.pair.weight[start + f : start + 2 * f].T + layer.pair.bias[start + f : start + 2 * f]
        s = torch.relu(rho((q[:, None] + k[None]) * w) + b)
        a = torch.softmax((s @ layer.asks[head]).clamp(-5, 5), 1)
        outs.append(a @ v + torch.einsum("ij,ijf->if", a, s) @ layer.carry[head])
        states.append(s)
    o, s = torch.cat(outs, -1), torch.cat(states, -1)
    if layer.scales is not None:
        o = o * layer.scales[0] + torch.log(1 + degree)[:, None] * o * layer.scales[1]

    def norm(bn, t):
        return (t - bn.running_mean) / torch.sqrt(bn.running_var + 1e-5) * bn.weight + bn.bias

    x = norm(layer.norm, x + o @ layer.leave.weight.T + layer.leave.bias)
    inside = torch.relu(x @ layer.first.weight.T + layer.first.bias)
    x = norm(layer.last_norm, x + inside @ layer.second.weight.T + layer.second.bias)
    if layer.leave_pair is None:
        return x, e
    return x, norm(layer.pair_norm, e + s @ layer.leave_pair.weight.T + layer.leave_pair.bias)


def dense(net, x, graph, attr):
    """The whole net on one graph."""
    walk = powers(graph)
    e = walk @ net.encoder.pair.weight.T
    for edge, (sender, receiver) in enumerate(graph.edge_index.T.tolist()):
        e[receiver, sender] += attr[edge] @ net.encoder.edge.weight.T + net.encoder.edge.bias
    x = x + walk.diagonal(dim1=0, dim2=1).T @ net.encoder.node.weight.T
    degree = torch.tensor(
        [sum(end == node for _, end in graph.edge_index.T.tolist()) for node in range(len(x))]
    )
    for layer in net.layers:
        x, e = dense_layer(layer, x, e, degree.double())
    return x, e


@pytest.mark.parametrize("options", [{}, {"update_pairs": False}, {"degree_scaler": False}])
def test_the_net_is_its_formulas_on_dense_tensors(options):
    torch.manual_seed(0)
    net = prepared(GRIT(8, 2, layers=2, steps=STEPS, edge_width=3, **options))
    graph, x = given(), torch.randn(NODES, 8, dtype=torch.float64)
    attr = torch.randn(len(EDGES), 3, dtype=torch.float64)
    out, e, pairs = net.states(x, graph, attr)
    wanted, wanted_e = dense(net, x, graph, attr)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(e.view(NODES, NODES, -1), wanted_e, rtol=1e-9, atol=1e-9)
    assert pairs.pairs == NODES**2
    # The walk from the receiver is not the walk to it: the other orientation is another net.
    turned, _ = dense(net, x, given([(b, a) for a, b in EDGES]), attr)
    assert (out - turned).abs().max() > 0.1


def test_gradients_are_those_of_dense_tensors():
    torch.manual_seed(0)
    net = prepared(GRIT(4, 2, layers=2, steps=STEPS, edge_width=3))
    graph, x = given(), torch.randn(NODES, 4, dtype=torch.float64, requires_grad=True)
    attr = torch.randn(len(EDGES), 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, attr, *net.parameters()]
    found, wanted = ((*net.states(x, graph, attr)[:2],), dense(net, x, graph, attr))
    slopes = [
        torch.autograd.grad(sum((part.reshape(-1).sin()).sum() for part in both), inputs)
        for both in (found, wanted)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_gradcheck_away_from_the_root_s_zero():
    torch.manual_seed(1)
    pairs = pairs_of(given([(0, 1), (1, 2)], 3))
    q, k, v = (torch.rand(1, 2, 3, 2, dtype=torch.float64).add(0.5).requires_grad_() for _ in range(3))
    e = torch.rand(9, 4, dtype=torch.float64).add(0.5).requires_grad_()
    weight = torch.rand(2, 4, 4, dtype=torch.float64).add(0.2).requires_grad_()
    bias, asks = (torch.rand(2, n, dtype=torch.float64).add(0.2).requires_grad_() for n in (4, 2))

    def run(q, k, v, e, weight, bias, asks):
        from attlas.layers import grit

        # A fifth: away from the limit of the logits.
        score = GRITScore(e, weight, bias, 0.2 * asks)
        return grit.attend(q, k, v, pattern=pairs.graph, score=score, return_edge=True)

    assert torch.autograd.gradcheck(run, (q, k, v, e, weight, bias, asks), eps=1e-6, atol=1e-5, rtol=1e-3)


def test_the_root_has_no_gradient_at_zero_and_the_sign_s_root_elsewhere():
    x = torch.tensor([0.0, 4.0, -9.0], requires_grad=True)
    out = signed_root(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert out.tolist() == [0.0, 2.0, -3.0]
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.25, 1 / 6]))


def test_logits_are_limited_and_need_no_maximum():
    layer = GRITLayer(4, 1).double()
    with torch.no_grad():
        layer.asks.fill_(1e4)
    x = torch.randn(3, 4, dtype=torch.float64)
    pairs = pairs_of(given([(0, 1)], 3))
    e = torch.randn(9, 4, dtype=torch.float64)
    wanted, _ = dense_layer(layer.eval(), x, e.view(3, 3, 4), pairs.degree.double())
    torch.testing.assert_close(layer(x, pairs, e)[0], wanted, rtol=1e-9, atol=1e-9)


def test_walks_are_powers_with_the_identity_first():
    graph = given()
    walks = random_walks(graph, STEPS, torch.float64).view(NODES, NODES, STEPS)
    torch.testing.assert_close(walks, powers(graph), rtol=0, atol=1e-12)
    assert torch.equal(walks[..., 0], torch.eye(NODES, dtype=torch.float64))
    # Row-stochastic where a node receives, 0 beyond the identity where it does not.
    sums = walks[..., 1].sum(1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64))
    assert (walks[..., 1].sum(0) - 1).abs().max() > 0.5
    assert random_walks(graph, STEPS) is random_walks(graph, STEPS)


def test_walks_are_kept_once_and_in_the_asked_precision():
    graph = given()
    walks = random_walks(graph, STEPS)
    held = [found for found in vars(graph)["_kept"].values() if not isinstance(found, PairGraph)]
    assert len(held) == 1 and held[0] is walks and walks.dtype == torch.float32


def test_walks_of_a_batch_are_those_of_its_graphs():
    parts = [
        given(),
        given([(0, 1)], 2),
        given([(0, 0)], 1),
        given(nodes=7),
        Graph.from_edge_index([], num_nodes=3),
    ]
    parts += [from_networkx(networkx.gnp_random_graph(6, 0.5, seed=seed))[0] for seed in range(2)]
    walks = random_walks(batch(parts), 4, torch.float64)
    alone = torch.cat([powers(part, 4).reshape(-1, 4) for part in parts])
    torch.testing.assert_close(walks, alone, rtol=0, atol=1e-12)


def test_pairs_are_ragged_matrices():
    parts = [given(), given([(1, 0)], 3), Graph.from_edge_index([], num_nodes=0), given([(0, 2)], 3)]
    together = batch(parts)
    pairs = pairs_of(together)
    assert pairs is pairs_of(together) and pairs.pairs == 36 + 9 + 0 + 9
    assert [tuple(block.shape) for block in pairs.blocks] == [(2, 3, 3), (1, 6, 6)]
    ends = torch.stack([pairs.graph.sender, pairs.graph.receiver])
    assert torch.equal(ends[:, pairs.place], together.edge_index)
    assert torch.equal(ends[:, pairs.opposite], ends.flip(0))
    assert torch.equal(ends[0, pairs.diagonal], torch.arange(together.nodes))
    marks = pairs.at_pairs(torch.ones(together.edges, 1))
    assert marks.sum() == together.edges and marks[pairs.place[2]] == 2.0
    with pytest.raises(ValueError, match=r"x must have one row for each of 12 edges, got \(3, 1\)"):
        pairs.at_pairs(torch.ones(3, 1))


def test_norms_see_all_nodes_and_all_pairs():
    torch.manual_seed(0)
    layer, pairs = GRITLayer(8, 2), pairs_of(batch([given(), given([(0, 1)], 3)]))
    x, e = layer.train()(torch.randn(9, 8), pairs, torch.randn(45, 8))
    for part in (x, e):
        torch.testing.assert_close(part.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    assert layer.norm.num_batches_tracked == layer.pair_norm.num_batches_tracked == 1


def test_attention_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer = GRITLayer(8, 2, attention_dropout=0.5)
    pairs, x, e = pairs_of(given()), torch.randn(NODES, 8), torch.randn(NODES**2, 8)
    first, second = (layer.train().attention(x, pairs, e)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    layer.eval()
    assert torch.equal(layer.attention(x, pairs, e)[0], layer.attention(x, pairs, e)[0])


def test_which_parts_have_biases_and_where_they_start():
    torch.manual_seed(0)
    layer = GRITLayer(64, 4)
    has = {name: getattr(layer, name).bias is not None for name in ("query", "pair", "key", "value")}
    assert has == {"query": True, "pair": True, "key": False, "value": False}
    encoder = GRITEncoder(8)
    assert encoder.node.bias is None and encoder.pair.bias is None and encoder.steps == 21
    for tensor, deviation in (
        (layer.query.weight, math.sqrt(2 / 128)),
        (layer.pair.weight, math.sqrt(2 / 192)),
        (layer.carry, math.sqrt(2 / (4 * 16 + 16 * 16))),
        (layer.scales, math.sqrt(1 / 65)),
    ):
        assert abs(tensor.std().item() / deviation - 1) < 0.25


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"GRITLayer: heads must divide the width 8, got 3"):
        GRITLayer(8, 3)
    with pytest.raises(ValueError, match=r"GRIT: layers must be at least 1, got 0"):
        GRIT(8, 2, layers=0)
    with pytest.raises(ValueError, match=r"steps must be 1 or more \(the first is the node\), got 0"):
        GRITEncoder(8, steps=0)
    with pytest.raises(ValueError, match=r"grit: edge_attr must be none, as edge_width says, got \(10, 3\)"):
        GRIT(8, 2)(torch.randn(NODES, 8), given(), torch.randn(10, 3))
    with pytest.raises(ValueError, match=r"grit: edge_attr must be \(edges, 4\), got none"):
        GRIT(8, 2, edge_width=4)(torch.randn(NODES, 8), given())
    assert graph_entry("grit").edges == "features"
