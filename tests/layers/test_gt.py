"""GT against the sheet's formulas with dense n x n masks in float64, and its training."""

import math

import pytest
import torch
from torch import nn

from attlas.graph import Graph, complete, laplacian_eigenvectors
from attlas.layers import GT, RaggedBatchNorm
from attlas.models import GTS, GTConfig, graph_transformer

N, WIDTH, HEADS = 9, 12, 3


def asymmetric(seed=0):
    """A directed graph; node 8 receives nothing."""
    generator = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(N, N, generator=generator) < 0.35
    adjacency[8] = False
    receiver, sender = adjacency.nonzero().T.contiguous()
    order = torch.randperm(len(receiver), generator=generator)
    return Graph(sender[order], receiver[order], N, N)


def stirred(module):
    """Float64, evaluation mode, norms that have seen something."""
    generator = torch.Generator().manual_seed(5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, generator=generator)
    return module.double().eval()


def dense(x, linear):
    return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)


def normed(x, norm):
    if isinstance(norm, nn.LayerNorm):
        mean, spread = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    else:
        mean, spread = norm.running_mean, norm.running_var
    return (x - mean) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


def steps(x, found, part):
    x = normed(x + dense(found, part.out), part.first)
    inner = dense(x, part.feed[0]).clamp(min=0)
    return normed(x + dense(inner, part.feed[3]), part.second)


def by_masks(layer, x, graph, edge=None):
    """Item 2 to 4 of the sheet, head by head, with n x n matrices; the row of a matrix receives."""
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[graph.receiver, graph.sender] = True
    head = WIDTH // HEADS
    query, key, value = (dense(x, part) for part in (layer.query, layer.key, layer.value))
    if edge is not None:
        features = torch.zeros(N, N, WIDTH, dtype=x.dtype)
        features[graph.receiver, graph.sender] = dense(edge, layer.edge)
    out, states = [], []
    for cut in (slice(h * head, (h + 1) * head) for h in range(HEADS)):
        vector = query[:, None, cut] * key[None, :, cut] / math.sqrt(head)
        if edge is not None:
            vector = vector * features[:, :, cut]
        power = torch.where(mask, vector.sum(-1).clamp(-5, 5).exp(), 0.0)
        total = power.sum(1, keepdim=True)
        out.append(power / torch.where(total > 0, total, 1.0) @ value[:, cut])
        states.append(vector[graph.receiver, graph.sender])
    nodes = steps(x, torch.cat(out, -1), layer.nodes)
    return nodes if edge is None else (nodes, steps(edge, torch.cat(states, -1), layer.edges))


