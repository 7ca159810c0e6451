"""GPS and its parts against PyG where the formulas agree, and against dense float64 elsewhere."""

import math

import pytest
import torch
from torch import nn

from attlas.graph import Graph, batch
from attlas.layers import (
    GINE,
    GPS,
    ByGraph,
    FavorAttention,
    GatedGCN,
    GraphAttention,
    PositionGate,
    favor_features,
    linear_by_graph,
    mixer_by_graph,
)
from attlas.layers.mixers import MIXERS
from attlas.models import GPSS, GPSConfig, gps_net
from skips import needs

WIDTH = 8


def directed(nodes, seed, edges=None):
    generator = torch.Generator().manual_seed(seed)
    edges = 2 * nodes if edges is None else edges
    ends = torch.randint(max(1, nodes), (2, edges), generator=generator)
    return Graph.from_edge_index(ends, num_nodes=nodes)


def several():
    """Graphs of 9, 1, 4, 0, 7 and 3 nodes in one batch."""
    return batch([directed(size, seed, 2 * size) for seed, size in enumerate((9, 1, 4, 0, 7, 3))])


def stirred(module):
    generator = torch.Generator().manual_seed(5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    return module.double().eval()


def inputs(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(graph.nodes, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(graph.edges, WIDTH, generator=generator, dtype=torch.float64)


@needs("torch_geometric")
def test_gine_is_that_of_pyg():
    from torch_geometric.nn import GINEConv

    ours, graph = GINE(WIDTH, eps=0.25).double(), several()
    x, edge = inputs(graph)
    theirs = GINEConv(ours.net, eps=0.25).double()
    wanted = theirs(x, graph.edge_index, edge)
    torch.testing.assert_close(ours(x, graph.edge_index, edge), wanted, rtol=1e-10, atol=1e-10)


@needs("torch_geometric")
def test_gps_is_that_of_pyg():
    from torch_geometric.nn import GINEConv, GPSConv

    torch.manual_seed(0)
    ours = GPS(WIDTH, GINE(WIDTH), GraphAttention(WIDTH, 2))
    stirred(ours)
    theirs = GPSConv(WIDTH, GINEConv(ours.local.net), heads=2, act="relu", norm="batch_norm").double().eval()
    attention = ours.everywhere
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        theirs.attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.attn.out_proj.load_state_dict(attention.out.state_dict())
    for name, part in (("norm1", ours.local_norm), ("norm2", ours.global_norm), ("norm3", ours.norm)):
        getattr(theirs, name).module.load_state_dict(part.state_dict())
    for place in (0, 3):
        theirs.mlp[place].load_state_dict(ours.feed[place].state_dict())
    graph = several()
    x, edge = inputs(graph)
    wanted = theirs(x, graph.edge_index, graph.graph_of, edge_attr=edge)
    torch.testing.assert_close(ours(x, graph, edge), wanted, rtol=1e-10, atol=1e-10)


def test_gated_gcn_is_its_formula():
    torch.manual_seed(1)
    layer, graph = stirred(GatedGCN(WIDTH)), directed(6, 3)
    x, edge = inputs(graph)
    new_edges, nodes = [], []
    for number in range(graph.edges):
        i, j = int(graph.receiver[number]), int(graph.sender[number])
        new_edges.append(layer.receiver(x[i]) + layer.sender(x[j]) + layer.edge(edge[number]))
    for i in range(6):
        into = [number for number in range(graph.edges) if int(graph.receiver[number]) == i]
        gates = [1 / (1 + (-new_edges[number]).exp()) for number in into]
        sent = [layer.message(x[int(graph.sender[number])]) for number in into]
        top = sum((gate * message for gate, message in zip(gates, sent, strict=True)), torch.zeros(WIDTH))
        nodes.append(layer.own(x[i]) + top / (sum(gates, torch.zeros(WIDTH)) + 1e-6))
    wanted = (
        x + layer.node_norm(torch.stack(nodes)).clamp(min=0),
        edge + layer.edge_norm(torch.stack(new_edges)).clamp(min=0),
    )
    torch.testing.assert_close(layer(x, graph, edge), wanted, rtol=1e-10, atol=1e-10)


def test_gps_keeps_the_residual_of_gated_gcn_inside():
    torch.manual_seed(2)
    layer = stirred(GPS(WIDTH, GatedGCN(WIDTH), FavorAttention(WIDTH, 2)))
    graph = several()
    x, edge = inputs(graph)
    near, state = layer.local(x, graph, edge)
    y = layer.local_norm(near) + layer.global_norm(x + layer.everywhere(x, graph))
    wanted = layer.norm(y + layer.feed(y))
    found = layer(x, graph, edge)
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(found[1], state)


@pytest.mark.parametrize("gated", [GINE, GatedGCN])
def test_gates_by_positions_do_not_see_rotations_and_signs(gated):
    torch.manual_seed(3)
    layer, graph = stirred(gated(WIDTH, gated=True)), directed(7, 1)
    x, edge = inputs(graph)
    positions = torch.randn(7, 3).double()
    turn = torch.linalg.qr(torch.randn(3, 3).double()).Q
    one, other = (layer(x, graph, edge, positions=given) for given in (positions, positions @ turn))
    torch.testing.assert_close(one, other)
    moved = layer(x, graph, edge, positions=positions * torch.arange(1, 8)[:, None])
    first = one[0] if isinstance(one, tuple) else one
    assert not torch.allclose(first, moved[0] if isinstance(moved, tuple) else moved)
    with pytest.raises(ValueError, match="made with gated=True, but got none positions"):
        layer(x, graph, edge)
    with pytest.raises(ValueError, match="made without gated=True, but got some positions"):
        stirred(gated(WIDTH))(x, graph, edge, positions=positions)


def test_the_position_gate_is_its_formula():
    torch.manual_seed(4)
    gate, graph = PositionGate(5).double(), directed(6, 2)
    positions = torch.randn(6, 2).double()
    for number, found in enumerate(gate(positions, graph)[:, 0]):
        apart = positions[graph.receiver[number]] - positions[graph.sender[number]]
        squared = (apart**2).sum().view(1)
        hidden = (gate.net[0].weight @ squared + gate.net[0].bias).clamp(min=0)
        wanted = torch.sigmoid(gate.net[2].weight @ hidden + gate.net[2].bias)[0]
        torch.testing.assert_close(found, wanted)


def features(rows, directions, keys):
    """The sheet's phi of the rows of one head in one graph, without any stabilised shortcut."""
    count, width = directions.shape
    scaled = rows / width**0.25
    along = scaled @ directions.T
    shift = along.max() if keys else along.max(1, keepdim=True).values
    return ((along - (scaled**2).sum(1, keepdim=True) / 2 - shift).exp() + 1e-4) / math.sqrt(count)


def test_favor_is_its_formula_graph_by_graph():
    torch.manual_seed(5)
    graph = several()
    module = FavorAttention(12, 2).double()
    assert module.directions.shape == (math.floor(6 * math.log(6)), 6)
    x = 2 * torch.randn(graph.nodes, 12).double()
    query, key, value = (part(x) for part in (module.query, module.key, module.value))
    wanted = torch.zeros_like(x)
    directions = module.directions.double()
    for start, stop in zip(graph.pointer[:-1], graph.pointer[1:], strict=True):
        if start == stop:
            continue
        for cut in (slice(0, 6), slice(6, 12)):
            asked = features(query[start:stop, cut], directions, keys=False)
            given = features(key[start:stop, cut], directions, keys=True)
            weights = asked @ given.T
            mixed = weights @ value[start:stop, cut] / weights.sum(1, keepdim=True)
            wanted[start:stop, cut] = mixed
    torch.testing.assert_close(module(x, graph), module.out(wanted), rtol=1e-9, atol=1e-10)


def test_favor_nears_softmax_with_many_features():
    torch.manual_seed(6)
    graph, width = several(), 4
    q, k, v = (0.4 * torch.randn(graph.nodes, 1, width).double() for _ in range(3))
    directions = torch.randn(20_000, width).double()
    found = linear_by_graph(favor_features(q, directions), favor_features(k, directions, graph), v, graph)[
        :, 0
    ]
    logits = (q[:, 0] @ k[:, 0].T / 2).masked_fill(graph.graph_of[:, None] != graph.graph_of, -torch.inf)
    torch.testing.assert_close(found, logits.softmax(1) @ v[:, 0], rtol=0, atol=0.02)


def test_favor_draws_no_directions_anew():
    module, graph = FavorAttention(8, 2, dropout=0.0), several()
    x = torch.randn(graph.nodes, 8)
    assert torch.equal(module(x, graph), module(x, graph))
    assert "directions" in module.state_dict()


@pytest.mark.parametrize("single", [True, False])
def test_softmax_attention_is_dense_attention_with_a_mask(single):
    torch.manual_seed(7)
    graph = directed(9, 0) if single else several()
    module = GraphAttention(WIDTH, 2).double()
    x, _ = inputs(graph)
    query, key, value = (part(x).view(-1, 2, 4) for part in (module.query, module.key, module.value))
    logits = torch.einsum("ihd,jhd->hij", query, key) / 2
    logits = logits.masked_fill(graph.graph_of[:, None] != graph.graph_of, -torch.inf)
    mixed = torch.einsum("hij,jhd->ihd", logits.softmax(-1), value).flatten(1)
    torch.testing.assert_close(module(x, graph), module.out(mixed))


@pytest.mark.parametrize("name", sorted(name for name, entry in MIXERS.items() if "NS" in entry.forms))
def test_any_mixer_is_a_global_part_and_sees_its_graph_alone(name):
    if MIXERS[name].tokens != "any":
        with pytest.raises(ValueError, match="made for a fixed number of tokens"):
            mixer_by_graph(name, WIDTH, 2, length=9)
        return
    torch.manual_seed(8)
    graphs = [directed(size, size) for size in (9, 5, 6)]
    layer = stirred(GPS(WIDTH, None, mixer_by_graph(name, WIDTH, 2, length=9)))
    together = batch(graphs)
    x, _ = inputs(together)
    alone = torch.cat([layer(part, graph) for part, graph in zip(x.split([9, 5, 6]), graphs, strict=True)])
    torch.testing.assert_close(layer(x, together), alone, rtol=1e-7, atol=1e-7)


def test_a_mixer_of_equal_sizes_gets_no_padding():
    class Counts(nn.Module):
        def forward(self, x):
            return x + x.shape[1]

    graph = several()
    x, _ = inputs(graph)
    sizes = graph.pointer.diff()[graph.graph_of][:, None]
    assert torch.equal(ByGraph(Counts(), padding=False)(x, graph), x + sizes)


def test_the_net_takes_any_parts():
    graph = several().replace(edge_attr=torch.zeros(several().edges, dtype=torch.int64))
    x = torch.zeros(graph.nodes, dtype=torch.int64)
    for local, everywhere in (
        ("gine", "favor"),
        ("gated-gcn", None),
        (None, "softmax"),
        ("gine", "cosformer"),
    ):
        config = GPSConfig(width=WIDTH, depth=2, heads=2, local=local, everywhere=everywhere)
        net = gps_net(config, outputs=3, node_kinds=2, edge_kinds=1)
        assert net(x, graph).shape == (6, 3)
    assert (GPSS["zinc"].depth, GPSS["zinc"].width, GPSS["malnet-tiny"].depth) == (10, 64, 5)


def test_errors_say_what_to_give():
    graph = several()
    x, edge = inputs(graph)
    with pytest.raises(ValueError, match="GPS: give a local part, a global one"):
        GPS(WIDTH, None, None)
    with pytest.raises(ValueError, match=r"GINE: edge_attr must be \(edges, 8\), got none"):
        GINE(WIDTH).double()(x, graph)
    with pytest.raises(ValueError, match=r"GatedGCN: edge_attr must be \(edges, 8\), got"):
        GatedGCN(WIDTH).double()(x, graph, edge[:, :3])
    with pytest.raises(ValueError, match="local must be one of gine, gated-gcn or None, got 'gat'"):
        GPSConfig(local="gat").layer()
    with pytest.raises(ValueError, match="FavorAttention: width must be a multiple of heads, got 8 and 3"):
        FavorAttention(8, 3)
    with pytest.raises(ValueError, match="GraphAttention: width must be a multiple of heads, got 8 and 3"):
        GraphAttention(8, 3)
    for part in (GraphAttention(8, 2), FavorAttention(8, 2), mixer_by_graph("cosformer", 8, 2)):
        with pytest.raises(ValueError, match=r"x must have a row for each of 24 nodes, got \(5, 8\)"):
            part(torch.zeros(5, 8), graph)
