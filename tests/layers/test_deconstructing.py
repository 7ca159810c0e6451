"""The variants of Deconstructing attention against their formulas, written densely in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attlas.attend import attend
from attlas.layers import MIXERS, Setting
from attlas.layers.deconstructing import Approximate, GatedMLP, NonApproximate, SourcedAttention
from attlas.layers.rotary import rotary
from attlas.pattern import causal

WIDTH, HEADS, LENGTH = 12, 3, 41


def made(kind, seed=0, **named):
    torch.manual_seed(seed)
    return kind(WIDTH, HEADS, **named).double()


def drawn(batch=2, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64)


def heads(x):
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def turned(x, places):
    """Rotary positions by complex numbers."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / x.shape[-1])
    angle = places[:, None] * rates
    spun = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([spun.real, spun.imag], -1)


def mixed(layer, weights, x):
    """W_o of the rows' averages, weights (B or 1, H, N, N) before they are divided by their sum."""
    weights = weights.tril()
    value = heads(x @ layer.value.weight.T)
    out = (weights / weights.sum(-1, keepdim=True)) @ value
    return out.transpose(1, 2).reshape(*x.shape) @ layer.out.weight.T


def products(layer, source, base):
    query, key = (heads(source @ make.weight.T) for make in (layer.query, layer.key))
    if base is not None:
        places = torch.arange(source.shape[1], dtype=torch.float64)
        query, key = turned(query, places), turned(key, places)
    return query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5


@pytest.mark.parametrize("base", [None, 10000.0])
def test_taylor_weights_are_one_plus_s_plus_half_its_square(base):
    layer, x = made(Approximate, base=base), drawn()
    s = products(layer, x, base)
    expected = mixed(layer, 1 + s + s**2 / 2, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-10)
    asked = layer.asked(x)
    out = attend(*asked[:2], heads(layer.value(x)), pattern=causal(), score=asked[2], normaliser=asked[3])
    out = layer.out(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


def test_its_features_give_the_same_weights():
    """phi(x) = [1, x / D^(1/4), vec(x x^T) / (sqrt 2 sqrt D)] with every product held twice."""
    layer, x = made(Approximate, base=None), drawn()
    width = WIDTH // HEADS

    def phi(part):
        pairs = torch.einsum("...a,...b->...ab", part, part).flatten(-2) / (2**0.5 * width**0.5)
        return torch.cat([torch.ones_like(part[..., :1]), part / width**0.25, pairs], -1)

    query, key = (phi(heads(x @ make.weight.T)) for make in (layer.query, layer.key))
    torch.testing.assert_close(
        layer(x), mixed(layer, query @ key.transpose(-1, -2), x), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("size", [1.0, 40.0])
def test_a_key_weighs_by_the_product_with_the_query_of_its_own_token(size):
    layer, x = made(NonApproximate), drawn() * size
    query, key = functional.silu(x @ layer.query.weight.T), x @ layer.key.weight.T
    z = (heads(query) * heads(key)).sum(-1) * (WIDTH // HEADS) ** -0.5
    shifted = (z[:, :, None, :] - z.new_zeros(LENGTH, LENGTH)).masked_fill(
        torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf
    )
    weights = (shifted - shifted.amax(-1, keepdim=True)).exp()
    torch.testing.assert_close(layer(x), mixed(layer, weights, x), rtol=1e-9, atol=1e-9)
    asked = layer.asked(x)
    out = attend(*asked[:2], heads(layer.value(x)), pattern=causal(), score=asked[2], normaliser=asked[3])
    torch.testing.assert_close(layer.out(out.transpose(1, 2).flatten(2)), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("base", [None, 10000.0])
def test_the_map_comes_from_the_source_alone(batch, base):
    layer, x, source = made(SourcedAttention, base=base), drawn(), drawn(batch, seed=2)
    s = products(layer, source, base)
    torch.testing.assert_close(layer(x, source), mixed(layer, s.exp(), x), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        layer(x), mixed(layer, products(layer, x, base).exp(), x), rtol=1e-9, atol=1e-10
    )


def test_gradients_of_a_shared_map_are_the_sums_over_the_rows():
    layer, x, source = made(SourcedAttention), drawn(), drawn(1, seed=2).requires_grad_()
    wanted = (*layer.parameters(), source)
    found = torch.autograd.grad(layer(x, source).sin().sum(), wanted)
    dense = mixed(layer, products(layer, source, 10000.0).exp(), x)
    for one, other in zip(found, torch.autograd.grad(dense.sin().sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_the_mlp_mixes_no_tokens_and_has_attention_s_parameters():
    torch.manual_seed(0)
    layer, x = GatedMLP(WIDTH).double(), drawn()
    gate, up, down = (part.weight for part in (layer.gate, layer.up, layer.down))
    expected = (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    for width in (12, 64, 512, 768, 896):
        size = sum(weight.numel() for weight in GatedMLP(width).parameters())
        assert abs(size - 4 * width**2) <= 1.5 * width
    with pytest.raises(ValueError, match="GatedMLP: inner must be at least 1, got 0"):
        GatedMLP(8, inner=0)


@pytest.mark.parametrize("kind", [Approximate, NonApproximate])
def test_token_by_token_is_all_at_once(kind):
    layer, x = made(kind), drawn()
    state, rows = layer.start(2), []
    for piece in x.split(1, 1):
        out, state = layer.advance(piece, state)
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["approximate", "non_approximate"])
def test_nan_in_padding_reaches_neither_outputs_nor_weights(name):
    torch.manual_seed(0)
    layer, x = MIXERS[name].build(Setting(WIDTH, HEADS)).double(), drawn()
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, :5] = valid[1, -7:] = False
    clean = layer(x, valid=valid)
    dirty = layer(x.masked_fill(~valid[..., None], torch.nan), valid=valid)
    torch.testing.assert_close(dirty[valid], clean[valid], rtol=0, atol=0)
    found = torch.autograd.grad(dirty[valid].sum(), tuple(layer.parameters()))
    assert all(torch.isfinite(one).all() for one in found)


def test_rotary_takes_places_of_every_row():
    x = torch.randn(2, 3, 5, 4)
    places = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 9, 2]])
    found = rotary(x, places[:, None])
    for row in range(2):
        assert torch.equal(found[row], rotary(x[row], places[row]))


@pytest.mark.parametrize("kind", [Approximate, NonApproximate, SourcedAttention])
def test_widths_that_do_not_divide_are_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: width must be a multiple of heads, got 8 and 3"):
        kind(8, 3)
