"""The p-Laplacian step against the augmented graph written out densely, and the release beside it."""

import math

import networkx as nx
import pytest
import torch
from torch.nn import functional

from attlas.attend import attend, make_request
from attlas.attend.reference import weights_of
from attlas.layers import (
    Bottleneck,
    PAdapter,
    p_laplacian_edges,
    p_laplacian_official,
    p_laplacian_step,
    pooled_nodes,
)
from attlas.pattern import Tokens, causal
from attlas.score import Dot, Given, PLaplacian

POWERS = (1.0, 1.25, 1.9, 2.0, 2.5, 3.0)


def drawn(n=7, m=11, heads=2, width=3):
    torch.manual_seed(0)
    receivers, senders = (torch.randn(2, heads, size, width, dtype=torch.float64) for size in (n, m))
    attention = (2 * torch.randn(2, heads, n, m, dtype=torch.float64)).softmax(-1)
    return receivers, senders, attention


def step_on(adjacency, nodes, p, mu):
    """Steps 3 and 4 of the sheet for one head, node by node."""
    found = torch.zeros_like(nodes)
    for i in range(len(nodes)):
        weights = torch.zeros(len(nodes), dtype=nodes.dtype)
        for j in range(len(nodes)):
            g = (adjacency[i, j].sqrt() * (nodes[i] - nodes[j])).norm()
            if adjacency[i, j] > 0 and (g > 0 or p == 2):
                weights[j] = adjacency[i, j] * g ** (p - 2)
        alpha = 1 / (weights.sum() + 2 * mu / p)
        found[i] = alpha * (weights @ nodes) + alpha * (2 * mu / p) * nodes[i]
    return found


def with_queries(attention):
    n, m = attention.shape
    graph = torch.zeros(n + m, n + m, dtype=attention.dtype)
    graph[:n, n:], graph[n:, :n] = attention, attention.T
    return graph


