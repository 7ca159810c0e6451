"""FFNet: published sizes when fused, the same outputs fused and not, small nets of equal size that learn."""

import pytest
import torch
from torch import nn

from attlas.layers import fuse
from attlas.models import FFNETS, FFNet, FFNetConfig, count_parameters, fused_parameters, small_ffnet
from attlas.models.equal_size import equal_hidden
from attlas.models.ffnet import SMALL_MIXERS, Step
from attlas.tasks import digits_on_canvas
from attlas.train import Recipe, fit, label_loss
from layers.test_fuse import lived

# Millions, as published: of the fused nets. The exact numbers here are the official code's after its own
# fusing, less the last normalisation, which stands in the head here.
PUBLISHED = {"FFNet-1": 13.7, "FFNet-2": 26.9, "FFNet-3": 48.3, "FFNet-4": 79.2}
EXACT = {"FFNet-1": 13_660_152 - 1_280}


@pytest.mark.parametrize("name", FFNETS)
def test_sizes_are_those_that_are_printed(name):
    with torch.device("meta"):
        net = FFNet(name, spread=None)
        found = fused_parameters(net)
    assert count_parameters(net) > found, "branches and normalisations are gone"
    assert found / 1e6 == pytest.approx(PUBLISHED[name], abs=0.05)
    assert found == EXACT.get(name, found)


def tiny(**changes):
    given = {"depths": (1, 2), "widths": (8, 16), "channel_kernels": (7, 3), "token_kernels": (3, 7)}
    return FFNetConfig(**(given | {"stem": 6, "layer_scale": 0.5} | changes))


@torch.no_grad()
def shaken(net):
    for part in net.parameters():
        part.add_(0.2 * torch.randn_like(part))
    return lived(net)


@torch.no_grad()
def test_fused_and_not_are_one_net():
    net = shaken(FFNet(tiny(), classes=5))
    images = torch.randn(2, 3, 36, 28, dtype=torch.float64)
    wanted, made = net(images), fuse(net)
    assert wanted.shape == (2, 5) and wanted.std() > 0.1
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    torch.testing.assert_close(made(images), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        fuse(net.float())(images.float()), wanted.float(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max())
    )


def test_maps_are_halved_and_stay_channels_last():
    net, seen = FFNet(tiny(), classes=5), []

    def note(module, given, found):
        seen.append((tuple(found.shape[1:]), found.is_contiguous(memory_format=torch.channels_last)))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | Step):
            module.register_forward_hook(note)
    net(torch.randn(2, 3, 36, 28))
    assert all(last for _, last in seen)
    shapes = [shape for shape, _ in seen]
    assert shapes[:2] == [(6, 18, 14), (8, 9, 7)] and shapes[-1] == (16, 5, 4)


@pytest.mark.parametrize("mixer", SMALL_MIXERS)
def test_small_maps_stay_channels_last_too(mixer):
    net, seen = small_ffnet(mixer, width=8, blocks=2), []
    for module in net.modules():
        if isinstance(module, Step):
            module.register_forward_hook(
                lambda module, given, found: seen.append(
                    found.is_contiguous(memory_format=torch.channels_last)
                )
            )
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    assert seen == [True] * 4
    assert all(part.grad is not None for part in net.parameters())


def test_the_official_start():
    net = FFNet(tiny(layer_scale=1e-6, drop=0.4))
    convs = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    assert all(part.weight.abs().max() < 0.1 for part in convs), "truncated normal, 0.02"
    assert all(not part.bias.any() for part in convs if part.bias is not None)
    steps = [part for part in net.modules() if isinstance(part, Step)]
    assert [round(step.drop.rate, 6) for step in steps] == [0.0, 0.0, 0.2, 0.2, 0.4, 0.4]
    assert all(torch.equal(step.scale, torch.full_like(step.scale, 1e-6)) for step in steps)


def test_small_nets_are_equal_when_fused():
    sizes = {name: fused_parameters(small_ffnet(name)) for name in SMALL_MIXERS}
    hidden_unit = 4 * (2 * 32 + 1)
    assert max(sizes.values()) - min(sizes.values()) <= hidden_unit, sizes


@pytest.mark.parametrize("mixer", SMALL_MIXERS)
def test_small_nets_learn_and_fuse(mixer):
    train, test = digits_on_canvas(8, step=None, train=200, test=50, seed=0)
    net = small_ffnet(mixer, width=8, blocks=1)
    losses = fit(net, train.batches(32, 0), label_loss, Recipe(steps=30, learning_rate=1e-2))
    assert sum(losses[-5:]) / 5 < 0.85 * losses[0]
    with torch.no_grad():
        wanted = net(test.images)
        torch.testing.assert_close(
            fuse(net)(test.images), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max())
        )


def test_errors():
    with pytest.raises(ValueError, match="config must be one of FFNet-1, .*, got 'FFNet-9'"):
        FFNet("FFNet-9")
    with pytest.raises(ValueError, match="must name the same stages"):
        tiny(widths=(8, 16, 32))
    with pytest.raises(ValueError, match="mixer must be one of ffn, attention, pooling, got 'mlp'"):
        small_ffnet("mlp")
    with pytest.raises(ValueError, match="no hidden width makes 3 parameters: 1 makes 13"):
        equal_hidden(lambda hidden: nn.Sequential(nn.Linear(4, hidden), nn.Linear(hidden, 4)), 3)


def test_images_of_other_channels() -> None:
    with pytest.raises(ValueError, match="FFNet: images must have 1 channels, got 3; make the net with"):
        small_ffnet(width=8, blocks=1)(torch.zeros(2, 3, 8, 8))
