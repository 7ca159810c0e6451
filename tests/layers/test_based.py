"""BASED's layers against their dense weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attlas.layers import MIXERS, Setting
from attlas.layers.based import GatedConv, TaylorAttention, sliding_window


def heads_of(made):
    return made.unflatten(-1, (2, -1)).transpose(1, 2)


@pytest.mark.parametrize("n", [1, 9, 130])
def test_taylor_attention_is_its_polynomial(n):
    layer = TaylorAttention(8, 2, feature=5).double()
    x = 3 * torch.randn(2, n, 8, dtype=torch.float64)
    q, k, v = (heads_of(make(x)) for make in (layer.query, layer.key, layer.value))
    z = q @ k.transpose(-1, -2) / 5**0.5  # once, and inside z
    weights = (1 + z + z.square() / 2).tril()
    assert weights.diagonal(dim1=-2, dim2=-1).min() >= 0.5
    mixed = weights @ v / (weights.sum(-1, keepdim=True) + 1e-12)
    wanted = layer.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)


def test_the_published_features_have_the_same_products():
    # phi(x) = [1; x / d^(1/4); vec(x x^T) / (sqrt 2 sqrt d)], 273 for 16, one token after the other.
    layer = TaylorAttention(8, 2, feature=16).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)

    def features(part):
        outer = (part[..., :, None] * part[..., None, :]).flatten(-2) / (2**0.5 * 4)
        return torch.cat([torch.ones_like(part[..., :1]), part / 2, outer], -1)

    q, k = (features(heads_of(make(x))) for make in (layer.query, layer.key))
    assert q.shape[-1] == 273
    v = heads_of(layer.value(x))
    sums, total, found = 0, 0, []
    for i in range(6):
        sums = sums + k[:, :, i, :, None] * v[:, :, i, None, :]
        total = total + k[:, :, i]
        top = (q[:, :, i, None] @ sums)[:, :, 0]
        found.append(top / ((q[:, :, i] * total).sum(-1, keepdim=True) + 1e-12))
    wanted = layer.out(torch.stack(found, 2).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)
    _, state = layer.advance(x, None)
    assert state.nbytes == 2 * 153 * (4 + 1) * 8


def test_a_window_of_b_sees_b_keys_and_its_own():
    layer = sliding_window(8, 2, previous=3, base=None).double()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    q, k, v = (heads_of(make(x)) for make in (layer.query, layer.key, layer.value))
    gap = torch.arange(12)[:, None] - torch.arange(12)
    logits = (q @ k.transpose(-1, -2) / 2).masked_fill((gap < 0) | (gap > 3), -torch.inf)
    wanted = layer.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)


def test_the_window_keeps_a_ring():
    layer = sliding_window(8, 2, previous=3).double()
    x = torch.randn(2, 14, 8, dtype=torch.float64)
    state, pieces = layer.start(2), []
    for piece in x.split([1, 2, 5, 1, 4, 1], 1):
        out, state = layer.advance(piece, state)
        pieces.append(out)
        assert state.nbytes <= 2 * 2 * 2 * 3 * 4 * 8  # keys and values of 3 tokens
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x), rtol=0, atol=1e-10)


def test_the_gated_convolution_is_its_formula():
    layer = GatedConv(6).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    a, g = layer.enter(x)[..., :12], layer.enter(x)[..., 12:]
    padded = torch.cat([torch.zeros(2, 2, 12, dtype=torch.float64), a], 1)
    taps = sum(layer.conv.weight[:, s] * padded[:, s : s + 7] for s in range(3))
    torch.testing.assert_close(layer(x), layer.leave(functional.silu(taps) * g))
    assert layer.conv.bias is None
    state, pieces = layer.start(2), []
    for piece in x.split([1, 4, 2], 1):
        out, state = layer.advance(piece, state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x))
    assert state.nbytes == 2 * 2 * 12 * 8


def test_errors():
    with pytest.raises(ValueError, match="TaylorAttention: width must be a multiple of heads, got 9 and 2"):
        TaylorAttention(9, 2)
    with pytest.raises(ValueError, match="TaylorAttention: feature must be at least 1, got 0"):
        TaylorAttention(8, 2, feature=0)
    with pytest.raises(ValueError, match="sliding_window: previous must be at least 1 token, got 0"):
        sliding_window(8, 2, previous=0)
    with pytest.raises(ValueError, match=r"GatedConv: .* expand >= 2, got 1 \* 8"):
        GatedConv(8, expand=1)
    with pytest.raises(ValueError, match="mixer based_linear has no NC form, only CS .the published layers"):
        MIXERS["based_linear"].build(Setting(8, 2, causal=False, cross=True))
