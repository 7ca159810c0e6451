"""LAMA against steps 1 to 5 of its formula, written out, and the poolings that it is compared with."""

from __future__ import annotations

import math

import pytest
import torch

from attlas.layers import (
    LAMA,
    AdditivePooling,
    MeanPooling,
    SelfAttentionPooling,
    lama_logits,
    masked_mean,
    star,
    word_importance,
)

D, N = 6, 9


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(hidden, context, p, q):
    """(M (m, D), A (m, n)) of one sequence: one head and one token at a time."""
    heads, count = p.shape[1], len(hidden)
    e = torch.zeros(count, heads, dtype=torch.float64)
    for t in range(count):
        for r in range(heads):
            bilinear = torch.outer(p[:, r], q[:, r])  # W_r of rank one
            e[t, r] = torch.tanh(context @ bilinear @ hidden[t])
        if heads > 1:
            e[t] = e[t] / math.sqrt(float((e[t] ** 2).sum()))
    a = torch.stack([e[:, r].exp() / e[:, r].exp().sum() for r in range(heads)])
    return a @ hidden, a


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("context", ["learned", "mean"])
def test_it_is_the_formula(heads, context):
    layer = LAMA(D, heads, context=context).double()
    hidden = drawn(3, N, D)
    valid = torch.arange(N) < torch.tensor([[N], [4], [1]])
    found = layer(hidden, valid=valid)
    importance = word_importance(layer.logits(hidden, valid=valid), valid)
    p, q = layer.p.weight.detach().T, layer.q.weight.detach().T
    for row, length in enumerate((N, 4, 1)):
        real = hidden[row, :length]
        c = real.mean(0) if context == "mean" else layer.context.detach()
        pooled, weights = by_hand(real, c, p, q)
        torch.testing.assert_close(found[row], pooled, rtol=0, atol=1e-10)
        torch.testing.assert_close(importance[row, :length], weights.mean(0), rtol=0, atol=1e-10)
        assert (importance[row, length:] == 0).all()


def test_the_star_is_a_dense_product_with_its_gradient():
    logits, hidden = drawn(2, 4, N).requires_grad_(), drawn(2, N, D).requires_grad_()
    valid = torch.arange(N) != torch.tensor([[3], [8]])
    found = star(logits, hidden, valid=valid)
    wanted = logits.masked_fill(~valid[:, None], -float("inf")).softmax(-1) @ hidden
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    cotangent = drawn(2, 4, D)
    one, other = (torch.autograd.grad((out * cotangent).sum(), (logits, hidden)) for out in (found, wanted))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_lengths_are_one_over_the_heads_and_not_over_time():
    logits = lama_logits(drawn(2, N, D), drawn(D), drawn(D, 3), drawn(D, 3))
    torch.testing.assert_close(logits.square().sum(1), torch.ones(2, N, dtype=torch.float64))


def test_one_head_is_not_made_plus_and_minus_one():
    logits = lama_logits(drawn(2, N, D), drawn(D), drawn(D, 1), drawn(D, 1))
    assert logits.abs().max() < 1 - 1e-6 and logits.abs().std() > 0.01


def test_no_affinity_at_all_is_an_even_mean_with_a_gradient():
    hidden = drawn(1, N, D).requires_grad_()
    p, q = torch.zeros(D, 3, dtype=torch.float64, requires_grad=True), drawn(D, 3)
    logits = lama_logits(hidden, drawn(D), p, q)
    assert (logits == 0).all()
    found = star(logits, hidden)
    torch.testing.assert_close(found, hidden.mean(1, keepdim=True).expand(1, 3, D))
    gradients = torch.autograd.grad(found.square().sum(), (hidden, p))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("size", [1e-9, 1e-20, 1e-30])
