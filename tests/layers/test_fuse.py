"""Folded convolutions and normalisations equal what they replace, and what cannot be folded is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.layers import ConvBN, NormedStep, RepDepthwise, fold_after, fold_before, fuse
from attlas.layers.fuse import Fusable, add_branch, add_identity

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@torch.no_grad()
def lived(module):
    """As after training: no weight, mean or variance stands where it began."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 2.0)
            part.weight.normal_()
            part.bias.normal_()
    return module.double().eval()


def by_hand(norm, x):
    """Batch normalisation in evaluation mode, in the paper's words."""
    mean, variance, weight, bias = (
        part.view(1, -1, 1, 1) for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias


def picture(channels=4, rows=9, columns=6):
    return torch.randn(2, channels, rows, columns, dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (7, 1, 4), (3, 2, 2)])
@torch.no_grad()
def test_a_normalisation_after_a_convolution(kernel, stride, groups):
    module, x = lived(ConvBN(4, 8, kernel, stride=stride, groups=groups)), picture()
    made = module.fused()
    assert type(made) is nn.Conv2d and made.bias is not None
    wanted = by_hand(module.norm, module.conv(x))
    torch.testing.assert_close(module(x), wanted, **EXACT)
    torch.testing.assert_close(made(x), wanted, **EXACT)
    # The original keeps its own weights.
    torch.testing.assert_close(module(x), wanted, **EXACT)
    assert module.conv.bias is None


@torch.no_grad()
def test_a_bias_before_the_normalisation_is_scaled_too():
    norm = lived(nn.BatchNorm2d(5))
    conv = nn.Conv2d(4, 5, 3, bias=True).double()
    x = picture()
    torch.testing.assert_close(fold_after(conv, norm)(x), by_hand(norm, conv(x)), **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_shift_before_a_layer_goes_through_its_weights(bias):
    norm, x = lived(nn.BatchNorm2d(4)), picture()
    conv, linear = nn.Conv2d(4, 5, 1, bias=bias).double(), nn.Linear(4, 5, bias=bias).double()
    torch.testing.assert_close(fold_before(norm, conv)(x), conv(by_hand(norm, x)), **EXACT)
    made = fold_before(norm, linear)
    torch.testing.assert_close(
        made(x.mean((2, 3))), linear(by_hand(norm, x).mean((2, 3))), msg="a mean keeps it", **EXACT
    )


def test_a_shift_that_padding_would_lose_is_not_folded():
    norm = nn.BatchNorm2d(4)
    for conv in (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 1, padding=1)):
        with pytest.raises(ValueError, match="folds into a 1 x 1 one without padding and groups alone"):
            fold_before(norm, conv)


@pytest.mark.parametrize(("width", "kernel", "small", "stride"), [(4, 7, 3, 1), (8, 7, 3, 2), (4, 5, 1, 1)])
@torch.no_grad()
def test_two_branches_are_one_convolution(width, kernel, small, stride):
    module = lived(RepDepthwise(4, width, kernel=kernel, small=small, stride=stride))
    x = picture()
    made = module.fused()
    assert type(made) is nn.Conv2d and made.weight.shape == (width, 1, kernel, kernel)
    # The small kernel on its own, of the padded map: sums over shifts, channel by channel.
    wanted = 0.0
    for branch, side in ((module.large, kernel), (module.small, small)):
        padded = functional.pad(x, (side // 2,) * 4).repeat_interleave(width // 4, 1)
        total = torch.zeros(2, width, 9, 6, dtype=torch.float64)
        for row in range(side):
            for column in range(side):
                weight = branch.conv.weight[:, 0, row, column].view(1, -1, 1, 1)
                total += weight * padded[:, :, row : row + 9, column : column + 6]
        wanted = wanted + by_hand(branch.norm, total[:, :, ::stride, ::stride])
    torch.testing.assert_close(module(x), wanted, **EXACT)
    torch.testing.assert_close(made(x), wanted, **EXACT)


def test_branches_that_do_not_add_up_are_refused():
    large = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    for small in (
        nn.Conv2d(4, 4, 3, padding=0, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 9, padding=4, groups=4),
    ):
        with pytest.raises(ValueError, match="branches add up to one convolution if the first has the"):
            add_branch(large, small)
    with pytest.raises(
        ValueError, match="RepDepthwise: kernel and small must be odd and positive, kernel the"
    ):
        RepDepthwise(4, kernel=3, small=3)


@torch.no_grad()
def test_a_residual_step_is_one_convolution():
    module, x = lived(NormedStep(4)), picture()
    made = module.fused()
    assert type(made) is nn.Conv2d
    torch.testing.assert_close(made(x), x + module.conv(by_hand(module.norm, x)), **EXACT)
    with pytest.raises(ValueError, match="as many channels out as in, got Conv2d"):
        add_identity(nn.Conv2d(4, 5, 1))


@torch.no_grad()
def test_a_whole_model_is_fused_in_a_copy():
    model = lived(nn.Sequential(ConvBN(3, 4, 3), nn.GELU(), nn.Sequential(RepDepthwise(4), NormedStep(4))))
    before, x = copy.deepcopy(model.state_dict()), picture(3)
    wanted = model(x)
    made = fuse(model.train())
    assert not made.training and not any(
        isinstance(part, Fusable | nn.BatchNorm2d) for part in made.modules()
    )
    torch.testing.assert_close(made(x), wanted, **EXACT)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert all(
        part.weight.is_contiguous(memory_format=torch.channels_last)
        for part in made.modules()
        if isinstance(part, nn.Conv2d)
    )
    torch.testing.assert_close(fuse(model.float().eval())(x.float()), model(x.float()), rtol=1e-5, atol=1e-5)


def test_no_statistics_no_folding():
    with pytest.raises(ValueError, match="without running statistics is no fixed map"):
        fold_after(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))


def test_a_branch_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel and small must be odd and positive.*got 7, -1"):
        RepDepthwise(4, small=-1)
