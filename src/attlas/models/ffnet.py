"""FFNet: stages of convolutional query-key-value mixers (arXiv 2406.02021); FFNet-1 to 4, a small net."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import (
    BatchNorm,
    ChannelMixer,
    ConvBN,
    Fusable,
    NormedStep,
    RepDepthwise,
    StochasticDepth,
    attention_mixer,
    ffn_mixer,
    fold_before,
    fuse,
    pooling_mixer,
)
from attlas.models.equal_size import count_parameters, equal_hidden

__all__ = ["FFNETS", "FFNet", "FFNetConfig", "fused_parameters", "small_ffnet"]

SPREAD = 0.02  # standard deviation of initial weights in the official code


@dataclass(frozen=True)
class FFNetConfig:
    """One member of the family.

    depths, widths: blocks and channels of the stages; token_kernels: of both convolutions of the token
    mixers; channel_kernels: of the channel mixers; expansion: hidden over outer channels there; stem,
    strides: channels and strides of the first two convolutions. layer_scale: initial factor of every residual
    step, per channel; None: no such factor. drop: stochastic depth of the last block, rising linearly from 0.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    channel_kernels: tuple[int, ...]
    token_kernels: tuple[int, ...] = (3, 3, 7, 7)
    expansion: float = 3.0
    stem: int = 64
    strides: tuple[int, int] = (2, 2)
    layer_scale: float | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        stages = (self.depths, self.widths, self.token_kernels, self.channel_kernels)
        if len({len(given) for given in stages}) > 1:
            raise ValueError(
                "FFNet: depths, widths, token_kernels and channel_kernels must name the same stages, got "
                f"{', '.join(map(str, stages))}"
            )


FFNETS = {
    "FFNet-1": FFNetConfig((2, 2, 8, 2), (80, 160, 320, 640), (3, 3, 3, 3), drop=0.1),
    "FFNet-2": FFNetConfig((3, 3, 15, 3), (88, 176, 352, 704), (7, 7, 7, 7), drop=0.15),
    "FFNet-3": FFNetConfig((4, 4, 22, 5), (96, 192, 384, 768), (7, 7, 7, 7), layer_scale=1e-6, drop=0.35),
    "FFNet-4": FFNetConfig((4, 4, 27, 3), (128, 256, 512, 1024), (7, 7, 7, 7), layer_scale=1e-6, drop=0.4),
}
"""By name, as in the official code."""


