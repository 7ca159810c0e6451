"""GMN: the layer beside its formulas written as loops, its orders and what it is packed into."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.graph import Graph, batch, subgraph, unbatch, walk_tokens
from attlas.layers import GIN, BiMamba, ForwardMamba, GMNLayer, SubgraphEncoder
from attlas.layers.gmn import node_order
from attlas.models import GMN


def drawn(seed=0, sizes=(6, 1, 4), width=8):
    generator = torch.Generator().manual_seed(seed)
    graphs = [
        Graph.from_edge_index(
            torch.randint(0, n, (2, 3 * n if n > 1 else 0), generator=generator), num_nodes=n
        )
        for n in sizes
    ]
    return graphs, torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64)


def one_way(mamba, rows):
    """P = SiLU(Conv(W_in x)), h_t = exp(Delta A) h + Delta B P, y_t = C h_t + D P: token by token."""
    weights, scan = mamba.conv.weight, mamba.scan
    inner, gate = mamba.into(rows).chunk(2, -1)
    rate, states = -scan.log_rate.exp(), scan.states
    hidden, found = torch.zeros_like(rate), []
    for t in range(len(rows)):
        taps = [weights[:, -1 - lag] * inner[t - lag] for lag in range(min(t + 1, weights.shape[1]))]
        p = functional.silu(sum(taps) + mamba.conv.bias)
        steer, write, read = scan.steer(p).split((scan.rank, states, states))
        delta = functional.softplus(scan.step(steer))
        hidden = torch.exp(delta[:, None] * rate) * hidden + (delta * p)[:, None] * write
        y = hidden @ read + scan.skip * p
        found.append(mamba.out(y * functional.silu(gate[t])))
    return torch.stack(found)


def both_ways(block, rows):
    rows = block.norm(rows)
    return block.out(one_way(block.ahead, rows) + one_way(block.back, rows.flip(0)).flip(0))


def test_a_layer_is_its_formulas_node_by_node():
    graphs, x = drawn()
    graph = batch(graphs)
    layer = GMNLayer(8, walks=2, length=3, repeats=2, mpnn=GIN(8, norm=nn.Identity)).double().eval()
    tokens = walk_tokens(graph, walks=2, length=3, repeats=2)
    starts, encoded = tokens.graph.pointer.tolist(), []
    for one, two in pairwise(starts):
        nodes = tokens.node[one:two]
        part, _ = subgraph(graph, nodes)
        h = x[nodes]
        for gin in layer.encoder.layers:
            h = gin(h, part)
        encoded.append(h.mean(0))
    phi = torch.stack(encoded).unflatten(0, (-1, tokens.count))
    y = torch.stack([both_ways(layer.over_tokens, rows)[-1] for rows in phi])
    wanted, start = layer.mpnn(x, graph), 0
    for part in graphs:
        mine = range(start, start + part.nodes)
        order = sorted(mine, key=lambda i: (int(graph.in_degree[i]), y[i].tolist()))
        wanted[order] += both_ways(layer.over_nodes, y[order])
        start += part.nodes
    torch.testing.assert_close(layer(x, graph), wanted)
    torch.testing.assert_close(layer(x, graph, tokens=tokens), wanted)


def test_a_batch_is_its_graphs_one_by_one():
    graphs, x = drawn(1)
    layer = GMNLayer(8).double().eval()
    whole = layer(x, batch(graphs))
    for part, own, wanted in zip(graphs, x.split((6, 1, 4)), whole.split((6, 1, 4)), strict=True):
        torch.testing.assert_close(layer(own, part), wanted)


def test_what_is_no_number_stays_in_its_graph():
    graphs, x = drawn(1)
    layer = GMNLayer(8).double().eval()
    whole = layer(x, batch(graphs))
    x[2, 3] = float("nan")
    spoilt = layer(x, batch(graphs))
    assert spoilt[:6].isnan().all()
    torch.testing.assert_close(spoilt[6:], whole[6:])


def test_packed_sequences_are_padded_ones():
    """Padding steps have Delta = 0 and change no state; packed ones begin anew."""
    torch.manual_seed(0)
    block = BiMamba(4, norm=True).double()
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in (5, 1, 3)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    valid = torch.arange(5) < torch.tensor([[5], [1], [3]])
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, [0, 5, 6]] = True
    packed = block(torch.cat(rows)[None], reset=reset)[0]
    torch.testing.assert_close(packed, block(padded, valid=valid)[valid])
    torch.testing.assert_close(packed, torch.cat([both_ways(block, one) for one in rows]))
    torch.testing.assert_close(block.last(rows[0][None])[0], packed[4])


def test_a_packed_row_can_be_cut_between_and_within_sequences():
    torch.manual_seed(0)
    mamba = BiMamba(4).double().ahead
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 4] = reset[1, 6] = reset[1, 7] = True
    whole = mamba(x, reset=reset)
    state, parts = mamba.start(2), []
    for piece in (slice(0, 5), slice(5, 7), slice(7, 9)):
        found, state = mamba.advance(x[:, piece], state, reset=reset[:, piece])
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(whole[0, 4:], mamba(x[:1, 4:])[0])


def test_nodes_stand_by_degree_and_ties_by_what_they_are():
    ends = [[0, 1, 2, 3, 0, 4], [1, 0, 1, 0, 2, 3]]
    graph = Graph.from_edge_index(ends, num_nodes=5)
    y = torch.tensor([[5.0], [4.0], [3.0], [2.0], [9.0]])
    assert node_order(graph, y, random=False).tolist() == [4, 3, 2, 1, 0]
    seen = {tuple(node_order(graph, y, random=True).tolist()) for _ in range(60)}
    assert seen == {(4, *two, *one) for two in ((2, 3), (3, 2)) for one in ((0, 1), (1, 0))}


def test_without_walks_another_numbering_changes_nothing():
    """m = 0: ties are broken by what nodes are."""
    graphs, x = drawn(2, sizes=(9,))
    layer = GMNLayer(8, length=0).double().eval()
    new = torch.randperm(9)
    moved = Graph.from_edge_index(new[graphs[0].edge_index], num_nodes=9)
    torch.testing.assert_close(layer(x[new.argsort()], moved)[new], layer(x, graphs[0]))


def test_tokens_of_equal_length_change_places_in_training_only():
    torch.manual_seed(0)
    graphs, _ = drawn(sizes=(5,))
    tokens = walk_tokens(graphs[0], walks=1, length=2, repeats=3)
    encoded = torch.arange(7.0).view(1, 7, 1).expand(5, 7, 1)
    layer = GMNLayer(8, length=2, repeats=3)
    seen = {tuple(row) for _ in range(30) for row in layer._arranged(encoded, tokens)[..., 0].int().tolist()}
    assert all(set(row[:3]) == {0, 1, 2} and set(row[3:6]) == {3, 4, 5} and row[6] == 6 for row in seen)
    assert len(seen) > 30
    assert layer.eval()._arranged(encoded, tokens) is encoded
    layer.ordered = False
    assert torch.equal(layer._arranged(encoded, tokens), layer._arranged(encoded, tokens))
    assert len({row[6] for row in layer._arranged(encoded, tokens)[..., 0].int().tolist()}) > 1


def test_edge_features_reach_the_encoder():
    class Weighing(nn.Module):
        def forward(self, x, graph, edge_attr):
            return x.new_zeros(x.shape).index_add(0, graph.receiver, edge_attr), edge_attr

    graphs, x = drawn(sizes=(6,))
    graph, tokens = graphs[0], walk_tokens(graphs[0], walks=2, length=2, repeats=1)
    features = torch.randn(graph.edges, 8, dtype=torch.float64)
    found = SubgraphEncoder([Weighing()])(x, tokens, features)
    parts = unbatch(tokens.graph.replace(edge_attr=features[tokens.edge]))
    wanted = torch.stack([part.edge_attr.sum(0) / part.nodes for part in parts])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("readout", ["sum", "mean", None])
def test_the_network_answers_and_learns(readout):
    graphs, x = drawn()

    def made(width):
        return GMNLayer(width, length=1, scan=ForwardMamba)

    net = GMN(8, 16, 3, depth=2, readout=readout, make_layer=made).double()
    found = net(x, batch(graphs))
    assert found.shape == (11 if readout is None else 3, 3)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_errors_say_what_came():
    graphs, x = drawn()
    tokens = walk_tokens(graphs[0], walks=1, length=1, repeats=1)
    layer = GMNLayer(8).double().eval()
    with pytest.raises(ValueError, match="11 nodes and 30 edges .* another one, of 6 nodes and 18 edges"):
        layer(x, batch(graphs), tokens=tokens)
    turned = graphs[0].edge_index.flip(0)
    with pytest.raises(ValueError, match="must be drawn from this graph"):
        layer(x[:6], turned, tokens=tokens)
    layer(x[:6], graphs[0].edge_index.clone(), tokens=tokens)  # the same edges as a tensor
    with pytest.raises(ValueError, match="readout must be 'sum', 'mean' or None, got 'max'"):
        GMN(8, 8, 2, readout="max")
