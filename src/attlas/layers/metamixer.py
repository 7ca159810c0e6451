"""The query-key-value scheme with every part exchangeable, and attention as depthwise convolutions.

Shapes: (B, C, Y, X) maps of C channels, in channels-last memory; H heads, N = Y X tokens, D head width.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import Normaliser, Softmax, attend
from attlas.layers.fuse import BatchNorm, ConvBN, RepDepthwise
from attlas.layers.inputs import check_grid
from attlas.layers.mixers import MixerEntry, Setting, register_mixer

__all__ = [
    "ChannelMixer",
    "DynamicKeys",
    "DynamicValues",
    "GridMixer",
    "Logits",
    "MeanAround",
    "MetaMixer",
    "Normalised",
    "Static",
    "attention_mixer",
    "depthwise",
    "ffn_mixer",
    "pooling_mixer",
]

REPARAMETERISED = 7  # the kernel size that trains with a second branch of 3 x 3


class MetaMixer(nn.Module):
    """x -> value(activation(key(query(x), x)), x).

    query: a map of x; key, value: interactions, called with what came before and x; activation: in between.
    Static interactions ignore x (`Static`); attention is the choice `DynamicKeys`, a normaliser over the keys
    (`Normalised`), `DynamicValues`. See `ffn_mixer`, `attention_mixer`, `pooling_mixer`.

    Shapes: (B, C, Y, X) -> the same. Source: arXiv 2406.02021.
    """

    def __init__(self, query: nn.Module, key: nn.Module, activation: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.activation, self.value = query, key, activation, value

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The mixed map."""
        return self.value(self.activation(self.key(self.query(x), x)), x)


class Static(nn.Module):
    """An interaction with weights that no input changes: `mix(found)`, whatever x is."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, found: Tensor, x: Tensor) -> Tensor:
        """The mixed map."""
        out: Tensor = self.mix(found)
        return out


@dataclass(frozen=True)
class Logits:
    """q_i . k_j / sqrt D of all pairs, not yet computed: `attend` never holds them all."""

    query: Float[Tensor, "B H N D"]
    key: Float[Tensor, "B H N D"]
    normaliser: Normaliser | None = None


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, C, Y, X) -> (B, H, N, D), a view of a channels-last map."""
    return x.flatten(2).unflatten(1, (heads, -1)).mT


class DynamicKeys(nn.Module):
    """The key interaction of attention: queries meet keys made of x by `project`."""

    def __init__(self, project: nn.Module, heads: int) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"DynamicKeys: heads must be at least 1, got {heads}")
        self.project, self.heads = project, heads

    def forward(self, query: Float[Tensor, "B C Y X"], x: Float[Tensor, "B C Y X"]) -> Logits:
        """The logits of all pairs, for a normaliser; ValueError: channels that heads do not divide."""
        if query.shape[1] % self.heads:
            raise ValueError(
                f"DynamicKeys: channels must be a multiple of heads, got {query.shape[1]} and {self.heads}"
            )
        return Logits(_heads(query, self.heads), _heads(self.project(x), self.heads))


class Normalised(nn.Module):
    """The activation of attention: any of `attlas.attend`'s normalisers over the keys of each query."""

    def __init__(self, normaliser: Normaliser) -> None:
        super().__init__()
        self.normaliser = normaliser

    def forward(self, logits: Logits) -> Logits:
        """The weights, not yet computed either."""
        return replace(logits, normaliser=self.normaliser)


