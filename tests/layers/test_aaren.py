"""Aaren against the softmax of every prefix, and against the monoid's route to the same sums."""

from __future__ import annotations

import pytest
import torch

from attlas.layers import MIXERS, Setting
from attlas.layers.aaren import Aaren, prefix_softmax
from attlas.scan import SoftmaxMean, prefix


def drawn(n, size=1.0, heads=2):
    logit = size * torch.randn(2, heads, n, dtype=torch.float64)
    return logit, torch.randn(2, heads, n, 3, dtype=torch.float64)


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_every_prefix_has_its_softmax(n, size):
    logit, value = drawn(n, size)
    logit = logit + torch.linspace(-size, size, n, dtype=torch.float64)  # the largest come late
    found, state = prefix_softmax(logit, value)
    wanted = torch.stack(
        [(logit[..., : i + 1].softmax(-1)[..., None] * value[:, :, : i + 1]).sum(2) for i in range(n)], 2
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    prefixes, last = prefix(SoftmaxMean(), SoftmaxMean.leaf(logit, value))
    torch.testing.assert_close(found, SoftmaxMean.mean(prefixes), rtol=0, atol=1e-12)
    # What a row carries: (m, u, w), E + 2 numbers a head.
    torch.testing.assert_close(state["sum"][:, :, 0] / state["weight"], SoftmaxMean.mean(last))
    assert state.nbytes == 2 * 2 * (3 + 2) * 8


def test_both_routes_have_one_gradient():
    leaves = [part.requires_grad_() for part in drawn(70)]
    weight = torch.randn(2, 2, 70, 3, dtype=torch.float64)
    one = (prefix_softmax(*leaves)[0] * weight).sum()
    other = (SoftmaxMean.mean(prefix(SoftmaxMean(), SoftmaxMean.leaf(*leaves))[0]) * weight).sum()
    for mine, theirs in zip(
        torch.autograd.grad(one, leaves), torch.autograd.grad(other, leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_the_layer_asks_with_one_learned_query():
    layer = Aaren(8, 2, bias=True).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    query = layer.query(layer.asks).view(2, 4)
    wanted = torch.zeros(2, 5, 8, dtype=torch.float64)
    for b in range(2):
        for i in range(5):
            heads = []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                key, value = layer.key(x[b, : i + 1])[:, part], layer.value(x[b, : i + 1])[:, part]
                heads.append((key @ query[h] / 2).softmax(0) @ value)
            wanted[b, i] = layer.out(torch.cat(heads))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)


def test_it_adds_one_vector_to_a_transformer():
    ours, softmax = (
        sum(p.numel() for p in MIXERS[name].build(Setting(64, 4)).parameters())
        for name in ("aaren", "softmax")
    )
    assert ours - softmax == 64


def test_streaming_is_the_whole_and_keeps_its_size():
    layer = Aaren(8, 2).double()
    x = torch.randn(3, 21, 8, dtype=torch.float64)
    state, pieces = layer.start(3), []
    empty = state.nbytes
    for piece in x.split([1, 1, 7, 12], 1):
        out, state = layer.advance(piece, state)
        pieces.append(out)
        assert state.nbytes == empty == 3 * 2 * (4 + 2) * 8
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x), rtol=0, atol=1e-12)
    assert state.position.tolist() == [21] * 3


def test_padding_is_no_key():
    layer = Aaren(8, 2).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    valid = torch.tensor([[False, True, True, False, True, True, False, True, False]])
    torch.testing.assert_close(layer(x, valid=valid)[valid], layer(x[:, valid[0]])[0])


def test_errors():
    with pytest.raises(ValueError, match="Aaren: width must be a multiple of heads, got 9 and 2"):
        Aaren(9, 2)
    with pytest.raises(ValueError, match="mixer aaren has no NS form, only CS .its query is learned"):
        MIXERS["aaren"].build(Setting(8, 2, causal=False))
