"""LargeGT's tokens, their attention and readout, and the model, against the definition written out."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from attlas.graph import Graph
from attlas.layers import HopTokens, SampledAttention, TokenAttention
from attlas.models import LargeGT
from graph.test_hops import joined, messy


def test_tokens_are_rows_of_the_features_and_of_their_averages():
    graph = messy()
    matrix = joined(graph) + np.eye(9)
    root = matrix.sum(1) ** -0.5
    average = torch.from_numpy(root[:, None] * matrix * root)
    x = torch.randn(9, 4, dtype=torch.float64)
    tokens = HopTokens(graph, x, 5, seed=1)
    found = tokens(torch.tensor([7, 2]))
    assert found.shape == (2, 15, 4)
    for row, node in enumerate((7, 2)):
        for place, drawn in enumerate([node, *tokens.samples[node].tolist()]):
            wanted = torch.stack([x[drawn], (average @ x)[drawn], (average @ average @ x)[drawn]])
            assert torch.allclose(found[row, 3 * place : 3 * place + 3], wanted, atol=1e-14)
    again = HopTokens(graph, x, 5, samples=tokens.samples)
    assert torch.equal(again(torch.tensor([7, 2])), found)


def test_the_layer_is_the_definition_written_out():
    torch.manual_seed(0)
    layer = TokenAttention(5, 4, heads=3).double().eval()
    tokens = torch.randn(2, 6, 5, dtype=torch.float64)
    for one, found in zip(tokens, layer(tokens), strict=True):
        first, _, _, second = layer.inputs
        t = layer.tokens(second(functional.relu(first(one))))
        normal = functional.layer_norm(t, (4,), layer.norm.weight, layer.norm.bias)
        heads = []
        for head in range(3):
            own = slice(4 * head, 4 * head + 4)
            q, k, v = (part(normal)[:, own] for part in (layer.query, layer.key, layer.value))
            heads.append(torch.softmax(q @ k.T / math.sqrt(4), 1) @ v)
        t = layer.skip(t) + layer.out(torch.cat(heads, 1))
        t = functional.layer_norm(t, (12,), layer.last.weight, layer.last.bias)
        logits = torch.stack([layer.readout(torch.cat([t[0], other]))[0] for other in t[1:]])
        wanted = t[0] + (torch.softmax(logits, 0)[:, None] * t[1:]).sum(0)
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_other_tokens_come_in_any_order_and_twice_counts_twice():
    layer = TokenAttention(5, 4).double().eval()
    tokens = torch.randn(3, 7, 5, dtype=torch.float64)
    order = torch.tensor([0, 4, 2, 6, 1, 3, 5])
    assert torch.allclose(layer(tokens[:, order]), layer(tokens), atol=1e-12)
    assert not torch.allclose(layer(tokens[:, [1, 0, *range(2, 7)]]), layer(tokens), atol=1e-3)
    twice = torch.cat([tokens, tokens[:, 3:4]], 1)
    assert not torch.allclose(layer(twice), layer(tokens), atol=1e-6)


def ring(nodes: int) -> Graph:
    return Graph.from_edge_index(
        torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes]), num_nodes=nodes
    )


def test_where_samples_cover_every_neighbour_the_numbering_does_not_matter():
    # On a ring each list is 2 + 3 nodes: five samples are all of them.
    graph, layer = ring(12), SampledAttention(6, 2, count=6).double().eval()
    x, number = torch.randn(12, 6, dtype=torch.float64), torch.randperm(12)
    moved = torch.empty_like(x)
    moved[number] = x
    other = Graph.from_edge_index(number[graph.edge_index], num_nodes=12)
    assert torch.allclose(layer(moved, other)[number], layer(x, graph), atol=1e-12)


def test_the_reach_is_four_hops_both_ways():
    graph, layer = ring(12), SampledAttention(4, count=6).double().eval()
    x = torch.randn(12, 4, dtype=torch.float64)
    other = x.clone()
    other[0] += 1
    changed = ((layer(other, graph) - layer(x, graph)).abs().amax(1) > 1e-12).nonzero()[:, 0].tolist()
    assert changed == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert layer(x[:0], Graph.from_edge_index([[], []], num_nodes=0)).shape == (0, 4)


def small_model(**more) -> LargeGT:
    sizes = {"nodes": 40, "width": 8, "rows": 6, "position": 3} | more
    return LargeGT(5, 4, **sizes)


def test_the_model_joins_both_parts():
    torch.manual_seed(0)
    model = small_model().double()
    tokens, position, nodes = torch.randn(9, 6, 5).double(), torch.randn(9, 3).double(), torch.arange(9)
    for _ in range(3):
        model(tokens, position, nodes)
    model.eval()
    local = model.local(tokens)
    whole = model.whole(model.inputs(tokens[:, 0]), position)
    assert torch.equal(model(tokens, position), model.head(model.ffn(torch.cat([local, whole], 1))))
    alone = torch.cat([model(tokens[i : i + 1], position[i : i + 1]) for i in range(9)])
    assert torch.allclose(model(tokens, position), alone, atol=1e-12)
    assert [m.p for m in model.ffn if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]
    assert model.ffn[0].in_features == 2 * 2 * 8 and model.ffn[4].in_features == 2 * 8


def test_without_rows_it_is_the_local_part_alone():
    model = small_model(rows=None).eval()
    assert model.whole is None and model(torch.randn(3, 6, 5)).shape == (3, 4)
    assert model.ffn[0].in_features == 2 * 8
    assert set(dict(small_model().named_parameters())) > set(dict(model.named_parameters()))


def test_it_learns_what_only_the_neighbourhood_tells():
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 2, (400,), generator=generator)
    ends = torch.randint(0, 400, (2, 12_000), generator=generator)
    graph = Graph.from_edge_index(ends[:, kind[ends[0]] == kind[ends[1]]], num_nodes=400)
    x = torch.randn(400, 6, generator=generator)
    x[:, 0] += 0.7 * (2 * kind - 1)
    torch.manual_seed(0)
    tokens = HopTokens(graph, x, 4)
    model = LargeGT(6, 2, nodes=400, width=8, rows=8, position=2, dropout=0.1, local_dropout=0.1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    position = torch.randn(400, 2, generator=generator)
    for _ in range(40):
        nodes = torch.randint(0, 300, (64,), generator=generator).unique()
        loss = functional.cross_entropy(model(tokens(nodes), position[nodes], nodes), kind[nodes])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    rest = torch.arange(300, 400)
    right = (model(tokens(rest), position[rest]).argmax(1) == kind[rest]).float().mean()
    by_itself = ((x[rest, 0] > 0) == kind[rest].bool()).float().mean()
    assert float(right) > 0.97 > 0.85 > float(by_itself)
    assert int(model.whole.codebook.counts.sum()) <= 300


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: HopTokens(messy(), torch.zeros(9, 2), 1), "count must be 2 or more .* got 1"),
        (
            lambda: HopTokens(messy(), torch.zeros(9, 2), 3, samples=torch.zeros(9, 3, dtype=torch.int64)),
            r"samples must be \(9, 2\), one row per node, got \(9, 3\)",
        ),
        (lambda: TokenAttention(3, 4)(torch.zeros(2, 1, 3)), "tokens must be 2 or more per node"),
        (lambda: SampledAttention(5, 2), "heads must divide width, got 2 and 5"),
        (lambda: small_model()(torch.zeros(2, 6, 5)), r"position must be given \(rows=None makes"),
    ],
)
def test_errors_say_what_was_expected(run, words):
    with pytest.raises(ValueError, match=words):
        run()
