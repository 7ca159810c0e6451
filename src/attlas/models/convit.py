"""ConViT: a vision transformer whose first blocks start as convolutions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import GPSA, Block, SelfAttention
from attlas.models.vit import Patches, start_small

__all__ = ["CONVIT_HEADS", "ConViT", "plain_attention"]

CONVIT_HEADS = {"tiny": 4, "small": 9, "base": 16}
HEAD_WIDTH = 48


def plain_attention(width: int, heads: int) -> SelfAttention:
    """Self-attention as in DeiT without query, key and value biases: a bias at the output alone."""
    layer = SelfAttention(width, heads)
    layer.out = nn.Linear(width, width)
    return layer


class ConViT(nn.Module):
    """Patches and places; `local` blocks of GPSA without class token; then plain blocks with it; its class.

    Args:
        side, patch, channels: of the images; classes: width of the answer.
        width, heads, layers: of the blocks, pre-norm LayerNorm, MLP of 4 times the width.
        local: number of first blocks with `mixer`; the class token joins before the next.
        strength: of the local start, see `GPSA`; spread: of the random one, see `start_small`.
        mixer: `mixer(layer)` makes the token mixer of a first block, called with (x, at=grid); default GPSA.

    Shapes: (B, channels, side, side) -> (B, classes). `ConViT.of_size("tiny" | "small" | "base")` are the
    published ones: width 48 per head, 12 blocks, the first 10 local, 224 pixels in patches of 16.
    Source: arXiv 2103.10697. Departures: no dropout and no stochastic depth.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        side: int = 224,
        patch: int = 16,
        channels: int = 3,
        classes: int = 1000,
        layers: int = 12,
        local: int = 10,
        strength: float = 1.0,
        spread: float = 0.02,
        mixer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= local < layers:
            raise ValueError(
                f"local must leave a block for the class token, from 0 to {layers - 1}, got {local}"
            )
        norm = partial(nn.LayerNorm, eps=1e-6)
        make = mixer or (lambda layer: GPSA(width, heads, strength=strength, spread=spread))
        self.local = local
        self.patches = Patches(side=side, patch=patch, channels=channels, width=width, spread=spread)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.token, std=spread)
        self.blocks = nn.ModuleList(
            Block(width, make(layer) if layer < local else plain_attention(width, heads), norm=norm)
            for layer in range(layers)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, classes)
        start_small(self, spread)
        for module in self.modules():
            if isinstance(module, GPSA):
                module.start_local()

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> "ConViT":
        """A published size; `changes` are further arguments."""
        if size not in CONVIT_HEADS:
            raise ValueError(f"size must be one of {', '.join(CONVIT_HEADS)}, got {size!r}")
        heads = CONVIT_HEADS[size]
        return cls(width=HEAD_WIDTH * heads, heads=heads, **changes)

    def forward(self, images: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes."""
        x = self.patches(images)
        for number, block in enumerate(self.blocks):
            if number == self.local:
                x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            x = block(x, at=self.patches.grid) if number < self.local else block(x)
        return self.head(self.norm(x)[:, 0])

    def gates(self) -> Float[Tensor, "local H"]:
        """sigmoid(gate) of each GPSA block: the positional share of its heads."""
        found = [module.gate.sigmoid() for module in self.modules() if isinstance(module, GPSA)]
        return torch.stack(found) if found else self.head.weight.new_zeros(0, 0)

    @torch.no_grad()
    def nonlocality(self, images: Float[Tensor, "B channels height width"]) -> Float[Tensor, "local H"]:
        """`GPSA.nonlocality` of each local block that has one, on these images."""
        x, found = self.patches(images), []
        for block in list(self.blocks)[: self.local]:
            if isinstance(block, Block) and isinstance(block.mixer, GPSA):
                found.append(block.mixer.nonlocality(block.before_mixer(x), self.patches.grid))
            x = block(x, at=self.patches.grid)
        if not found:
            raise ValueError("this model has no GPSA block, so that there is no mixture to measure")
        return torch.stack(found)
