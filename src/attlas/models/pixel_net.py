"""The classifier of images whose every pixel is a token, for claims about mixers of short sequences."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import Block

__all__ = ["PixelNet"]


class PixelNet(nn.Module):
    """Linear(value) + learned position -> pre-norm blocks around `mixer(layer)` -> mean of tokens -> classes.

    Args:
        mixer: (B, N, width) -> (B, N, width). tokens: N, the pixels of an image.

    Positions start from N(0, 1): with a standard deviation of 0.02 a short training learns nothing. Source:
    of no paper.
    """

    def __init__(
        self, mixer: Callable[[int], nn.Module], *, tokens: int, width: int, layers: int, classes: int
    ) -> None:
        super().__init__()
        self.value = nn.Linear(1, width)
        self.places = nn.Parameter(torch.randn(tokens, width))
        self.blocks = nn.ModuleList(Block(width, mixer(layer)) for layer in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; raises ValueError for images of another number of pixels."""
        pixels = images.flatten(1)
        if pixels.shape[1] != len(self.places):
            raise ValueError(f"the net is made for {len(self.places)} pixels, got {pixels.shape[1]}")
        x = self.value(pixels[..., None]) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