@pytest.mark.parametrize("norm", [RaggedBatchNorm, nn.LayerNorm])
@pytest.mark.parametrize("edge_width", [None, WIDTH, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_formula_of_the_sheet(edge_width, norm, bias):
    torch.manual_seed(1)
    layer = stirred(GT(WIDTH, HEADS, edge_width=edge_width, norm=norm, bias=bias))
    graph, x = asymmetric(), 6 * torch.randn(N, WIDTH).double()
    edge = None if edge_width is None else 2 * torch.randn(graph.edges, edge_width).double()
    found, wanted = layer(x, graph.edge_index, edge), by_masks(layer, x, graph, edge)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_clamp_acts_on_the_sum_and_leaves_the_edge_state():
    layer = stirred(GT(4, 1, edge_width=4))
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.edge):
            part.weight.copy_(torch.eye(4))
    graph = Graph.from_edge_index([[0, 1], [2, 2]], num_nodes=3)
    # Logits 100 and 40 by single channels of +-; the sums are 10 and 6, both cut to 5: equal weights.
    x = torch.ones(3, 4).double()
    edge = torch.tensor([[100.0, -80, 0, 0], [40, -28, 0, 0]]).double()
    seen = {}
    layer.nodes.register_forward_pre_hook(lambda part, given: seen.update(found=given[1]))
    layer.edges.register_forward_pre_hook(lambda part, given: seen.update(state=given[1]))
    layer(x * torch.tensor([[1.0], [1.0], [1.0]]), graph, edge)
    value = layer.value(x)
    torch.testing.assert_close(seen["found"][2], (value[0] + value[1]) / 2)
    torch.testing.assert_close(seen["state"], edge / 2)


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(2)
    layer, graph = stirred(GT(WIDTH, HEADS, edge_width=WIDTH)), asymmetric(3)
    x = torch.randn(N, WIDTH).double().requires_grad_()
    edge = torch.randn(graph.edges, WIDTH).double().requires_grad_()
    parts = (x, edge, *layer.parameters())
    grads = []
    for found in (layer(x, graph, edge), by_masks(layer, x, graph, edge)):
        loss = sum((part * torch.arange(part.numel()).view_as(part).cos()).sum() for part in found)
        grads.append(torch.autograd.grad(loss, parts))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_full_graph_sees_structure_only_by_its_marks():
    torch.manual_seed(3)
    layer, x = stirred(GT(WIDTH, HEADS, edge_width=WIDTH)), torch.randn(N, WIDTH).double()
    one, other = (complete(asymmetric(seed)) for seed in (0, 1))
    marks = torch.randn(2, WIDTH).double()
    assert not torch.allclose(*(layer(x, graph, marks[real.long()])[0] for graph, real in (one, other)))
    plain = stirred(GT(WIDTH, HEADS))
    torch.testing.assert_close(plain(x, one[0]), plain(x, other[0]))


def test_the_norm_of_few_rows_stays_finite():
    norm = RaggedBatchNorm(3).double()
    many, one = torch.randn(50, 3).double(), torch.randn(1, 3).double()
    wanted = (many - many.mean(0)) / (many.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(many), wanted)
    before = norm.running_mean.clone()
    single = norm(one)
    torch.testing.assert_close(single, (one - before) / (norm.running_var + 1e-5).sqrt())
    assert torch.equal(norm.running_mean, before) and norm(one[:0]).shape == (0, 3)
    torch.testing.assert_close(norm.eval()(one), single)


def test_the_net_reads_eigenvectors_and_flips_their_signs_in_training_alone():
    torch.manual_seed(4)
    config = GTConfig(width=8, depth=2, heads=2, positions=3)
    net = graph_transformer(config, node_kinds=4, outputs=1, edge_kinds=2).double()
    graph = asymmetric().replace(edge_attr=torch.arange(asymmetric().edges) % 2)
    vectors = laplacian_eigenvectors(graph, 3)[1]
    x = torch.arange(N) % 4
    net.eval()
    torch.testing.assert_close(net(x, graph, extra=vectors), net(x, graph, extra=vectors))
    assert not torch.allclose(net(x, graph, extra=vectors), net(x, graph, extra=-vectors))
    encoder = net.extra.train()
    seen = {tuple((encoder(vectors, graph) - encoder.linear.bias)[0].tolist()) for _ in range(40)}
    assert 1 < len(seen) <= 8


@pytest.mark.parametrize("name", sorted(GTS))
def test_published_sizes(name):
    net = graph_transformer(GTS[name], node_kinds=28, outputs=1, edge_kinds=4)
    assert len(net.layers) == 10 and net.layers[0].heads == 8
    per_layer = sum(parameter.numel() for parameter in net.layers[0].parameters())
    width = GTS[name].width
    # Q, K, V, E without biases; twice O, two norms and the feed-forward step.
    steps = width * width + width + 4 * width + 2 * width * 2 * width + 3 * width
    assert per_layer == 4 * width * width + 2 * steps


def test_errors_say_what_to_give():
    with pytest.raises(ValueError, match="GT: width must be a multiple of heads, got 10 and 4"):
        GT(10, 4)
    with pytest.raises(ValueError, match="GT: limit must be above 0, got 0"):
        GT(8, 4, limit=0)
    with pytest.raises(ValueError, match=r"GT: edge_attr must be \(edges, 3\), got none"):
        GT(8, 4, edge_width=3)(torch.randn(N, 8), asymmetric())