class Step(nn.Module):
    """x -> x + drop(scale f(x)), without a normalisation in front: those are inside of f."""

    def __init__(self, inner: nn.Module, width: int, scale: float | None = None, drop: float = 0.0) -> None:
        super().__init__()
        self.inner, self.drop = inner, StochasticDepth(drop)
        self.scale = None if scale is None else nn.Parameter(torch.full((width, 1, 1), scale))

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The residual step."""
        found = self.inner(x)
        return x + self.drop(found if self.scale is None else found * self.scale)


class Pooled(Fusable):
    """Classes of the mean over the map of the normalised map; fused: without the normalisation."""

    def __init__(self, norm: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes."""
        return self.head(self.norm(x).mean((2, 3)))

    def fused(self) -> "Pooled":
        """The normalisation in the linear layer: a mean keeps factors and shifts of channels."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return self
        return Pooled(nn.Identity(), fold_before(self.norm, self.head))


class FFNet(nn.Module):
    """Images to logits: two strided convolutions, stages of token and channel mixers, mean, classes.

    A block is two residual steps, of the token mixer and of the channel mixer. Before each stage but the
    first a strided `RepDepthwise` doubles the channels and halves the map, and a `NormedStep` mixes them.

    Args:
        config: a `FFNetConfig` or a name of `FFNETS`.
        token_mixer: `token_mixer(width, kernel)` makes one, (B, C, Y, X) -> the same; default `ffn_mixer`.
        spread: standard deviation of initial weights, truncated normal; None: torch's own, for narrow nets.

    `attlas.layers.fuse(net)` is the net for inference, one convolution for each group of convolutions and
    normalisations; parameters are counted there (`fused_parameters`). Maps are kept channels-last in memory.
    Source: arXiv 2406.02021, ysj9909/FFNet models/ffnet.py.
    """

    def __init__(
        self,
        config: FFNetConfig | str,
        *,
        classes: int = 1000,
        channels: int = 3,
        token_mixer: Callable[[int, int], nn.Module] | None = None,
        spread: float | None = SPREAD,
    ) -> None:
        super().__init__()
        if isinstance(config, str):
            if config not in FFNETS:
                raise ValueError(f"FFNet: config must be one of {', '.join(FFNETS)}, got {config!r}")
            config = FFNETS[config]
        make = token_mixer or (lambda width, kernel: ffn_mixer(width, (kernel, kernel)))
        first, second = config.strides
        self.channels = channels
        self.stem = nn.Sequential(
            ConvBN(channels, config.stem, 3, stride=first),
            nn.GELU(),
            ConvBN(config.stem, config.widths[0], 3, stride=second),
        )
        drops = iter(torch.linspace(0, config.drop, sum(config.depths), device="cpu").tolist())
        stages, given = [], config.widths[0]
        for number, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            made: list[nn.Module] = []
            if number:
                made += [RepDepthwise(given, width, stride=2), NormedStep(width)]
            for _ in range(depth):
                drop = next(drops)
                inner = ChannelMixer(width, int(width * config.expansion), config.channel_kernels[number])
                made.append(Step(make(width, config.token_kernels[number]), width, config.layer_scale, drop))
                made.append(Step(inner, width, config.layer_scale, drop))
            stages.append(nn.Sequential(*made))
            given = width
        self.stages = nn.Sequential(*stages)
        self.head = Pooled(BatchNorm(given), nn.Linear(given, classes))
        if spread is not None:
            self._start(spread)

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; ValueError: images of other channels than it was made for."""
        if images.shape[1] != self.channels:
            raise ValueError(
                f"FFNet: images must have {self.channels} channels, got {images.shape[1]}; make the net with "
                "channels="
            )
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        # The layout of images with one channel says nothing, so that the stem may lose it.
        return self.head(self.stages(x.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def _start(self, spread: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=spread)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def fused_parameters(model: nn.Module) -> int:
    """Parameters of the model for inference, in which branches and normalisations are gone."""
    return count_parameters(fuse(model))


SMALL_MIXERS: dict[str, Callable[[int, int], nn.Module]] = {
    "ffn": lambda width, kernel: ffn_mixer(width, (kernel, kernel)),
    "attention": lambda width, kernel: attention_mixer(width, max(1, width // 8)),
    "pooling": lambda width, kernel: pooling_mixer(width),
}


def small_ffnet(
    mixer: str = "ffn",
    *,
    width: int = 32,
    blocks: int = 4,
    kernel: int = 7,
    classes: int = 10,
    channels: int = 1,
) -> FFNet:
    """One stage of FFNet on the full map of small images, with one of three token mixers.

    mixer: "ffn", "attention" (heads of 8 columns) or "pooling" (3 x 3). The hidden width of the channel
    mixers, 3 width with "ffn", is chosen so that all three have the same number of parameters when fused, up
    to half a hidden unit per block. kernel: of the token mixer; FFNet has 7 on maps of 8 x 8 and 16 x 16.
    """
    if mixer not in SMALL_MIXERS:
        raise ValueError(f"small_ffnet: mixer must be one of {', '.join(SMALL_MIXERS)}, got {mixer!r}")

    def made(name: str, hidden: int) -> FFNet:
        # Half a unit more, so that rounding down gives `hidden` again.
        config = FFNetConfig(
            (blocks,), (width,), (3,), (kernel,), (hidden + 0.5) / width, stem=width // 2, strides=(1, 1)
        )
        return FFNet(config, classes=classes, channels=channels, token_mixer=SMALL_MIXERS[name], spread=None)

    with torch.device("meta"):
        wanted = fused_parameters(made("ffn", 3 * width))
    return made(mixer, equal_hidden(lambda hidden: made(mixer, hidden), wanted, fused_parameters))
