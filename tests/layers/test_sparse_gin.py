"""Sparse GIN against dense adjacencies and loops over neighbours, and the edges that the release keeps."""

import math

import pytest
import torch

from attlas.layers.sparse_gin import SparseEdges, SparseGIN, lambda_schedule, strong_edges
from attlas.pattern import Tokens, causal, per_head, window

N = 75


def drawn(n=N, heads=3, groups=1, batch=2):
    torch.manual_seed(0)
    query = 2 * torch.randn(batch, heads, n, 4, dtype=torch.float64)
    return query, torch.randn(batch, groups, n, 4, dtype=torch.float64)


def dense(query, key, *, kappa=10.0, theta=0.1, tau=0.6, mask=None):
    """The sheet's adjacency, all of it."""
    n, m = query.shape[2], key.shape[2]
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if mask is None else mask
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    maps = (query @ key.transpose(-1, -2) / 2).masked_fill(~mask, -math.inf).softmax(-1)
    adjacency = torch.sigmoid(kappa * (maps.nan_to_num(0.0).sum(1).clamp(max=1.0) - theta))
    return torch.where((adjacency > tau) & mask, adjacency, 0.0)


def as_dense(edges, batch, n, m):
    found = torch.zeros(batch, n, m, dtype=edges.weight.dtype)
    for row in range(batch * n):
        for edge in range(int(edges.row_ptr[row]), int(edges.row_ptr[row + 1])):
            b, column = divmod(int(edges.col[edge]), m)
            assert b == row // n  # no edge leaves its batch row
            found[b, row % n, column] = edges.weight[edge]
    return found


def test_edges_are_those_of_the_dense_adjacency():
    query, key = drawn()
    edges = strong_edges(query, key)
    wanted = dense(query, key)
    torch.testing.assert_close(as_dense(edges, 2, N, N), wanted, rtol=1e-9, atol=1e-9)
    assert 2 * N < edges.col.numel() < N * N / 2
    assert bool((edges.weight > 0.6).all())
    bare = as_dense(strong_edges(query, key, self_loops=False), 2, N, N)
    torch.testing.assert_close(bare, wanted * (1 - torch.eye(N)), rtol=1e-9, atol=1e-9)
    some = strong_edges(query, key, scale=0.5, kappa=4.0, theta=0.3, tau=0.4)
    assert (as_dense(some, 2, N, N) > 0).equal(dense(query, key, kappa=4.0, theta=0.3, tau=0.4) > 0)


def test_a_low_threshold_lets_no_pair_in_that_the_pattern_leaves_out():
    query, key = drawn(20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril().triu(-4)
    valid = torch.arange(20) != 6
    space = Tokens(20, valid=valid)
    edges = strong_edges(query, key, tau=0.01, pattern=causal() & window(5), k_at=space)
    wanted = dense(query, key, tau=0.01, mask=mask & valid)
    torch.testing.assert_close(as_dense(edges, 2, 20, 20), wanted, rtol=1e-9, atol=1e-9)


def test_the_weights_carry_the_gradient_of_the_map():
    query, key = (part.requires_grad_() for part in drawn(12))
    mine, theirs = strong_edges(query, key).weight.sum(), dense(query, key).sum()
    torch.testing.assert_close(mine, theirs)
    first, second = (torch.autograd.grad(total, (query, key)) for total in (mine, theirs))
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


def test_the_release_keeps_self_loops_alone():
    query, key = drawn()
    kept = as_dense(strong_edges(query, key, official=True), 2, N, N)
    wanted = dense(query, key)
    # Its lines: edges are (row, column) of the non-zeros, kept where source <= target.
    source, target = wanted[0].nonzero(as_tuple=True)
    left = source <= target
    assert source[left].equal(target[left]) and int(left.sum()) < len(left) / 2
    torch.testing.assert_close(kept, wanted * torch.eye(N), rtol=1e-9, atol=1e-9)
    layer = SparseGIN(6, 4, amount=0.5).double().eval()
    x = torch.randn(2, N, 6, dtype=torch.float64)
    other = x.clone()
    other[:, :-1] += 1.0
    for official, mixes in ((True, False), (False, True)):
        edges = strong_edges(query, key, official=official)
        moved = (layer(other, edges)[:, -1] - layer(x, edges)[:, -1]).abs().max() > 1e-6
        assert bool(moved) is mixes


@pytest.mark.parametrize(("weighted", "norm"), [(True, True), (False, True), (True, False)])
def test_the_layer_is_the_sheet(weighted, norm):
    query, key = drawn(17)
    layer = SparseGIN(6, 5, amount=0.25, ratio=2.0, weighted=weighted, norm=norm).double().eval()
    with torch.no_grad():
        layer.eps.fill_(0.5)
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    edges, adjacency = strong_edges(query, key), dense(query, key)
    wanted = torch.zeros_like(x)
    for b in range(2):
        z = layer.enter(x[b])
        for i in range(17):
            s = 0.5 * z[i]
            for j in range(17):
                if adjacency[b, i, j] > 0:
                    s = s + (adjacency[b, i, j] if weighted else 1.0) * z[j]
            y = layer.second(layer.first(s).clamp_min(0)) + s
            change = layer.leave(z[i] + y.clamp_min(0))
            if norm:
                change = change / (change.square().mean() + 1e-5).sqrt()
            wanted[b, i] = x[b, i] + 0.25 * change
    torch.testing.assert_close(layer(x, edges), wanted, rtol=1e-9, atol=1e-9)
    assert layer.first.weight.shape == (10, 5)


def test_decoding_keeps_what_neighbours_need():
    query, key = drawn(30)
    layer = SparseGIN(6, 5).double().eval()
    x = torch.randn(2, 30, 6, dtype=torch.float64)
    whole = layer(x, strong_edges(query, key))
    past, rows, at = None, [], 0
    for size in (11, 1, 1, 17):
        new = slice(at, at + size)
        edges = strong_edges(
            query[:, :, new], key[:, :, : at + size], q_at=Tokens(size, start=at), k_at=Tokens(at + size)
        )
        y, past = layer.advance(x[:, new], edges, past)
        rows.append(y)
        at += size
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)
    assert past.shape == (2, 30, 5)