class DynamicValues(nn.Module):
    """The value interaction of attention: weighted sums of values made of x by `project`, then `out`."""

    def __init__(self, project: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.project, self.out = project, out

    def forward(self, weights: Logits, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The attended map; TypeError where the logits were not normalised."""
        if weights.normaliser is None:
            raise TypeError("DynamicValues needs weights: put Normalised(...) between it and DynamicKeys")
        value = _heads(self.project(x), weights.query.shape[1])
        found = attend(weights.query, weights.key, value, normaliser=weights.normaliser)
        joined = torch.as_tensor(found).transpose(1, 2).flatten(2)
        attended: Tensor = self.out(joined.mT.unflatten(2, x.shape[2:]))
        return attended


class MeanAround(nn.Module):
    """Mean of the kernel x kernel pixels around each one, of those that there are, minus the pixel itself."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"MeanAround: kernel must be odd and at least 1, got {kernel}")
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The difference, which a residual step adds to the pixel."""
        pooled = functional.avg_pool2d(x, self.kernel, 1, self.kernel // 2, count_include_pad=False)
        return pooled - x


def depthwise(width: int, kernel: int) -> nn.Module:
    """A depthwise interaction: with two normalised branches at kernel 7, else one convolution with bias."""
    if kernel == REPARAMETERISED:
        return RepDepthwise(width, kernel=kernel)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"depthwise: kernel must be odd and at least 1, got {kernel}")
    return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)


def ffn_mixer(width: int, kernels: tuple[int, int] = (7, 7)) -> MetaMixer:
    """FFNified attention: DW_value(GELU(DW_key(BN(W_q x)))), keys and values static depthwise kernels.

    kernels: of the key and the value interaction. Receptive field: their sum less one on a side.
    Cost: C^2 + (k1^2 + k2^2) C multiply-adds per pixel, fused. Source: arXiv 2406.02021.
    """
    key, value = (Static(depthwise(width, kernel)) for kernel in kernels)
    return MetaMixer(ConvBN(width, width), key, nn.GELU(), value)


def attention_mixer(width: int, heads: int, normaliser: Normaliser | None = None) -> MetaMixer:
    """Self-attention over all pixels in the same scheme: query, keys and values BN(W x), then W_o with bias.

    Cost: 4 C^2 + 2 N C multiply-adds per pixel, fused. ValueError for a width that heads do not divide.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"attention_mixer: width must be a multiple of heads, got {width} and {heads}")
    query, key, value = (ConvBN(width, width) for _ in range(3))
    return MetaMixer(
        query,
        DynamicKeys(key, heads),
        Normalised(Softmax() if normaliser is None else normaliser),
        DynamicValues(value, nn.Conv2d(width, width, 1)),
    )


def pooling_mixer(width: int, kernel: int = 3) -> MetaMixer:
    """Average pooling in the same scheme: of the normalised map the mean around each pixel, less the pixel.

    No weights but the normalisation's. Source: PoolFormer, arXiv 2111.11418 (there a group normalisation).
    """
    return MetaMixer(BatchNorm(width), Static(MeanAround(kernel)), nn.Identity(), Static(nn.Identity()))


class ChannelMixer(nn.Module):
    """W_2 GELU(W_1 DW(x)), `hidden` channels inside; DW normalised, re-parameterised at kernel 7."""

    def __init__(self, width: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        local: nn.Module = ConvBN(width, width, kernel, groups=width)
        self.local = RepDepthwise(width, kernel=kernel) if kernel == REPARAMETERISED else local
        self.up, self.down = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The mixed channels."""
        return self.down(functional.gelu(self.up(self.local(x))))


class GridMixer(nn.Module):
    """A mixer of maps (B, C, Y, X) as one of the tokens of a grid, (B, Y X, C), row-major."""

    def __init__(self, mixer: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.mixer, self.grid = mixer, grid

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """ValueError: another number of tokens than the grid's."""
        check_grid("the mixer", x, self.grid)
        return self.mixer(x.mT.unflatten(2, self.grid)).flatten(2).mT


def _on_grid(setting: Setting) -> nn.Module:
    return GridMixer(ffn_mixer(setting.width), setting.fixed_grid)


register_mixer(
    MixerEntry(
        "metamixer",
        _on_grid,
        frozenset({"NS"}),
        tokens="grid",
        local=True,
        shares=True,
        why_not="its kernels reach to all sides of a pixel on the image of one sequence",
    )
)
