"""Every realisation against the mixer's own dense or step-by-step formula, in float64 at 1e-10."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from attlas.inspect import LTV
from attlas.inspect import realisations as real

n, F, E = 11, 3, 4


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def draw(generator):
    def one(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return one


def dense(weights, v, normalise=False):
    weights = weights.tril()
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v


def both(system, u, expected):
    """By the recurrence and by the transfer matrix."""
    same(system.run(u), expected)
    same(torch.einsum("...ijed,...jd->...ie", system.transfer(), u), expected)


def test_linear_attention_with_a_value_projection(draw):
    phi, psi, value, u = draw(2, n, F), draw(2, n, F), draw(E, 5), draw(2, n, 5)
    system = real.linear_attention(phi, psi, value)
    both(system, u, dense(phi @ psi.mT, u @ value.mT))
    assert (system.size, system.inputs, system.outputs, system.length) == (E * F, 5, E, n)


def test_with_eta_one_the_transition_is_the_identity(draw):
    system = real.linear_attention(draw(n, F), draw(n, F), E)
    same(system.Lam[1:], torch.ones(n - 1, E * F, dtype=torch.float64))


def test_decay_and_gate(draw):
    phi, psi, v = draw(2, n, F), draw(2, n, F), draw(2, n, E)
    decay, gate = -draw(2, n).abs(), draw(2, n)
    total = decay.cumsum(-1)
    weights = (total[..., :, None] - total[..., None, :] + gate[..., None, :]).exp() * (phi @ psi.mT)
    both(real.linear_attention(phi, psi, E, log_decay=decay, log_gate=gate), v, dense(weights, v))


def test_decay_per_key_channel(draw):
    phi, psi, v, decay = draw(n, F), draw(n, F), draw(n, E), -draw(n, F).abs()
    state, expected = torch.zeros(F, E, dtype=torch.float64), []
    for step in range(n):
        state = decay[step].exp()[:, None] * state + psi[step][:, None] * v[step]
        expected.append(phi[step] @ state)
    both(real.linear_attention(phi, psi, E, log_decay=decay), v, torch.stack(expected))


def test_the_usual_denominator_is_a_coupled_gate(draw):
    phi, psi, v = functional.elu(draw(n, F)) + 1, functional.elu(draw(n, F)) + 1, draw(n, E)
    free = real.linear_attention(phi, psi, E)
    eta = (phi @ psi.mT).tril().sum(-1)
    system = real.coupled(free, eta)
    both(system, v, dense(phi @ psi.mT, v, normalise=True))
    # As SSD: the decay is the ratio of normalisers and the same 1/eta stands in B.
    same(system.Lam[1:, 0], eta[:-1] / eta[1:])
    decayed = real.linear_attention(phi, psi, E, log_eta=eta.log())
    for name in ("Lam", "B", "C"):
        same(getattr(decayed, name), getattr(system, name))
    as_ssd = real.ssd(1 / eta, torch.tensor(-1.0, dtype=torch.float64), psi, phi, E)
    same(as_ssd.B, system.B)
    same(as_ssd.C, system.C)


def test_a_normaliser_may_change_its_sign(draw):
    phi, psi, v, eta = draw(n, F), draw(n, F), draw(n, E), draw(n)
    system = real.coupled(real.linear_attention(phi, psi, E), eta)
    both(system, v, dense(phi @ psi.mT, v) / eta[:, None])
    with pytest.raises(ValueError, match="eta must be finite and nowhere 0"):
        real.coupled(system, torch.zeros_like(eta))


@pytest.mark.parametrize("order", [0, 2, 4])
def test_truncated_softmax(order, draw):
    q, k, v = draw(n, F), draw(n, F), draw(n, E)
    logits = q @ k.mT / math.sqrt(F)
    weights = sum(logits**power / math.factorial(power) for power in range(order + 1))
    system = real.softmax_truncated(q, k, E, order)
    both(system, v, dense(weights, v, normalise=True))
    assert system.size == E * sum(F**power for power in range(order + 1))


def test_held_weights_are_a_system_as_long_as_the_sequence(draw):
    weights, value, u = draw(2, n, n).softmax(-1).tril(), draw(E, 5), draw(2, n, 5)
    system = real.held_attention(weights, value)
    both(system, u, weights @ u @ value.mT)
    assert system.size == n * E
    with pytest.raises(ValueError, match="weights must be causal: a row has weight on a later token"):
        real.held_attention(draw(n, n).softmax(-1), E)


def test_softmax_is_reached_at_no_finite_order(draw):
    q, k, v = draw(n, F), draw(n, F), draw(n, E)
    exact = dense((q @ k.mT / math.sqrt(F)).exp(), v, normalise=True)
    errors = [(real.softmax_truncated(q, k, E, order).run(v) - exact).abs().max() for order in (0, 2, 4, 6)]
    assert all(0 < later < earlier for earlier, later in pairwise(errors))


def test_normalised_attention_at_extreme_normalisers(draw):
    q, k, v = draw(n, F), draw(n, F), draw(n, E)
    log_eta = draw(n)
    both(real.normalised_attention(q, k, log_eta, E), v, dense(q @ k.mT, v) / log_eta.exp()[:, None])
    # exp(800) is no float64, its ratios are.
    system = real.normalised_attention(q, k, log_eta + 800, E)
    same(system.Lam, real.normalised_attention(q, k, log_eta, E).Lam)
    assert system.B.isfinite().all()


def test_s6_is_the_selective_scan_of_transformers(draw):
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    D, S = 3, 4
    u, delta, b, c, skip = draw(2, n, D), draw(2, n, D), draw(2, n, S), draw(2, n, S), draw(D)
    A = -draw(D, S).exp()
    expected = mamba_selective_scan(u.mT, delta.mT, A, b.mT, c.mT, skip, delta_softplus=True).mT
    system = real.s6(functional.softplus(delta), A, b, c, skip)
    found = system.run(u.mT.unsqueeze(-1)).squeeze(-1).mT
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32 inside
    through = torch.einsum("bcijed,bcjd->bcie", system.transfer(), u.mT.unsqueeze(-1))
    same(through.squeeze(-1).mT, found)


def test_s6_is_its_own_recurrence(draw):
    D, S = 3, 4
    u, delta, b, c = draw(n, D), draw(n, D).exp(), draw(n, S), draw(n, S)
    A = -draw(D, S).exp()
    state, expected = torch.zeros(D, S, dtype=torch.float64), []
    for step in range(n):
        state = (delta[step][:, None] * A).exp() * state + (delta[step] * u[step])[:, None] * b[step]
        expected.append(state @ c[step])
    same(real.s6(delta, A, b, c).run(u.mT.unsqueeze(-1)).squeeze(-1).mT, torch.stack(expected))


def test_ssd(draw):
    heads, width, S = 2, 3, 4
    delta, b, c, v = draw(heads, n).exp(), draw(heads, n, S), draw(heads, n, S), draw(heads, n, width)
    A = -draw(heads).exp()
    total = (delta * A[:, None]).cumsum(-1)
    weights = (total[..., :, None] - total[..., None, :]).exp() * (c @ b.mT) * delta[:, None, :]
    both(real.ssd(delta, A, b, c, width), v, dense(weights, v))


@pytest.mark.parametrize("alpha", [None, 0.7])
def test_qlstm(alpha, draw):
    S, d = 4, 3
    forget, inward, outward, value, u = draw(n, S), draw(n, S), draw(n, S), draw(S, d), draw(n, d)
    gate = forget.sigmoid() if alpha is None else (-forget).sigmoid() ** alpha
    state, expected = torch.zeros(S, dtype=torch.float64), []
    for step in range(n):
        state = gate[step] * state + inward[step].sigmoid() * (value @ u[step])
        expected.append(outward[step].sigmoid() * state)
    both(real.qlstm(forget, inward, outward, value, alpha=alpha), u, torch.stack(expected))
    # Without a projection the channels are systems of their own.
    alone = real.qlstm(forget, inward, outward, alpha=alpha)
    found = alone.run((u @ value.mT).mT.unsqueeze(-1)).squeeze(-1).mT
    same(found, torch.stack(expected))


def test_the_reversed_gate_is_the_transition_of_s6(draw):
    z, a = draw(50), 1.7
    same((-z).sigmoid() ** a, (-a * functional.softplus(z)).exp())
    delta = functional.softplus(z)[:, None]
    A = torch.full((1, 1), -a, dtype=torch.float64)
    ones = torch.ones(50, 1, dtype=torch.float64)
    gates = real.qlstm(z[:, None], ones, ones, alpha=a)
    same(real.s6(delta, A, ones, ones).Lam, gates.Lam)


def test_rows_and_the_memory_kernel(draw):
    decay = torch.full((n,), -0.25, dtype=torch.float64)
    ones = torch.ones(n, 1, dtype=torch.float64)
    system = real.linear_attention(ones, ones, 1, log_decay=decay)
    expected = torch.exp(-0.25 * torch.arange(n, dtype=torch.float64))
    same(system.memory_kernel(), expected)
    same(system.memory_kernel([4, 7]), expected[:8])
    q, k = draw(2, n, F), draw(2, n, F)
    system = real.linear_attention(q, k, E)
    whole = system.transfer()
    same(system.transfer([7, 2]), whole[:, [7, 2]])
    norms = whole.flatten(-2).norm(dim=-1)
    same(system.memory_kernel()[:, 3], norms.diagonal(-3, -2, -1).mean(-1))
    assert not whole.permute(0, 3, 4, 1, 2).triu(1).any()


def test_the_way_through(draw):
    lam, into, out, through, u = draw(n, 2), draw(n, 2, 3), draw(n, 4, 2), draw(n, 4, 3), draw(n, 3)
    plain = LTV(lam, into, out).run(u)
    both(LTV(lam, into, out, through), u, plain + torch.einsum("ied,id->ie", through, u))


def test_errors(draw):
    with pytest.raises(ValueError, match=r"B must have shape \(5, 2, 3\) beside Lam of \(5, 2\), got \(4, 2"):
        LTV(draw(5, 2), draw(4, 2, 3), draw(5, 1, 2))
    with pytest.raises(ValueError, match=r"rows must lie in 0 .. 4, got \[5\]"):
        LTV(draw(5, 2), draw(5, 2, 3), draw(5, 1, 2)).transfer([5])
    with pytest.raises(ValueError, match="order must be 0 or more, got -1"):
        real.softmax_features(draw(5, 2), -1)
