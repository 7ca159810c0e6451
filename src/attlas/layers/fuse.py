"""Convolutions with batch normalisation and with several branches, and the one that each is at inference.

Shapes: (B, C, Y, X) maps, channels-last in memory where it matters; weights (O, I / groups, k, k).
"""

import copy
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BatchNorm",
    "ConvBN",
    "Fusable",
    "NormedStep",
    "RepDepthwise",
    "add_branch",
    "add_identity",
    "fold_after",
    "fold_before",
    "fuse",
]

Linear = TypeVar("Linear", nn.Conv2d, nn.Linear)
Module = TypeVar("Module", bound=nn.Module)


class Fusable(nn.Module, ABC):
    """A module that evaluates to a simpler one once its running statistics stand."""

    @abstractmethod
    def fused(self) -> nn.Module:
        """A new module with the same outputs in evaluation mode; this one stays as it is."""


def fuse(model: Module) -> Module:
    """A copy of `model` for inference: every `Fusable` in it is replaced by what it evaluates to.

    The copy is in evaluation mode and equals the original there, up to rounding. Its convolutions' weights
    are channels-last in memory, which is what the CPU's depthwise kernels want. Training it is training
    another model: nothing is normalised any more.
    """
    made = _fused(copy.deepcopy(model)).eval()
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fused(module: nn.Module) -> nn.Module:
    if isinstance(module, Fusable):
        return module.fused()
    for name, child in list(module.named_children()):
        setattr(module, name, _fused(child))
    return module


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(factor, shift) per channel of a batch normalisation in evaluation mode, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "a batch normalisation without running statistics is no fixed map: it cannot be folded"
        )
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.double()


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def _made(layer: Linear, weight: Tensor, bias: Tensor) -> Linear:
    """A copy of the layer with this weight and this bias, in the layer's own type."""
    made = copy.copy(layer)
    # A module's parameters live in a dictionary that a shallow copy shares.
    made._parameters = {}
    like = layer.weight
    made.register_parameter("weight", nn.Parameter(weight.detach().to(like)))
    made.register_parameter("bias", nn.Parameter(bias.detach().to(like)))
    return made


def _pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1 and not any(map(int, layer.padding))


def fold_after(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """norm(layer(x)) as one convolution: weights and bias are scaled, the shift is added."""
    factor, shift = _affine(norm)
    weight = layer.weight.double() * factor.view(-1, 1, 1, 1)
    return _made(layer, weight, _bias(layer).double() * factor + shift)


def fold_before(norm: nn.BatchNorm2d, layer: Linear) -> Linear:
    """layer(norm(x)) as one layer: the shift passes through the weights, bias + W shift.

    For a 1 x 1 convolution without groups and for a linear layer (also behind a mean over the map).
    ValueError for any other: behind padding the shift would be missing at the borders.
    """
    if isinstance(layer, nn.Conv2d) and not _pointwise(layer):
        raise ValueError(
            "a normalisation before a convolution folds into a 1 x 1 one without padding and groups alone: "
            f"zeros around the map are not normalised; got {layer}"
        )
    factor, shift = _affine(norm)
    weight = layer.weight.double()
    bias = _bias(layer).double() + weight.flatten(1) @ shift
    return _made(layer, weight * factor.view(1, -1, *(1,) * (weight.dim() - 2)), bias)


def add_branch(large: nn.Conv2d, small: nn.Conv2d) -> nn.Conv2d:
    """large(x) + small(x) as one convolution: the small kernel is padded with zeros to the large one.

    ValueError unless both have odd kernels, "same" padding, and stride and groups in common.
    """
    sides = (large.kernel_size[0] - small.kernel_size[0], large.kernel_size[1] - small.kernel_size[1])
    alike = ("stride", "groups", "dilation", "in_channels", "out_channels")
    differ = any(getattr(large, name) != getattr(small, name) for name in alike)
    if min(sides) < 0 or differ or not (_centred(large) and _centred(small)):
        raise ValueError(
            "branches add up to one convolution if the first has the larger kernel, both kernels are odd and "
            "padded by half of them, and stride, groups and channels are the same; got "
            f"{large} and {small}"
        )
    rows, columns = (side // 2 for side in sides)
    added = functional.pad(small.weight.double(), (columns, columns, rows, rows))
    return _made(large, large.weight.double() + added, _bias(large).double() + _bias(small).double())


def _centred(layer: nn.Conv2d) -> bool:
    kernel = layer.kernel_size
    return all(k % 2 for k in kernel) and layer.padding == (kernel[0] // 2, kernel[1] // 2)


def add_identity(layer: nn.Conv2d) -> nn.Conv2d:
    """x + layer(x) of a 1 x 1 convolution without groups as one: the identity is added to its weights."""
    if not _pointwise(layer) or layer.in_channels != layer.out_channels:
        raise ValueError(
            f"x + layer(x) is one convolution of a 1 x 1 one with as many channels out as in, got {layer}"
        )
    weight = layer.weight.double()
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)[..., None, None]
    return _made(layer, weight + identity, _bias(layer))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose gradients are right for a single image in any memory layout.

    torch 2.13 on the CPU misreads a gradient (1, C, Y, X) that is channels-last but for the stride of its
    batch axis, as views of one image are: values of other pixels, without an error.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, Y, X) -> the same."""
        out = super().forward(_plain(input))
        if out.requires_grad:
            # None: the output was not used.
            out.register_hook(lambda gradient: None if gradient is None else _plain(gradient))
        return out


def _plain(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.channels_last) if len(x) == 1 else x


class ConvBN(Fusable):
    """norm(conv(x)): a convolution without bias, padded by half its kernel; fused: one with bias.

    Shapes: (B, channels, Y, X) -> (B, width, ceil(Y / stride), ceil(X / stride)) for odd kernels.
    """

    def __init__(
        self, channels: int, width: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = BatchNorm(width)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D Yo Xo"]:
        """The normalised map."""
        return self.norm(self.conv(x))

    def fused(self) -> nn.Conv2d:
        """One convolution with bias."""
        return fold_after(self.conv, self.norm)


class RepDepthwise(Fusable):
    """BN(DW_kernel(x)) + BN(DW_small(x)), depthwise; fused: one kernel x kernel convolution with bias.

    width: a multiple of channels (each input channel then has width / channels filters).
    Source: RepVGG, arXiv 2101.03697; as in FFNet, arXiv 2406.02021, kernels 7 and 3.
    """

    def __init__(
        self, channels: int, width: int | None = None, *, kernel: int = 7, small: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        width = channels if width is None else width
        odd = small > 0 and kernel % 2 and small % 2
        if kernel <= small or not odd or channels < 1 or width % channels:
            raise ValueError(
                "RepDepthwise: kernel and small must be odd and positive, kernel the larger, "
                f"and width a multiple of channels, got {kernel}, {small}, {width} and {channels}"
            )
        self.large, self.small = (
            ConvBN(channels, width, size, stride=stride, groups=channels) for size in (kernel, small)
        )

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D Yo Xo"]:
        """The sum of both branches."""
        return self.large(x) + self.small(x)

    def fused(self) -> nn.Conv2d:
        """One depthwise convolution with bias."""
        return add_branch(self.large.fused(), self.small.fused())


class NormedStep(Fusable):
    """x + conv(BN(x)), 1 x 1 and without bias; fused: one 1 x 1 convolution with bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        """The residual step."""
        return x + self.conv(self.norm(x))

    def fused(self) -> nn.Conv2d:
        """One convolution with bias."""
        return add_identity(fold_before(self.norm, self.conv))