def test_tiny_affinities_have_lengths_and_gradients(size):
    hidden, context, q = (part.float() for part in (drawn(1, N, D), drawn(D), drawn(D, 3)))
    p = drawn(D, 3).float()
    found = lama_logits(hidden, context * size, p, q)
    torch.testing.assert_close(found.square().sum(1), torch.ones(1, N))
    # tanh of what is tiny is what is given: the length of the affinities does not count, and in float64
    # their squares are no problem.
    leaves = [part.double().requires_grad_() for part in (hidden, p, q)]
    f = (context.double() @ leaves[1]) * (leaves[0] @ leaves[2])
    wanted = (f / f.square().sum(-1, keepdim=True).sqrt()).mT
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    mine = [part.requires_grad_() for part in (hidden, p, q)]
    cotangent = drawn(1, 3, N)
    out = lama_logits(hidden, context * size, p, q)
    gradients = torch.autograd.grad((out * cotangent.float()).sum(), mine)
    expected = torch.autograd.grad((wanted * cotangent).sum(), leaves)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_ordinary_affinities_are_not_rounded_differently():
    hidden, context, p, q = (part.float() for part in (drawn(2, N, D), drawn(D), drawn(D, 3), drawn(D, 3)))
    limited = torch.tanh((context @ p) * (hidden @ q))
    wanted = limited * limited.square().sum(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(lama_logits(hidden, context, p, q), wanted.mT, rtol=0, atol=0)


def test_gradients_are_those_of_finite_differences():
    layer = LAMA(4, 3).double()
    valid = torch.tensor([[True, True, True, True, False]])

    def run(hidden, context, p, q):
        return star(lama_logits(hidden, context, p, q), hidden, valid=valid)

    inputs = [drawn(1, 5, 4), layer.context, layer.p.weight.mT, layer.q.weight.mT]
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


def test_parameters_are_2_D_m_and_the_context():
    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    assert count(LAMA(200, 5)) == 2 * 200 * 5 + 200 and count(LAMA(200, 5, context="mean")) == 2 * 200 * 5
    assert count(AdditivePooling(200)) == 200 * 200 + 200 + 200 and count(MeanPooling()) == 0
    assert count(SelfAttentionPooling(200, 4)) == 4 * 200**2 + 2 * 200


@pytest.mark.parametrize(
    "pool",
    [
        LAMA(D, 3),
        LAMA(D, 3, context="mean"),
        LAMA(D, 1),
        MeanPooling(),
        AdditivePooling(D),
        SelfAttentionPooling(D, 2),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_padding_may_hold_anything_and_changes_nothing(pool):
    pool = pool.double()
    hidden, valid = drawn(2, N, D), torch.arange(N) < torch.tensor([[N], [5]])
    noise = hidden.masked_fill(~valid[..., None], float("nan")).requires_grad_()
    found = pool(noise, valid=valid)
    assert found.shape[::2] == (2, D) and torch.isfinite(found).all()
    torch.testing.assert_close(found[1:], pool(hidden[1:, :5]), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), noise)
    assert (gradient[1, 5:] == 0).all() and torch.isfinite(gradient).all()


def test_nobody_valid_pools_to_zero():
    nobody = torch.zeros(1, N, dtype=torch.bool)
    for pool in (LAMA(D, 3), LAMA(D, 3, context="mean"), MeanPooling(), AdditivePooling(D)):
        assert (pool(torch.randn(1, N, D), valid=nobody) == 0).all()
    assert (word_importance(torch.randn(1, 3, N), nobody) == 0).all()
    assert (masked_mean(torch.randn(1, N, D), nobody) == 0).all()


def test_narrow_numbers_are_widened_for_the_lengths():
    layer = LAMA(D, 3)
    hidden = torch.randn(2, N, D)
    assert layer.bfloat16().logits(hidden.bfloat16()).dtype == torch.float32
    wanted = layer.float()(hidden.bfloat16().float())
    narrow = layer.bfloat16()(hidden.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wanted, rtol=0.02, atol=0.02)


def test_memory_is_linear():
    """20,000 tokens: a table of pairs would be 1.6 GB."""
    with torch.no_grad():
        assert LAMA(D, 3)(torch.randn(1, 20_000, D)).shape == (1, 3, D)


def test_errors():
    with pytest.raises(ValueError, match="LAMA: heads must be at least 1, got 0"):
        LAMA(D, 0)
    with pytest.raises(ValueError, match="LAMA: context must be 'learned' or 'mean', got 'own'"):
        LAMA(D, 2, context="own")
    for shape in ((1, 0, D), (0, N, D)):
        text = f"hidden must have at least one batch row and one token, got shape \\({shape[0]}, "
        with pytest.raises(ValueError, match=f"LAMA: {text}"):
            LAMA(D, 2)(torch.zeros(shape))
        with pytest.raises(ValueError, match=f"star: {text}"):
            AdditivePooling(D)(torch.zeros(shape))
