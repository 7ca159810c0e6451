"""The gate of a whole mixer block, against its formula written token by token, and what the block shares."""

import math

import pytest
import torch
from torch import nn

from attlas.layers import FeedForward, MixerBlock, MixerGate, NiNBlock, Setting, TokenFeedForward, mixer_entry

B, N, C, T, F = 3, 5, 6, 7, 11
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def norm(layer, x):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + layer.eps) * layer.weight + layer.bias
    )


def through(layer, rows):
    """W2 GELU(W1 z + b1) + b2 of every row z."""
    return gelu(rows @ layer.up.weight.T + layer.up.bias) @ layer.down.weight.T + layer.down.bias


def mixed(layer, u):
    """Step 2 of the sheet: both residuals inside; tokens column by column."""
    before = norm(layer.before_tokens, u)
    columns = [through(layer.tokens, before[:, :, column]) for column in range(u.shape[2])]
    first = u + torch.stack(columns, -1)
    return first + through(layer.channels, norm(layer.before_channels, first))


def gated(layer, u):
    return (u @ layer.linear.weight.T + layer.linear.bias) * mixed(layer.gate, u)


def whole(layer, x):
    x = x + gated(layer.mixer, norm(layer.norm, x))
    return x + through(layer.feed_forward, norm(layer.norm, x))


@torch.no_grad()
def shaken(layer):
    for part in layer.parameters():
        part.add_(0.3 * torch.randn_like(part))
    return layer.double()


@pytest.mark.parametrize(("kind", "formula"), [(MixerBlock, mixed), (MixerGate, gated), (NiNBlock, whole)])
@pytest.mark.parametrize("token_hidden", [None, T])
def test_the_formula_in_value_and_gradient(kind, formula, token_hidden):
    layer = shaken(kind(C, N, F, token_hidden=token_hidden, dropout=0.5)).eval()
    x = torch.randn(B, N, C, dtype=torch.float64, requires_grad=True)
    got, wanted = layer(x), formula(layer, x)
    torch.testing.assert_close(got, wanted, **EXACT)
    leaves = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(got.sin().sum(), leaves),
        torch.autograd.grad(wanted.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_one_normalisation_stands_before_both_steps():
    layer = NiNBlock(C, N, F)
    norms = [part for part in layer.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 3, "the block's own, and two inside of the gate"
    seen = []
    layer.norm.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    layer(torch.randn(B, N, C))
    assert len(seen) == 2 and not torch.equal(*seen)


def test_the_gate_is_the_raw_mixer_output():
    """No sign, no bounds; where the mixer adds nothing, its residual steps leave u itself."""
    layer = MixerGate(C, N, F)
    with torch.no_grad():
        for part in (layer.gate.tokens.down, layer.gate.channels.down):
            part.weight.zero_()
            part.bias.zero_()
        layer.linear.weight.copy_(torch.eye(C))
        layer.linear.bias.zero_()
    x = 10 * torch.randn(B, N, C)
    torch.testing.assert_close(layer(x), x * x)


def test_dropout_stands_behind_both_maps_of_a_feed_forward():
    layer, given = FeedForward(200, 300, 0.5), []
    layer.down.register_forward_hook(lambda module, inputs, found: given.append(inputs[0]))
    found = layer(torch.randn(40, 200))
    for values in (given[0], found):
        # 8000 values or more: the standard deviation of the share is below 0.006.
        assert (values == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    x = torch.ones(1, 200)
    assert torch.equal(layer.eval()(x), layer(x))


def test_the_number_of_tokens_is_fixed():
    for layer in (TokenFeedForward(N, T), MixerGate(C, N, F), NiNBlock(C, N, F)):
        with pytest.raises(ValueError, match="made for 5 tokens, got 4: its weights belong to positions"):
            layer(torch.randn(B, N - 1, C))
    entry = mixer_entry("ninformer")
    with pytest.raises(ValueError, match="made for a fixed number of tokens: the setting needs a length"):
        entry.build(Setting(8, 2, causal=False))
    with pytest.raises(ValueError, match="no CS form, only NS .its weights belong to the positions"):
        entry.build(Setting(8, 2, length=4))


def test_tokens_are_not_transposed():
    """The product over tokens leaves the columns contiguous: no copy with the axes exchanged is made."""
    layer = TokenFeedForward(N, T)
    seen = []
    found = layer(torch.randn(B, N, C, requires_grad=True))
    stack = [found.grad_fn]
    while stack:
        node = stack.pop()
        seen.append(type(node).__name__)
        stack += [one for one, _ in node.next_functions if one is not None]
    assert found.is_contiguous()
    assert seen.count("BaddbmmBackward0") == 2
    assert not {"CloneBackward0", "TransposeBackward0", "PermuteBackward0"} & set(seen)


def test_half_precision_is_near():
    layer, x = NiNBlock(32, 16, 64), torch.randn(2, 16, 32)
    with torch.no_grad():
        wanted = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed_precision = layer(x).float()
        narrow = layer.bfloat16()(x.bfloat16()).float()
    for found in (mixed_precision, narrow):
        # A dozen roundings of 2^-9 in a row.
        assert (found - wanted).abs().max() / wanted.abs().max() < 0.05


def test_sizes_of_a_block() -> None:
    with pytest.raises(ValueError, match="MixerBlock: .* must be at least 1, got 6, 0, 4 and 4"):
        NiNBlock(6, 0, 4)
    with pytest.raises(ValueError, match="NiNBlock: x must have the width 6 it was made for, got 5"):
        NiNBlock(6, 3, 4)(torch.zeros(1, 3, 5))
