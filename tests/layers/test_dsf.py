"""The mixers of the dynamical-systems view against their formulas, piece by piece, and their errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from attlas.layers import MIXERS, QLSTM, LinearAttention, NormalisedLinear, Setting
from attlas.scan import Identity

N, C, H = 13, 8, 2
CAUSAL = ("linear", "normalised_linear", "qlstm", "qlstm_reversed")


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def x(generator):
    return torch.randn(2, N, C, generator=generator, dtype=torch.float64)


def heads(layer, x):
    return layer(x).unflatten(-1, (H, -1)).transpose(1, 2)


def dense(module, x, weights):
    mixed = weights @ heads(module.value, x)
    return module.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_width", [None, 4])
def test_linear_attention_is_weights_over_their_sum(x, causal, key_width):
    module = LinearAttention(C, H, key_width=key_width, causal=causal).double()
    phi, psi = (functional.elu(heads(layer, x)) + 1 for layer in (module.query, module.key))
    weights = phi @ psi.mT
    weights = weights.tril() if causal else weights
    same(module(x), dense(module, x, weights / weights.sum(-1, keepdim=True)))


def test_linear_attention_across_sequences_with_padding(x, generator):
    module = LinearAttention(C, H, causal=False).double()
    context = torch.randn(2, 9, C, generator=generator, dtype=torch.float64)
    valid = torch.arange(9) < torch.tensor([[9], [4]])
    phi, psi = functional.elu(heads(module.query, x)) + 1, functional.elu(heads(module.key, context)) + 1
    weights = (phi @ psi.mT) * valid[:, None, None]
    expected = dense(module, context, weights / weights.sum(-1, keepdim=True))
    same(module(x, context, valid=valid), expected)
    nothing = torch.zeros_like(valid)
    same(module(x, context, valid=nothing), module.out.bias.expand(2, N, C))


@pytest.mark.parametrize("key_width", [None, 4])
def test_normalised_attention_divides_by_exp_of_the_input(x, key_width):
    module = NormalisedLinear(C, H, key_width=key_width).double()
    weights = (heads(module.query, x) @ heads(module.key, x).mT).tril()
    eta = module.log_eta(x).exp().mT.unsqueeze(-1)
    same(module(x), dense(module, x, weights / eta))


@pytest.mark.parametrize("reversed_gate", [False, True])
def test_qlstm_is_the_official_recurrence(x, reversed_gate):
    module = QLSTM(C, reversed_gate=reversed_gate).double()
    if reversed_gate:
        torch.nn.init.constant_(module.alpha, 0.6)
    gate, u = module.enter(x).chunk(2, -1)
    conv = torch.nn.Conv1d(2 * C, 2 * C, 4, groups=2 * C, padding=3).double()
    conv.load_state_dict({"weight": module.conv.weight[:, None], "bias": module.conv.bias})
    u = conv(u.mT)[..., :N].mT
    forget, inward, outward = module.gates(u).chunk(3, -1)
    carried = torch.pow((-forget).sigmoid(), 0.6) if reversed_gate else forget.sigmoid()
    hidden, states = torch.zeros(2, 2 * C, dtype=torch.float64), []
    for step in range(N):
        hidden = carried[:, step] * hidden + inward[:, step].sigmoid() * u[:, step]
        states.append(hidden)
    expected = functional.gelu(gate) * (outward.sigmoid() * torch.stack(states, 1))
    same(module(x), module.out(expected))


def test_qlstm_starts_as_the_official_one():
    torch.manual_seed(0)
    module = QLSTM(64, reversed_gate=True)
    for layer, inputs in ((module.enter, 64), (module.gates, 128), (module.out, 128)):
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)
    assert module.alpha.item() == 1
    assert module.enter.bias is None and module.out.bias is None and module.gates.bias is not None


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("pieces", [(1,) * N, (4, 9), (6, 1, 6)])
def test_piece_by_piece(name, pieces, x):
    torch.manual_seed(1)
    module = MIXERS[name].build(Setting(C, H)).double()
    state, found = module.start(2), []
    for piece in x.split(list(pieces), 1):
        y, state = module.advance(piece, state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), module(x))
    assert state.position.tolist() == [N, N]


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_behind_changes_nothing(name, x):
    module = MIXERS[name].build(Setting(C, H)).double()
    valid = torch.arange(N) < torch.tensor([[N], [5]])
    other = x.masked_fill(~valid[..., None], 7.0)
    found = [module.advance(some, module.start(2), valid=valid) for some in (x, other)]
    for y, _ in found:
        same(y[1, :5], module(x[1:, :5])[0])
    after = module.advance(x[1:, :5], module.start(1))[1]
    one, two = (
        module.advance(x[1:, 5:], state)[0] for state in (after, found[0][1].index_select(torch.tensor([1])))
    )
    same(one, two)


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients(name):
    torch.manual_seed(2)
    module = MIXERS[name].build(Setting(4, 2)).double()
    small = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (small,), eps=1e-6, atol=1e-5, rtol=1e-3)


def test_states_are_small_and_as_documented():
    linear, free = LinearAttention(C, H, key_width=4), NormalisedLinear(C, H, key_width=4)
    assert linear.start(1).nbytes == 4 * H * 2 * (C // H + 1)
    assert free.start(1).nbytes == 4 * 4 * C // H
    assert QLSTM(C).start(1).nbytes == 4 * 2 * C * 4


def test_a_large_normaliser_stays_finite(x):
    module = NormalisedLinear(C, H).double()
    torch.nn.init.constant_(module.log_eta.bias, 200.0)
    small = module.float()(x.float()) - module.out.bias.float()
    assert small.isfinite().all() and small.abs().max() < 1e-30
    assert math.isfinite(module.start(1).nbytes)


def test_errors(x):
    with pytest.raises(ValueError, match="kernel must be positive, got Identity"):
        LinearAttention(C, H, kernel=Identity())
    with pytest.raises(ValueError, match="must be multiples of heads, got 8 and 3 for 2 heads"):
        NormalisedLinear(C, H, key_width=3)
    with pytest.raises(ValueError, match="a context needs causal=False"):
        LinearAttention(C, H).double()(x, x)
    with pytest.raises(ValueError, match="expand and width must be at least 1, got 0 and 8"):
        QLSTM(C, expand=0)