@pytest.mark.parametrize("p", POWERS)
def test_the_step_is_that_of_the_augmented_graph(p):
    receivers, senders, attention = drawn()
    attention[0, 0, 2, 5] = 0.0  # no edge
    senders[0, 1, 4] = receivers[0, 1, 3]  # equal features
    found = p_laplacian_step(receivers, senders, attention, p=p, mu=0.3)
    for b in range(2):
        for h in range(2):
            nodes = torch.cat([receivers[b, h], senders[b, h]])
            wanted = step_on(with_queries(attention[b, h]), nodes, p, 0.3)[:7]
            torch.testing.assert_close(found[b, h], wanted, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_definition():
    receivers, senders, attention = drawn(4, 5, 1)
    leaves = [
        receivers[:1],
        senders[:1],
        attention[:1],
        torch.tensor(1.4).double(),
        torch.tensor(0.3).double(),
    ]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def run(f, g, a, p, mu):
        return p_laplacian_step(f, g, a, p=p, mu=mu)

    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-5, rtol=1e-3)
    nodes = torch.cat([leaves[0][0, 0], leaves[1][0, 0]])
    wanted = step_on(with_queries(leaves[2][0, 0]), nodes, leaves[3], leaves[4])[:4]
    probe = torch.randn_like(wanted)
    mine = torch.autograd.grad((run(*leaves)[0, 0] * probe).sum(), leaves[3:])
    theirs = torch.autograd.grad((wanted * probe).sum(), leaves[3:])
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("p", POWERS)
def test_the_map_is_made_anew_from_queries_and_keys(p):
    receivers, senders, _ = drawn(80, 80)
    query, key = (torch.randn(2, 2, 80, 4, dtype=torch.float64) for _ in range(2))
    given = {"pattern": causal(), "k_at": Tokens(80, valid=torch.arange(80) != 7)}
    attention = weights_of(make_request(query, key, senders, score=Dot(0.7), **given))
    options = {"p": p, "mu": 0.3}
    found = p_laplacian_step(receivers, senders, query=query, key=key, score=Dot(0.7), **options, **given)
    torch.testing.assert_close(
        found, p_laplacian_step(receivers, senders, attention, **options), rtol=1e-9, atol=1e-9
    )
    plain = p_laplacian_step(receivers, senders, query=query, key=key, **options)
    attention = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    torch.testing.assert_close(
        plain, p_laplacian_step(receivers, senders, attention, **options), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("p", POWERS)
def test_it_is_softmax_attention_with_one_more_edge(p):
    receivers, senders, attention = drawn()
    apart = torch.cdist(receivers, senders)
    logits = (p / 2) * attention.log() + (p - 2) * apart.log()
    stays = torch.full((1, 1, 1, 1), math.log(2 * 0.3 / p), dtype=torch.float64)
    wanted = attend(receivers, senders, senders, score=Given(logits), extra=[(stays, receivers)])
    found = p_laplacian_step(receivers, senders, attention, p=p, mu=0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_at_p_2_it_is_the_mean_with_the_node_itself():
    receivers, senders, attention = drawn(11, 11)
    for nodes in ((receivers, senders), (senders, senders)):  # self-loops count as they are
        found = p_laplacian_step(*nodes, attention, p=2.0, mu=0.3)
        wanted = (attention @ nodes[1] + 0.3 * nodes[0]) / 1.3
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", POWERS)
def test_edges_of_a_sparse_graph(p):
    graph = nx.gnp_random_graph(30, 0.15, seed=1)
    graph.remove_edges_from(list(graph.edges(3)))  # a node of its own
    graph.add_edges_from([(5, 5), (6, 6)])
    adjacency = torch.tensor(nx.to_numpy_array(graph))
    adjacency = adjacency / adjacency.sum(1, keepdim=True).clamp_min(1)
    nodes = torch.randn(30, 4, dtype=torch.float64)
    row, col = adjacency.nonzero(as_tuple=True)
    row_ptr = functional.pad(torch.bincount(row, minlength=30).cumsum(0), (1, 0))
    found = p_laplacian_edges(nodes, nodes, row_ptr, col, adjacency[row, col], p=p, mu=0.3)
    torch.testing.assert_close(found, step_on(adjacency, nodes, p, 0.3), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[3], nodes[3], rtol=0, atol=1e-12)
    dense = p_laplacian_step(nodes[None, None], nodes[None, None], adjacency[None, None], p=p, mu=0.3)
    torch.testing.assert_close(found, dense[0, 0], rtol=1e-9, atol=1e-9)


def released(attention, nodes, p, mu, queries):
    """The released lines for one head: all nodes, their diagonal matrices, and the blocks that are read."""
    apart = (attention + 1e-8).sqrt()[..., None] * (nodes[None] - nodes[:, None])
    attention = attention * (apart + 1e-8).norm(dim=-1) ** (p - 2)
    alpha = torch.diag(1 / (attention.sum(-1) + 2 * mu / p))
    beta = alpha * (2 * mu / p)
    attention = alpha @ attention
    if queries == len(nodes):
        return attention @ nodes + beta @ nodes
    assert not beta[:queries, queries:].any()
    return attention[:queries, queries:] @ nodes[queries:] + beta[:queries, queries:] @ nodes[queries:]


def test_the_released_step_has_no_beta_on_the_augmented_graph():
    receivers, senders, attention = drawn()
    found = p_laplacian_official(receivers, senders, attention, p=1.25, mu=0.3, augmented=True)
    nodes = torch.cat([receivers[1, 0], senders[1, 0]])
    wanted = released(with_queries(attention[1, 0]), nodes, 1.25, 0.3, 7)
    torch.testing.assert_close(found[1, 0], wanted, rtol=1e-9, atol=1e-9)
    # What is missing is exactly the node's own share.
    weights = attention ** (1.25 / 2) * torch.cdist(receivers, senders) ** (1.25 - 2)
    share = (2 * 0.3 / 1.25) / (weights.sum(-1, keepdim=True) + 2 * 0.3 / 1.25)
    paper = p_laplacian_step(receivers, senders, attention, p=1.25, mu=0.3)
    torch.testing.assert_close(paper - found, share * receivers, rtol=1e-5, atol=1e-5)


def test_the_released_step_on_self_loops_is_the_identity():
    _, nodes, attention = drawn(11, 11)
    found = p_laplacian_official(nodes, nodes, attention, p=1.25, mu=0.3, augmented=False)
    wanted = released(attention[1, 0], nodes[1, 0], 1.25, 0.3, 11)
    torch.testing.assert_close(found[1, 0], wanted, rtol=1e-9, atol=1e-9)
    moved = (found - nodes).norm() / nodes.norm()
    paper = (p_laplacian_step(nodes, nodes, attention, p=1.25, mu=0.3) - nodes).norm() / nodes.norm()
    # A self-loop weighs A_ii 1e-8^(p - 2), some 1e6 times what an edge to another node does.
    assert moved < 0.02 and paper > 0.3


@pytest.mark.parametrize("augmented", [True, False])
def test_the_adapter_is_steps_2_to_5(augmented):
    torch.manual_seed(1)
    layer = PAdapter(16, 2, reduction=4, p=1.5, mu=10.0, augmented=augmented).double()
    with torch.no_grad():
        layer.m.fill_(0.4)
    out, queries = (torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(2))
    values = torch.randn(2, 9 if augmented else 5, 16, dtype=torch.float64)
    attention = torch.randn(2, 2, 5, values.shape[1], dtype=torch.float64).softmax(-1)
    mu = 10 * (2 + math.tanh(0.4))
    wanted = []
    for b in range(2):
        heads = []
        for h in range(2):
            cut = slice(2 * h, 2 * h + 2)
            theirs = layer.down(values[b])[:, cut]
            if augmented:
                nodes = torch.cat([layer.down(queries[b])[:, cut], theirs])
                heads.append(step_on(with_queries(attention[b, h]), nodes, 1.5, mu)[:5])
            else:
                heads.append(step_on(attention[b, h], theirs, 1.5, mu))
        inner = layer.gate(out[b])
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        wanted.append(out[b] + layer.up(gelu * torch.cat(heads, -1)))
    found = layer(out, queries, values, attention)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-8, atol=1e-9)


def test_the_released_adapter_takes_the_released_step():
    torch.manual_seed(2)
    layer = PAdapter(16, 2, augmented=False, official=True)
    out, values = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    attention = torch.randn(1, 2, 5, 5).softmax(-1)
    features = layer.down(values)  # which the step leaves as they are
    wanted = out + layer.up(functional.gelu(layer.gate(out)) * features)
    torch.testing.assert_close(layer(out, out, values, attention), wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="the released step holds the map: give attention"):
        layer(out, out, values)


def test_p_stays_between_1_and_3():
    receivers, senders, attention = drawn()
    for far, near in ((0.2, 1.0), (7.0, 3.0)):
        torch.testing.assert_close(
            p_laplacian_step(receivers, senders, attention, p=torch.tensor(far), mu=0.1),
            p_laplacian_step(receivers, senders, attention, p=near, mu=0.1),
        )


def test_a_learned_p_beyond_its_bounds_finds_back():
    receivers, senders, attention = drawn()
    for far, near in ((0.2, 1.0), (7.0, 3.0)):
        slopes = []
        for start in (far, near):
            p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
            out = p_laplacian_step(receivers, senders, attention, p=p, mu=0.3)
            slopes.append(torch.autograd.grad(out.square().sum(), p)[0])
        assert slopes[0].abs() > 0.01
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("form", ["map", "queries", "edges"])
@pytest.mark.parametrize(("offset", "spread"), [(1000.0, 0.5), (2000.0, 1.0), (1000.0, 1e-3)])
def test_what_all_features_share_moves_with_the_step_and_hides_nothing(form, offset, spread):
    torch.manual_seed(7)
    nodes = offset + spread * torch.randn(1, 2, 9, 4)
    query, key = (2 * torch.randn(1, 2, 9, 4) for _ in range(2))
    options = {"p": 1.25, "mu": 0.1}

    def step(x, q, k):
        if form == "queries":
            return p_laplacian_step(x, x, query=q, key=k, **options)
        attention = (q @ k.mT / 2).softmax(-1)
        if form == "map":
            return p_laplacian_step(x, x, attention, **options)
        pointer, col = torch.arange(0, 82, 9), torch.arange(9).repeat(9)
        rows = (
            p_laplacian_edges(x[0, h], x[0, h], pointer, col, attention[0, h].flatten(), **options)
            for h in range(2)
        )
        return torch.stack(list(rows))[None]

    exact = step(nodes.double(), query.double(), key.double())
    centre = nodes.double().mean(2, keepdim=True)
    apart = step(nodes.double() - centre, query.double(), key.double()) + centre
    torch.testing.assert_close(exact, apart, rtol=0, atol=1e-6 * spread)
    # Of float32 results only their own rounding may be seen, at most 2^-13 per unit at 1000 to 2047.
    torch.testing.assert_close(step(nodes, query, key).double(), exact, rtol=0, atol=2**-13)
    if form != "edges" and spread > 0.1:
        assert (exact - nodes).norm(dim=-1).max() > 0.5 * spread


def test_a_sender_without_edges_that_is_not_a_number_spoils_no_mean():
    receivers, senders, attention = drawn()
    wanted = p_laplacian_step(receivers, senders[:, :, 1:], attention[..., 1:], p=1.25, mu=0.3)
    attention = attention.clone()
    attention[..., 0] = 0.0
    senders[:, :, 0] = torch.nan
    space = Tokens(11, valid=torch.arange(11) > 0)
    found = p_laplacian_step(receivers, senders, attention, p=1.25, mu=0.3, k_at=space)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_padding_that_is_not_a_number_reaches_no_node_and_bfloat16_is_near():
    receivers, senders, _ = drawn(9, 9)
    query, key = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(2))
    hurt = [part.clone() for part in (senders, key)]
    for part in hurt:
        part[:, :, 6:] = torch.nan
    options = {"p": 1.25, "mu": 0.1}
    space = Tokens(9, valid=torch.arange(9) < 6)
    found = p_laplacian_step(receivers, hurt[0], query=query, key=hurt[1], k_at=space, **options)
    wanted = p_laplacian_step(receivers, senders[:, :, :6], query=query, key=key[:, :, :6], **options)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    narrow = [part.bfloat16() for part in (receivers, senders, query, key)]
    exact = [part.double() for part in narrow]
    low = p_laplacian_step(*narrow[:2], query=narrow[2], key=narrow[3], **options)
    high = p_laplacian_step(*exact[:2], query=exact[2], key=exact[3], **options)
    torch.testing.assert_close(low.double(), high, rtol=1.6e-2, atol=1.6e-2)


