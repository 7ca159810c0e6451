"""Flow-Attention against its formulas, sum by sum, in float64."""

from __future__ import annotations

import pytest
import torch

from attend.memory import allocations
from attlas.layers import MIXERS, Setting
from attlas.layers.flowformer import CausalFlowAttention, FlowAttention, causal_flow, flow, flow_terms

EPS = 1e-6


def drawn(n, m=None, heads=2, width=3, size=2.0):
    shapes = ((n, width), (m or n, width), (m or n, 4))
    return [size * torch.randn(2, heads, *shape, dtype=torch.float64) for shape in shapes]


def dense(query, key, value, clamp):
    """One head at a time, every sum a loop: the sheet's five steps."""
    q, k = query.sigmoid(), key.sigmoid()
    n, m = len(q), len(k)
    inflow = torch.stack([(q[i] + EPS) @ (k.sum(0) + EPS) for i in range(n)])
    outflow = torch.stack([(k[j] + EPS) @ (q.sum(0) + EPS) for j in range(m)])
    into = torch.stack([(q[i] + EPS) @ (sum(k[j] / outflow[j] for j in range(m)) + EPS) for i in range(n)])
    out_of = torch.stack([(k[j] + EPS) @ (sum(q[i] / inflow[i] for i in range(n)) + EPS) for j in range(m)])
    if clamp is not None:
        out_of = out_of.clamp(-clamp, clamp)
    c, a = m * out_of.softmax(0), (into * n / m).sigmoid()
    weights = a[:, None] * (q @ k.T) / inflow[:, None] * c
    return weights @ value


def dense_causal(query, key, value, clamp):
    q, k, n = query.sigmoid(), key.sigmoid(), len(query)
    t = torch.arange(1, n + 1, dtype=q.dtype)
    inflow = torch.stack([(q[i] + EPS) @ (k[: i + 1].sum(0) + EPS) for i in range(n)])
    outflow = torch.stack([(k[j] + EPS) @ (q[: j + 1].sum(0) + EPS) for j in range(n)])
    into, out_of = [], []
    for i in range(n):
        part = slice(0, i + 1)
        into.append((q[i] + EPS) @ ((k[part] * (t / outflow)[part, None]).sum(0) + EPS) / t[i])
        out_of.append((k[i] + EPS) @ ((q[part] * (t / inflow)[part, None]).sum(0) + EPS) / t[i])
    a, conserved = torch.stack(into).sigmoid(), torch.stack(out_of)
    if clamp is not None:
        conserved = conserved.clamp(-clamp, clamp)
    c = t * conserved.exp() / conserved.exp().cumsum(0)
    weights = (a[:, None] * (q @ k.T) / inflow[:, None] * c).tril()
    return weights @ value


def every_head(formula, query, key, value, clamp):
    heads = [
        [formula(*parts, clamp) for parts in zip(*row, strict=True)]
        for row in zip(query, key, value, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in heads])


