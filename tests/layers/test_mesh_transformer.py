"""The mesh transformer's block against dense masked softmax and PyG; MeshGraphNet's against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from attlas.graph import Graph, with_self_loops
from attlas.layers.mesh_graph_net import MeshGraphNetLayer, relu_mlp
from attlas.layers.mesh_transformer import GatedGELU, MeshTransformerLayer, RootMeanSquare, rotary_axes
from skips import needs

# Asymmetric: 1 hears 0 and 3, 0 hears nobody, 4 is alone.
GRAPH = Graph.from_edge_index(torch.tensor([[0, 3, 1, 2, 1], [1, 1, 2, 3, 3]]), num_nodes=5)
WIDTH, HEADS = 12, 3


def layer():
    torch.manual_seed(0)
    made = MeshTransformerLayer(WIDTH, HEADS).double()
    for part in made.parameters():
        torch.nn.init.normal_(part, std=0.5)
    return made


def norm(x, scale):
    return scale * x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8)


def dense(made, x, graph, turn=lambda part: part):
    """The block with n x n logits, masked by the adjacency (rows receive)."""
    seen = torch.zeros(len(x), len(x), dtype=torch.bool)
    seen[graph.receiver, graph.sender] = True
    z = norm(x, made.before_attention.scale)
    heads = []
    size = WIDTH // HEADS
    for head in range(HEADS):
        mine = slice(head * size, (head + 1) * size)
        query, key, value = (
            z @ part.weight[mine].T + part.bias[mine] for part in (made.query, made.key, made.value)
        )
        logits = turn(query) @ turn(key).T / math.sqrt(size)
        weights = logits.masked_fill(~seen, -math.inf).softmax(1).nan_to_num(0.0)
        heads.append(weights @ value)
    x = x + torch.cat(heads, 1) @ made.out.weight.T + made.out.bias
    u = norm(x, made.before_mlp.scale)
    mlp = made.mlp
    gate = functional.gelu(u @ mlp.gate.weight.T + mlp.gate.bias) * (u @ mlp.value.weight.T + mlp.value.bias)
    return x + gate @ mlp.out.weight.T + mlp.out.bias


def test_the_block_is_the_dense_one():
    made, x = layer(), torch.randn(5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(made(x, GRAPH), dense(made, x, GRAPH), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made(x, GRAPH.edge_index), made(x, GRAPH))
    looped = with_self_loops(GRAPH)
    torch.testing.assert_close(made(x, looped), dense(made, x, looped), rtol=1e-10, atol=1e-10)
    assert (made(x, looped) - made(x, GRAPH)).abs().max() > 1e-3


def test_a_node_without_links_gets_attention_zero():
    made, x = layer(), torch.randn(5, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        made.out.bias.zero_()
        for part in (made.mlp.out.weight, made.mlp.out.bias):
            part.zero_()
    out = made(x, GRAPH)
    assert torch.equal(out[[0, 4]], x[[0, 4]]) and not torch.equal(out[1], x[1])


def test_rotary_angles_are_those_of_the_formula_and_relative():
    made, x = layer(), torch.randn(5, WIDTH, dtype=torch.float64)
    places = torch.rand(5, 2, dtype=torch.float64)

    def turn(part):
        """One pair of channels for each of two axes: m = 4 // 4 = 1, so that all rates are 1."""
        found = part.clone()
        for axis in range(2):
            pair = torch.complex(part[:, 2 * axis], part[:, 2 * axis + 1])
            pair = pair * torch.polar(torch.ones(5, dtype=torch.float64), places[:, axis])
            found[:, 2 * axis], found[:, 2 * axis + 1] = pair.real, pair.imag
        return found

    out = made(x, GRAPH, positions=places)
    torch.testing.assert_close(out, dense(made, x, GRAPH, turn), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made(x, GRAPH, positions=places + 7.0), out, rtol=1e-10, atol=1e-10)


def test_rotary_axes_leave_the_rest_and_need_room():
    x = torch.randn(2, 6, 15)
    places = torch.zeros(6, 3)
    places[:, 1] = 1.0
    out = rotary_axes(x, places)
    assert torch.equal(out[..., 12:], x[..., 12:]), "15 channels hold two pairs for each of three axes"
    assert torch.equal(out[..., :4], x[..., :4]) and torch.equal(out[..., 8:12], x[..., 8:12])
    slow = torch.complex(x[..., 6], x[..., 7]) * torch.polar(torch.tensor(1.0), torch.tensor(0.01))
    torch.testing.assert_close(out[..., 6], slow.real)
    with pytest.raises(ValueError, match="a head needs at least 6 channels for 3 axes, got 5"):
        rotary_axes(x[..., :5], places)


@needs("torch_geometric")
def test_attention_is_pygs_transformer_conv():
    from torch_geometric.nn import TransformerConv

    made, x = layer(), torch.randn(5, WIDTH, dtype=torch.float64)
    theirs = TransformerConv(WIDTH, WIDTH // HEADS, HEADS, concat=True, root_weight=False).double()
    for name in ("query", "key", "value"):
        getattr(theirs, f"lin_{name}").load_state_dict(getattr(made, name).state_dict())
    mine = made._attended(x, GRAPH, None)
    torch.testing.assert_close(mine, theirs(x, GRAPH.edge_index), rtol=1e-10, atol=1e-10)


def test_norm_and_gated_mlp():
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    made = RootMeanSquare(WIDTH).double()
    torch.testing.assert_close(made(x), norm(x, torch.ones(WIDTH, dtype=torch.float64)))
    still = torch.zeros(1, WIDTH, dtype=torch.float64, requires_grad=True)
    out = made(still)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out)) and still.grad.isfinite().all()
    assert GatedGELU(WIDTH, 3).out.in_features == 36


def loops(made, x, edge, graph):
    """MeshGraphNet's block edge by edge."""
    total, messages = torch.zeros(len(x), edge.shape[1]), []
    for at, (of, to) in enumerate(graph.edge_index.T.tolist()):
        messages.append(made.message(torch.cat([edge[at], x[to], x[of]])))
        total[to] = total[to] + messages[-1]
    return x + made.update(torch.cat([x, total], 1)), edge + torch.stack(messages)


def test_mesh_graph_net_by_loops():
    made = MeshGraphNetLayer(8, edge_width=6)
    x, edge = torch.randn(5, 8), torch.randn(5, 6)
    found, expected = made(x, GRAPH.edge_index, edge), loops(made, x, edge, GRAPH)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len([part for part in made.message if isinstance(part, torch.nn.Linear)]) == 4


def test_wrong_calls():
    with pytest.raises(ValueError, match=r"edge_attr must be \(edges, 8\), got none"):
        MeshGraphNetLayer(8)(torch.randn(5, 8), GRAPH)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 12 and 5"):
        MeshTransformerLayer(12, 5)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        relu_mlp(3, 4, 5, layers=0)
