"""FFNified attention against its formula by shifts; attention and pooling as the same scheme; on a grid."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.attend import Sigmoid
from attlas.layers import (
    ChannelMixer,
    DynamicKeys,
    DynamicValues,
    GridMixer,
    MetaMixer,
    SelfAttention,
    Setting,
    Static,
    StochasticDepth,
    attention_mixer,
    check_mixer,
    ffn_mixer,
    fuse,
    mixer_entry,
    pooling_mixer,
)
from layers.test_fuse import EXACT, by_hand, lived, picture


def shifted(x, weight, bias):
    """A depthwise convolution as messages from the pixels of a stencil: a sum over its offsets."""
    side = weight.shape[-1]
    padded = functional.pad(x, (side // 2,) * 4)
    found = torch.zeros_like(x) if bias is None else bias.view(1, -1, 1, 1).expand_as(x).clone()
    for row in range(side):
        for column in range(side):
            seen = padded[:, :, row : row + x.shape[2], column : column + x.shape[3]]
            found = found + weight[:, 0, row, column].view(1, -1, 1, 1) * seen
    return found


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def interaction(module, x):
    if isinstance(module, nn.Conv2d):
        return shifted(x, module.weight, module.bias)
    return sum(
        by_hand(part.norm, shifted(x, part.conv.weight, None)) for part in (module.large, module.small)
    )


@pytest.mark.parametrize("kernels", [(3, 3), (7, 7), (3, 7), (1, 5)])
@torch.no_grad()
def test_ffnified_attention_by_its_formula(kernels):
    mixer, x = lived(ffn_mixer(4, kernels)), picture()
    query = by_hand(mixer.query.norm, torch.einsum("oi,bihw->bohw", mixer.query.conv.weight[..., 0, 0], x))
    wanted = interaction(mixer.value.mix, gelu(interaction(mixer.key.mix, query)))
    torch.testing.assert_close(mixer(x), wanted, **EXACT)
    torch.testing.assert_close(fuse(mixer)(x), wanted, **EXACT)


def test_its_gradients_are_those_of_the_formula():
    mixer, x = lived(ffn_mixer(4, (3, 7))), picture().requires_grad_()
    query = by_hand(mixer.query.norm, torch.einsum("oi,bihw->bohw", mixer.query.conv.weight[..., 0, 0], x))
    wanted = interaction(mixer.value.mix, gelu(interaction(mixer.key.mix, query)))
    leaves = [x, *mixer.parameters()]
    for one, other in zip(
        torch.autograd.grad(mixer(x).sin().sum(), leaves),
        torch.autograd.grad(wanted.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [ffn_mixer, lambda width: attention_mixer(width, 2), pooling_mixer])
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_one_image_is_that_of_the_same_image_twice(make, training):
    """torch's own batch normalisation misreads gradients of one image that come as views of tokens."""
    torch.manual_seed(3)
    mixer = GridMixer(lived(make(4)), (3, 5)).train(training)
    x = torch.randn(1, 15, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 15, 4, dtype=torch.float64)
    (one,) = torch.autograd.grad((mixer(x) * weights).sum(), x)
    (twice,) = torch.autograd.grad((mixer(x.expand(2, -1, -1)) * weights).sum() / 2, x)
    torch.testing.assert_close(one, twice, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normaliser", [None, Sigmoid()])
@torch.no_grad()
def test_attention_is_the_choice_of_dynamic_keys_and_values(normaliser):
    """Folded, it is self-attention with biases: the same weights, the same outputs and gradients."""
    given = SelfAttention(8, 2, bias=True, normaliser=normaliser).double()
    scheme = fuse(attention_mixer(8, 2, normaliser).double())
    parts = {"query": scheme.query, "key": scheme.key.project}
    parts |= {"value": scheme.value.project, "out": scheme.value.out}
    for name, part in parts.items():
        part.weight.copy_(getattr(given, name).weight[..., None, None])
        part.bias.copy_(getattr(given, name).bias)
    x = picture(8, 3, 5)
    wanted = given(x.flatten(2).mT)
    torch.testing.assert_close(scheme(x).flatten(2).mT, wanted, **EXACT)
    with torch.enable_grad():
        x.requires_grad_()
        (found,) = torch.autograd.grad(scheme(x).sin().sum(), x)
        (wanted,) = torch.autograd.grad(given(x.flatten(2).mT).sin().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_attention_s_normalisations_fold():
    mixer, x = lived(attention_mixer(8, 2)), picture(8, 3, 5)
    made = fuse(mixer)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    torch.testing.assert_close(made(x), mixer(x), **EXACT)


@torch.no_grad()
def test_static_interactions_ignore_the_input_and_dynamic_ones_do_not():
    x, other = picture(8), picture(8)
    for mixer, changes in ((ffn_mixer(8), False), (attention_mixer(8, 2), True)):
        lived(mixer)
        same = mixer.value(mixer.activation(mixer.key(mixer.query(x), x)), x)
        found = mixer.value(mixer.activation(mixer.key(mixer.query(x), other)), other)
        assert torch.equal(same, found) is not changes


@torch.no_grad()
def test_pooling_by_its_formula():
    mixer, x = lived(pooling_mixer(4)), picture()
    given = by_hand(mixer.query, x)
    ones = torch.ones(4, 1, 3, 3, dtype=torch.float64)
    count = shifted(torch.ones_like(given), ones, None)
    torch.testing.assert_close(mixer(x), shifted(given, ones, None) / count - given, **EXACT)
    assert count.min() == 4 and count.max() == 9, "corners have four neighbours, themselves included"


def test_any_four_parts_make_a_mixer():
    mixer = MetaMixer(nn.Identity(), Static(nn.Conv2d(4, 4, 1)), nn.ReLU(), Static(nn.Identity())).double()
    x = picture()
    torch.testing.assert_close(mixer(x), mixer.key.mix(x).relu())
    unfinished = MetaMixer(nn.Identity(), DynamicKeys(nn.Identity(), 2), nn.Identity(), DynamicValues(
        nn.Identity(), nn.Identity()
    ))  # fmt: skip
    with pytest.raises(TypeError, match=r"needs weights: put Normalised\(...\) between it and DynamicKeys"):
        unfinished(x)


@pytest.mark.parametrize("kernel", [3, 7])
@torch.no_grad()
def test_the_channel_mixer_by_its_formula(kernel):
    mixer, x = lived(ChannelMixer(4, 12, kernel)), picture()
    assert mixer.up.weight.shape == (12, 4, 1, 1) and mixer.up.bias is not None
    if kernel == 3:
        local = by_hand(mixer.local.norm, shifted(x, mixer.local.conv.weight, None))
    else:
        local = interaction(mixer.local, x)
    inner = gelu(
        torch.einsum("oi,bihw->bohw", mixer.up.weight[..., 0, 0], local) + mixer.up.bias[:, None, None]
    )
    wanted = (
        torch.einsum("oi,bihw->bohw", mixer.down.weight[..., 0, 0], inner) + mixer.down.bias[:, None, None]
    )
    torch.testing.assert_close(mixer(x), wanted, **EXACT)


def test_the_registered_one_sees_a_stencil_of_the_grid():
    """Two kernels of 7: 6 pixels to each side, and neither more nor, by a wrong raster, less."""
    mixer = mixer_entry("metamixer").build(Setting(2, 1, causal=False, grid=(9, 17))).double().eval()
    x = torch.randn(1, 9 * 17, 2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(mixer(x)[0, 4 * 17 + 8].sum(), x)
    rows, columns = (found.abs().sum(-1) > 1e-12).view(9, 17).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 8, 2, 14)


@pytest.mark.parametrize("name", ["metamixer", "gpsa"])
def test_grid_mixers_keep_the_contract_on_other_grids(name):
    assert not check_mixer(mixer_entry(name), grid=(3, 17), checks=("shape", "reach", "batch", "repeats"))


def test_errors():
    with pytest.raises(ValueError, match="made for the tokens of an image: the setting needs a grid"):
        mixer_entry("metamixer").build(Setting(8, 2, causal=False, length=64))
    with pytest.raises(ValueError, match="made for a grid of 5 x 7 tokens, got 36 tokens"):
        GridMixer(ffn_mixer(4), (5, 7))(torch.randn(1, 36, 4))
    with pytest.raises(ValueError, match="attention_mixer: width must be a multiple of heads, got 8 and 3"):
        attention_mixer(8, 3)
    for make in (lambda: ffn_mixer(4, (4, 3)), lambda: pooling_mixer(4, 2)):
        with pytest.raises(ValueError, match="kernel must be odd and at least 1, got"):
            make()


def test_stochastic_depth_keeps_the_mean_and_leaves_out_whole_rows():
    layer, x = StochasticDepth(0.25), torch.ones(4000, 3)
    found = layer(x)
    left = (found == 0).all(1)
    assert torch.equal(found[~left], torch.full_like(found[~left], 1 / 0.75))
    # The standard deviation of the share is 0.007.
    assert left.double().mean().item() == pytest.approx(0.25, abs=0.035)
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match="rate must be from 0 to below 1, got 1"):
        StochasticDepth(1.0)


def test_heads_that_do_not_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="DynamicKeys: channels must be a multiple of heads, got 4 and 3"):
        DynamicKeys(torch.nn.Identity(), 3)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="DynamicKeys: heads must be at least 1, got 0"):
        DynamicKeys(torch.nn.Identity(), 0)
