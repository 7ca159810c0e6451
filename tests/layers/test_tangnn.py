"""TANGNN: attention to the best nodes, beside dense attention written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from attlas.graph import Graph, batch
from attlas.layers import PooledLayer, TANGNNLayer, TiledLayer, TopAttention
from attlas.layers.tangnn import top_nodes
from attlas.models import TANGNN, TANGNNFLC


def drawn(seed=0, sizes=(7, 2, 9), width=6):
    generator = torch.Generator().manual_seed(seed)
    graphs = [
        Graph.from_edge_index(torch.randint(0, n, (2, 3 * n), generator=generator), num_nodes=n)
        for n in sizes
    ]
    return graphs, torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64)


def dense(layer, x, kept):
    """The transformer layer with every node as a key, those that are not kept masked."""
    score = functional.cosine_similarity(x.relu(), layer.wanted.expand_as(x), dim=1)
    heads = [
        part(x).unflatten(1, (layer.heads, -1)).transpose(0, 1)
        for part in (layer.query, layer.key, layer.value)
    ]
    logits = heads[0] @ heads[1].mT / math.sqrt(heads[0].shape[2]) + score
    weights = logits.masked_fill(~kept, -math.inf).softmax(-1)
    y = layer.after_attention(x + layer.out((weights @ heads[2]).transpose(0, 1).flatten(1)))
    return layer.after_mlp(y + layer.mlp(y)), score


@pytest.mark.parametrize("heads", [1, 2])
def test_all_nodes_picked_is_dense_attention(heads):
    (graph, *_), x = drawn(sizes=(9,))
    layer = TopAttention(6, heads=heads, picked=9).double()
    wanted, _ = dense(layer, x, torch.ones(9, dtype=torch.bool))
    torch.testing.assert_close(layer(x, graph), wanted, rtol=1e-10, atol=1e-10)
    layer.picked = 50
    torch.testing.assert_close(layer(x, graph), wanted, rtol=1e-10, atol=1e-10)


def test_the_best_of_every_graph_are_the_keys():
    graphs, x = drawn(1)
    layer = TopAttention(6, heads=2, picked=3).double()
    found = layer(x, batch(graphs)).split((7, 2, 9))
    for graph, own, out in zip(graphs, x.split((7, 2, 9)), found, strict=True):
        _, score = dense(layer, own, torch.ones(len(own), dtype=torch.bool))
        kept = torch.zeros(len(own), dtype=torch.bool)
        kept[score.topk(min(3, len(own))).indices] = True
        wanted, _ = dense(layer, own, kept)
        torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer(own, graph), wanted, rtol=1e-10, atol=1e-10)


def test_the_vector_has_a_gradient():
    graphs, x = drawn(2)
    layer = TopAttention(6, picked=3).double()
    layer(x, batch(graphs)).square().sum().backward()
    assert layer.wanted.grad.norm() > 1e-6


def renumbered(graph, new):
    return Graph.from_edge_index(new[graph.edge_index], num_nodes=graph.nodes)


@pytest.mark.parametrize("form", ["main", "lc", "nai", "tai", "flc", "official"])
def test_another_numbering_changes_nothing_but_in_the_release(form):
    """With many ties: rows without a positive feature all score 0."""
    (graph,), x = drawn(3, sizes=(12,))
    x[:9] = -x[:9].abs()
    options = {"width": 4, "picked": 5}
    if form == "flc":
        net = TANGNNFLC(6, 3, **options)
    elif form == "official":
        net = TANGNN(6, 3, **options, official=True)
    else:
        net = TANGNN(6, 3, **options, form=form)
    net = net.double().eval()
    new = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = net(x[new.argsort()], renumbered(graph, new))[new]
    if form == "official":
        assert (moved - net(x, graph)).abs().max() > 1e-3
    else:
        torch.testing.assert_close(moved, net(x, graph), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["main", "lc", "nai", "tai", "flc", "official"])
def test_a_batch_is_its_graphs_one_by_one(form):
    graphs, x = drawn(4)
    net = (
        TANGNNFLC(6, 3)
        if form == "flc"
        else TANGNN(6, 3, form=form if form != "official" else "main", picked=3)
    )
    if form == "official":
        net = TANGNN(6, 3, picked=3, official=True)
    net = net.double().eval()
    whole = net(x, batch(graphs)).split((7, 2, 9))
    for graph, own, wanted in zip(graphs, x.split((7, 2, 9)), whole, strict=True):
        torch.testing.assert_close(net(own, graph), wanted)


def test_the_pooled_layer_by_hand():
    (graph,), x = drawn(5, sizes=(8,))
    layer = PooledLayer(6, 4, picked=3).double().eval()
    z = layer.near(x, graph).relu()
    _, score = dense(layer.attention, z, torch.ones(8, dtype=torch.bool))
    best = score.topk(3).indices
    told, _ = dense(layer.attention, z[best], torch.ones(3, dtype=torch.bool))
    wanted = torch.cat([z, told.mean(0).expand(8, -1)], 1)
    torch.testing.assert_close(layer(x, graph), wanted)


def test_the_released_layer_by_hand():
    (graph,), x = drawn(6, sizes=(8,))
    layer = TiledLayer(6, 4, picked=3).double().eval()
    score = functional.cosine_similarity(x.relu(), torch.ones_like(x), dim=1)
    picked = layer.adjust(x[score.topk(3).indices])
    z = layer.near[1](layer.near[0](x, graph).relu(), graph).relu()
    wanted = torch.cat([z, picked.repeat(3, 1)[:8]], 1)
    torch.testing.assert_close(layer(x, graph), wanted)


def test_a_layer_is_its_halves():
    graphs, x = drawn(7)
    graph, layer = batch(graphs), TANGNNLayer(6, 4, picked=2).double().eval()
    wanted = torch.cat([layer.near(x, graph).relu(), layer.attention(layer.into(x), graph)], 1)
    torch.testing.assert_close(layer(x, graph), wanted)


def test_ties_are_told_apart_by_the_rows():
    (graph,), _ = drawn(sizes=(4,))
    x = torch.tensor([[-1.0, 2.0], [-1.0, 3.0], [-2.0, 0.0], [5.0, 0.0]])
    nodes, pointer = top_nodes(torch.tensor([0.0, 0.0, 0.0, -1.0]), x, graph, 3)
    assert nodes.tolist() == [2, 0, 1] and pointer.tolist() == [0, 3]


def test_many_ties_of_many_graphs_are_one_sort_by_all_keys():
    graphs, _ = drawn(sizes=(40, 1, 25))
    generator = torch.Generator().manual_seed(1)
    score, x = (torch.randint(0, 3, size, generator=generator).double() for size in ((66,), (66, 2)))
    nodes, _ = top_nodes(score, x, batch(graphs), 9)
    wanted = []
    for first, last in ((0, 40), (40, 41), (41, 66)):
        wanted += sorted(range(first, last), key=lambda i: (-score[i], *x[i].tolist(), i))[:9]
    assert nodes.tolist() == wanted


def test_the_attention_halves_need_no_messages_of_the_last_layer():
    graphs, x = drawn(8)
    net = TANGNN(6, 3, form="lc", depth=3, width=4, picked=3).double()
    net(x, batch(graphs)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_errors_say_what_came():
    with pytest.raises(ValueError, match="picked must be 1 or more nodes, got 0"):
        TopAttention(4, picked=0)
    with pytest.raises(ValueError, match="form must be one of main, lc, nai, tai, got 'all'"):
        TANGNN(4, 2, form="all")
    with pytest.raises(ValueError, match="form must be 'main', got 'lc'"):
        TANGNN(4, 2, form="lc", official=True)
