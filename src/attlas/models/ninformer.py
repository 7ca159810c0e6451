"""NiNformer's image classifier, and MLP-Mixer and ViT in the same frame."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import Block, MixerBlock, NiNBlock
from attlas.models.convit import plain_attention
from attlas.models.equal_size import count_parameters, equal_hidden
from attlas.models.small_net import LearnedPositions

__all__ = ["ARMS", "PatchNet", "small_ninformer"]


class PatchNet(nn.Module):
    """A linear map of each patch -> blocks -> normalisation -> mean over the tokens -> classes.

    Args:
        side, patch, channels: of square images; ValueError in `forward` for others.
        blocks: (B, N, width) -> the same, N = (side / patch)^2; places, if any, are added by the first.
        norm: of the tokens before the mean; none unless given.

    Shapes: (B, channels, side, side) -> (B, classes).
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        side: int,
        patch: int,
        channels: int,
        classes: int,
        width: int,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.side = side
        self.cut = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Linear(width, classes)

    @classmethod
    def ninformer(
        cls,
        *,
        side: int = 32,
        patch: int = 4,
        channels: int = 3,
        classes: int = 10,
        width: int = 256,
        hidden: int = 512,
        layers: int = 4,
        dropout: float = 0.5,
    ) -> "PatchNet":
        """NiNformer; the official CIFAR-10 configuration unless changed, 2,652,170 parameters.

        `layers` of `NiNBlock`, no positions, no class token, no last normalisation. ValueError for a side
        that the patches do not divide. Source: arXiv 2403.02411, Abdullah-88/NiNformer train.py.
        """
        tokens = _tokens(side, patch)
        blocks = (NiNBlock(width, tokens, hidden, dropout=dropout) for _ in range(layers))
        return cls(blocks, side=side, patch=patch, channels=channels, classes=classes, width=width)

    def forward(self, images: Float[Tensor, "B channels Y X"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes."""
        if images.shape[2:] != (self.side, self.side):
            raise ValueError(
                f"images must be {self.side} x {self.side} pixels, for which this net is made, got "
                f"{images.shape[2]} x {images.shape[3]}; resize them"
            )
        if images.shape[1] != self.cut.in_channels:
            raise ValueError(
                f"PatchNet: images must have {self.cut.in_channels} channels, got {images.shape[1]}; make "
                "the net with channels="
            )
        x = self.cut(images).flatten(2).mT
        return self.head(self.norm(self.blocks(x)).mean(1))


def _tokens(side: int, patch: int) -> int:
    if side % patch:
        raise ValueError(f"side must be a multiple of patch, got {side} and {patch}")
    return (side // patch) ** 2


def _blocks(arm: str, width: int, hidden: int, tokens: int, layers: int, heads: int) -> list[nn.Module]:
    if arm == "ninformer":
        return [NiNBlock(width, tokens, hidden) for _ in range(layers)]
    if arm == "mlp_mixer":
        return [MixerBlock(width, tokens, hidden) for _ in range(layers)]
    ratio = (hidden + 0.5) / width  # rounding down gives `hidden` again
    made = [Block(width, plain_attention(width, heads), ratio=ratio) for _ in range(layers)]
    return [LearnedPositions(tokens, width), *made]


ARMS = ("ninformer", "mlp_mixer", "vit")


def small_ninformer(
    arm: str = "ninformer",
    *,
    side: int = 8,
    patch: int = 2,
    channels: int = 1,
    classes: int = 10,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
) -> PatchNet:
    """NiNformer, "mlp_mixer" or "vit" for small images, with the same number of parameters, without dropout.

    All read the mean of the tokens; the latter two normalise it before, and "vit" adds a learned vector per
    place. The hidden width, 2 width in NiNformer, is chosen so that they are equal up to half a unit a layer.
    """
    if arm not in ARMS:
        raise ValueError(f"small_ninformer: arm must be one of {', '.join(ARMS)}, got {arm!r}")
    tokens = _tokens(side, patch)

    def made(name: str, hidden: int) -> PatchNet:
        return PatchNet(
            _blocks(name, width, hidden, tokens, layers, heads),
            side=side,
            patch=patch,
            channels=channels,
            classes=classes,
            width=width,
            norm=None if name == "ninformer" else nn.LayerNorm(width),
        )

    with torch.device("meta"):
        wanted = count_parameters(made("ninformer", 2 * width))
    return made(arm, equal_hidden(lambda hidden: made(arm, hidden), wanted))
