"""The classifier of pixels: what it computes, and its error."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.models import PixelNet


def test_tokens_are_pixels_at_places():
    net = PixelNet(lambda layer: nn.Identity(), tokens=6, width=4, layers=2, classes=3)
    images = torch.rand(2, 1, 2, 3)
    x = images.view(2, 6, 1) * net.value.weight[:, 0] + net.value.bias + net.places
    for block in net.blocks:
        x = x + block.before_mixer(x)
        x = x + block.mlp(block.before_mlp(x))
    torch.testing.assert_close(
        net(images), functional.linear(net.norm(x).mean(1), net.head.weight, net.head.bias)
    )
    assert net.places.std() > 0.5


def test_errors():
    net = PixelNet(lambda layer: nn.Identity(), tokens=6, width=4, layers=1, classes=3)
    with pytest.raises(ValueError, match="the net is made for 6 pixels, got 4"):
        net(torch.zeros(1, 1, 2, 2))