@pytest.mark.parametrize("clamp", [1.0, 5.0, None])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (11, 11), (17, 5), (4, 13)])
def test_the_normal_form_is_its_formula(n, m, clamp):
    parts = drawn(n, m)
    wanted = every_head(dense, *parts, clamp)
    torch.testing.assert_close(flow(*parts, clamp=clamp), wanted, rtol=0, atol=1e-9)
    single = flow(*(part.float() for part in parts), clamp=clamp)
    torch.testing.assert_close(single.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clamp", [1.0, None])
@pytest.mark.parametrize("n", [1, 13, 70])
def test_the_causal_form_is_its_formula(n, clamp):
    parts = drawn(n)
    wanted = every_head(dense_causal, *parts, clamp)
    torch.testing.assert_close(causal_flow(*parts, clamp=clamp)[0], wanted, rtol=0, atol=1e-9)


def test_gradients_of_the_causal_form_are_those_of_its_formula():
    parts = [part[:1, :1].detach().requires_grad_() for part in drawn(9)]
    ours = torch.autograd.grad(causal_flow(*parts, clamp=None)[0].square().sum(), parts)
    dense_loss = every_head(dense_causal, *parts, None).square().sum()
    for one, other in zip(ours, torch.autograd.grad(dense_loss, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_conservation_without_eps():
    q, k, _ = drawn(12, 5)
    terms = flow_terms(q, k, clamp=None, eps=0.0)
    capacity = terms.query @ terms.key.transpose(-1, -2)
    # Queries normalised to inflow 1 pour N in all into the keys, which their mean outflow N / M shows.
    conserved = (capacity / terms.inflow[..., None]).sum(2)
    torch.testing.assert_close(conserved.mean(-1), torch.full((2, 2), 12 / 5, dtype=torch.float64))
    torch.testing.assert_close(terms.competition, 5 * conserved.softmax(-1))


def test_the_clamp_of_1_takes_keys_out_of_the_competition():
    terms = flow_terms(*drawn(64)[:2])
    most = terms.competition.amax(-1, keepdim=True)
    assert (terms.competition == most).double().mean() > 0.3
    assert (most / terms.competition.amin(-1, keepdim=True)).max() < torch.e
    free = flow_terms(*drawn(64)[:2], clamp=None)
    assert (free.competition == free.competition.amax(-1, keepdim=True)).double().mean() < 0.05


def test_padding_changes_nothing():
    query, key, value = drawn(8, 6)
    more = [torch.cat([part, 9 * torch.randn_like(part[:, :, :3])], 2) for part in (key, value)]
    valid = torch.tensor([[True] * 6 + [False] * 3]).expand(2, -1)
    torch.testing.assert_close(flow(query, *more, valid=valid), flow(query, key, value))
    layer = FlowAttention(8, 2, dropout=0.0).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    wide = torch.cat([x, torch.randn(2, 2, 8, dtype=torch.float64)], 1)
    valid = torch.tensor([[True] * 7 + [False] * 2]).expand(2, -1)
    torch.testing.assert_close(layer(wide, valid=valid)[:, :7], layer(x))


def test_a_row_without_keys_is_zero():
    parts = [part.requires_grad_() for part in drawn(3, 4)]
    out = flow(*parts, valid=torch.zeros(2, 4, dtype=torch.bool))
    assert out.eq(0).all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), parts))


def test_causal_padding_anywhere():
    layer = CausalFlowAttention(8, 2, dropout=0.0).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[False, True, True, False, True, True, False, True, False]])
    out = layer(x, valid=valid)
    torch.testing.assert_close(out[valid], layer(x[:, valid[0]])[0])
    (grad,) = torch.autograd.grad(out[valid].sum(), x)
    assert grad.isfinite().all() and grad[~valid].eq(0).all() and grad[valid].ne(0).any()


def test_streaming_is_the_whole_and_keeps_its_size():
    layer = CausalFlowAttention(8, 2, clamp=None, dropout=0.0).double()
    x = torch.randn(3, 80, 8, dtype=torch.float64)
    state, pieces = layer.start(3), []
    for piece in x.split([1, 2, 70, 7], 1):
        out, state = layer.advance(piece, state)
        pieces.append(out)
        assert state.nbytes == 3 * 2 * (4 * 4 + 4 * 4 + 1) * 8
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x), rtol=0, atol=1e-10)
    assert state.index_select(torch.tensor([2])).position.tolist() == [80]


@pytest.mark.parametrize("form", ["normal", "causal"])
def test_nothing_is_quadratic_in_the_tokens(form):
    n = 1024
    query, key, value = (part[:1, :1].float() for part in drawn(n, width=8))
    run = flow if form == "normal" else causal_flow
    assert allocations(lambda: run(query, key, value)).largest <= n * 80


def test_one_layer_of_its_parts():
    layer = FlowAttention(8, 2, clamp=5.0, dropout=0.0).double()
    x, context = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 9, 8, dtype=torch.float64)
    parts = [
        make(given).view(2, -1, 2, 4).transpose(1, 2)
        for make, given in ((layer.query, x), (layer.key, context), (layer.value, context))
    ]
    wanted = layer.out(flow(*parts, clamp=5.0).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(layer(x, context), wanted)
    assert FlowAttention(8, 2).dropout.p == 0.05 and layer.query.bias is not None


def test_errors():
    with pytest.raises(ValueError, match="FlowAttention: width must be a multiple of heads, got 9 and 2"):
        FlowAttention(9, 2)
    with pytest.raises(ValueError, match="CausalFlowAttention: clamp must be above 0, or None, got 0"):
        CausalFlowAttention(8, 2, clamp=0)
    with pytest.raises(ValueError, match="mixer flow has no CC form, only NS, CS, NC .a key.s outflow sums"):
        MIXERS["flow"].build(Setting(8, 2, cross=True))