def test_pooled_nodes_and_what_their_rows_sum_to():
    _, _, attention = drawn(7, 12)
    values = torch.randn(2, 12, 6, dtype=torch.float64)
    near, fewer = pooled_nodes(attention, values, 4)
    assert near.shape == (2, 2, 7, 4) and fewer.shape == (2, 4, 6)
    torch.testing.assert_close(near[..., 1], attention[..., 3:6].mean(-1))
    torch.testing.assert_close(fewer[:, 3], values[:, 9:].mean(1))
    torch.testing.assert_close(near.sum(-1), torch.full((2, 2, 7), 4 / 12, dtype=torch.float64))
    near, _ = pooled_nodes(attention, values, 4, rescale=True)
    torch.testing.assert_close(near.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))


def test_the_plain_adapter():
    layer, x = Bottleneck(6, 2), torch.randn(3, 4, 6)
    wanted = x + layer.up(layer.down(x).clamp_min(0))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(("make", "text"), [
    (lambda a: p_laplacian_step(*a, p=1.5, mu=0.0), "mu must be positive, got 0.0"),
    (lambda a: p_laplacian_step(*a[:2], p=1.5, mu=0.1), "give either attention, or query and key"),
    (lambda a: pooled_nodes(a[2], torch.zeros(2, 11, 3), 12), "from 1 to the 11 value nodes, got 12"),
    (lambda a: p_laplacian_step(*a, p=1.5, mu=0.1, key=a[1]), "give either attention, or query and key"),
    (lambda a: p_laplacian_step(*a, p=1.5, mu=0.1, score=Dot()), "attention is one already"),
    (
        lambda a: p_laplacian_edges(
            a[0][0, 0], a[1][0, 0], torch.arange(8), torch.arange(7), -torch.ones(7).double(), p=1.5, mu=0.1
        ),
        "weight must not be negative, got -1",
    ),
    (lambda a: PAdapter(16, 0), "at least 1, got heads 0, reduction 8"),
    (lambda a: PAdapter(16, 2, reduction=0), "at least 1, got heads 2, reduction 0"),
    (lambda a: PAdapter(16, 2, mu=0.0), "PAdapter: mu must be positive, got 0.0"),
    (lambda a: PAdapter(16, 2, mu=-1.0), "PAdapter: mu must be positive, got -1.0"),
    (lambda a: PAdapter(16, 3), "multiple of reduction × heads, got 16, 8, 3"),
    (lambda a: PAdapter(16, 2, p=0.5), "p must be from 1 to 3, got 0.5"),
    (lambda a: PLaplacian(Dot(), torch.ones(2), 3), "p must be one number, got a tensor \\(2,\\)"),
    (lambda a: PLaplacian(Dot(), torch.ones(1), 0), "width must be at least 1 column of features, got 0"),
])  # fmt: skip
def test_what_cannot_be_is_said(make, text):
    with pytest.raises(ValueError, match=text):
        make(drawn())