def test_no_edge_above_tau_leaves_zeros_to_the_network():
    query, key = drawn(8)
    edges = strong_edges(query, key, tau=0.99995)
    layer, x = SparseGIN(6, 5, norm=False).double().eval(), torch.randn(2, 8, 6, dtype=torch.float64)
    assert not edges.col.numel()
    z = layer.enter(x)
    y = layer.second(layer.first.bias.clamp_min(0)).expand(2, 8, 5)
    torch.testing.assert_close(layer(x, edges), x + 0.5 * layer.leave(z + y.clamp_min(0)))


def test_the_schedule_and_the_parameters():
    assert lambda_schedule(5) == (0.0, 0.125, 0.25, 0.375, 0.5) and lambda_schedule(1, 0.1) == (0.1,)
    layer = SparseGIN(576, amount=lambda_schedule(30)[7])
    assert layer.enter.out_features == 155 and layer.amount.item() == pytest.approx(0.5 * 7 / 29)
    assert not layer.eps.any() and layer.dropout == 0.1


def test_what_cannot_be_is_said():
    query, key = drawn(5)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        lambda_schedule(0)
    with pytest.raises(ValueError, match="the pattern must be one for all heads, whose maps are summed"):
        strong_edges(query, key, pattern=per_head([causal()] * 3))
    with pytest.raises(ValueError, match="inner must be at least 1, got 0"):
        SparseGIN(6, 0)
    edges = strong_edges(query, key)
    for rows, tokens in ((2, 4), (1, 10)):
        text = f"made for 2 rows of 5 tokens that see 5, x has {rows} rows of {tokens} tokens, {tokens} with"
        with pytest.raises(ValueError, match=text):
            SparseGIN(6, 5)(torch.zeros(rows, tokens, 6), edges)
    with pytest.raises(ValueError, match="2 rows of 5 tokens that see 5, x has .*, 8 with the past"):
        SparseGIN(6, 5).advance(torch.zeros(2, 5, 6), edges, torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="edges have 10 receivers, x has 2 rows of 4 tokens"):
        SparseGIN(6, 5)(torch.zeros(2, 4, 6), edges._replace(sizes=None))
    with pytest.raises(ValueError, match="SparseGIN: ratio must be above 0, got -2"):
        SparseGIN(6, 5, ratio=-2)
    with pytest.raises(ValueError, match="SparseGIN: dropout must be a share from 0 to 1, got 3"):
        SparseGIN(6, 5, dropout=3)
    with pytest.raises(ValueError, match="kappa must be above 0, got -1"):
        strong_edges(query, key, kappa=-1)
    for tau in (2, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"tau must be from 0 to below 1, as a sigmoid is, got {tau}"):
            strong_edges(query, key, tau=tau)
    with pytest.raises(ValueError, match=r"strong_edges: query must have .* got shape \(2, 3, 0, 4\)"):
        strong_edges(query[:, :, :0], key)
    with pytest.raises(ValueError, match=r"strong_edges: key must have .* got shape \(2, 1, 0, 4\)"):
        strong_edges(query, key[:, :, :0])
    far = SparseEdges(edges.row_ptr, edges.col + 20, edges.weight)
    with pytest.raises(ValueError, match="comes from sender .*, but there are 2 rows of 5 tokens"):
        SparseGIN(6, 5)(torch.zeros(2, 5, 6), far)
