"""GAAM: entries of an axis weighted by a Gaussian of their own standardised values.

Source: Ioannides et al. 2024, arXiv 2401.11143; gioannides/Gaussian-Adaptive-Attention, GaussianBlock.py.
Legend: L entries of the axis, H heads, K Gaussians.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan.state import wide

__all__ = [
    "GAAM",
    "GaussianBlock",
    "collapsed",
    "gaussian_weights",
    "importance",
    "masked_moments",
    "released_weights",
]

EPSILON = 1e-8
SCALE = 2.0  # the paper's start
NARROWEST = 1e-6  # a scale nearer to 0 counts as this


def masked_moments(
    x: Float[Tensor, "*axes"], dim: int, valid: Bool[Tensor, "*axes"] | None = None
) -> tuple[Float[Tensor, "*one"], Float[Tensor, "*one"]]:
    """Mean and unbiased variance (n - 1) of the valid entries of an axis, which stays with length 1.

    Variance 0 of a single entry, mean 0 of none.
    """
    if valid is None:
        valid = torch.ones_like(x, dtype=torch.bool)
    count = valid.sum(dim, keepdim=True)
    mean = x.masked_fill(~valid, 0.0).sum(dim, keepdim=True) / count.clamp_min(1)
    square = (x - mean).masked_fill(~valid, 0.0).square().sum(dim, keepdim=True)
    return mean, square / (count - 1).clamp_min(1)


def collapsed(offset: Float[Tensor, "K"], scale: Float[Tensor, "K"]) -> tuple[Tensor, Tensor]:
    """(offset, scale) of the one Gaussian that K Gaussians of a common variance are, up to a factor.

    1 / c^2 = sum_k 1 / c_k^2, delta = c^2 sum_k delta_k / c_k^2: the product has no more modes than one. A
    scale nearer to 0 than 1e-6 counts as that, and gets no gradient.
    """
    precision = scale.square().clamp_min(NARROWEST**2).reciprocal()
    total = precision.sum()
    return (offset * precision).sum() / total, total.rsqrt()


def gaussian_weights(
    x: Float[Tensor, "*axes"],
    offset: Float[Tensor, "K"],
    scale: Float[Tensor, "K"],
    *,
    dim: int,
    valid: Bool[Tensor, "*axes"] | None = None,
    eps: float = EPSILON,
) -> Float[Tensor, "*axes"]:
    """w = softmax along `dim` of -sum_k (x - mean - delta_k)^2 / (2 c_k^2 (var + eps)); sums to 1.

    The normalised product of K Gaussians without its underflow; by `collapsed` at the cost of one, in float32
    at least. Entries that are not valid have weight 0, and an axis without any has no weight at all.
    """
    wide_x = x.to(wide(x.dtype))
    if valid is not None:
        wide_x = wide_x.masked_fill(~valid, 0.0)
    mean, variance = masked_moments(wide_x, dim, valid)
    delta, width = collapsed(offset.to(wide_x.dtype), scale.to(wide_x.dtype))
    logit = -(wide_x - mean - delta).square() / (2 * width.square() * (variance + eps))
    if valid is None:
        return logit.softmax(dim)
    # A finite floor: an axis without a valid entry would be 0 / 0.
    floor = torch.finfo(logit.dtype).min
    return logit.masked_fill(~valid, floor).softmax(dim).masked_fill(~valid, 0.0)


def released_weights(
    x: Float[Tensor, "*axes"],
    offset: Float[Tensor, "K"],
    scale: Float[Tensor, "K"],
    *,
    dim: int,
    valid: Bool[Tensor, "*axes"] | None = None,
    eps: float = EPSILON,
) -> Float[Tensor, "*axes"]:
    """The released form: the product of K densities over max(its sum, eps), multiplied out in the type of x.

    Padding counts in n, in the variance (as zeros) and in the sum. Where the sum stays below eps (a constant
    axis with an offset, a small scale) weights are nearly or exactly 0.
    """
    seen = x if valid is None else x.masked_fill(~valid, 0.0)
    mean = seen.mean(dim, keepdim=True)
    root = (seen.var(dim, keepdim=True) + eps).sqrt()
    product = torch.ones_like(x)
    for delta, width in zip(offset, scale, strict=True):
        y = (x - (mean + delta)) / root
        product = product * (
            (-y.square() / (2 * width.square())).exp() / (2 * math.pi * width.square()).sqrt()
        )
    return product / product.sum(dim, keepdim=True).clamp_min(eps)


def importance(weights: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """(w - min w) / (max w - min w), in [0, 1]; zeros where all weights are equal, NaN where one is.

    For the heat map of many samples give the mean of their weights. ValueError: there is no weight.
    """
    if not weights.numel():
        raise ValueError(
            f"importance: weights must have at least one entry, got shape {tuple(weights.shape)}"
        )
    low, high = weights.min(), weights.max()
    if bool(high == low):
        return torch.zeros_like(weights)
    return (weights - low) / (high - low)


class GAAM(nn.Module):
    """x -> x * w, with w of `gaussian_weights` along one axis, in H contiguous parts of it (the heads).

    Every head has K offsets (0 at the start) and K scales (2). The last head takes what is left of the axis.

    Args:
        heads; gaussians: K, which adds parameters and no expressive power (see `collapsed`, `collapse`).
        dim: the axis. eps: added to the variance.
        official: `released_weights`, scales that start at exp(N(0, 1)), and eps 1e-8 whatever is asked for:
            the released wrapper passes it in another argument's position.

    Shapes: any. Padding (`valid` False) passes through unchanged and counts nowhere; in the official form it
    stays in the sums, where NaN reaches real entries. ValueError where x has no such axis, or one shorter
    than the heads. Cost: O(elements).
    """

    def __init__(
        self, heads: int, *, gaussians: int = 1, dim: int = -1, eps: float = EPSILON, official: bool = False
    ) -> None:
        super().__init__()
        if heads < 1 or gaussians < 1:
            raise ValueError(f"GAAM: heads and gaussians must be at least 1, got {heads} and {gaussians}")
        self.dim, self.official, self.eps = dim, official, EPSILON if official else eps
        self.offset = nn.Parameter(torch.zeros(heads, gaussians))
        start = torch.randn(heads, gaussians).exp() if official else torch.full((heads, gaussians), SCALE)
        self.scale = nn.Parameter(start)

    @property
    def heads(self) -> int:
        """H."""
        return self.offset.shape[0]

    def weights(
        self, x: Float[Tensor, "*axes"], valid: Bool[Tensor, "*axes"] | None = None
    ) -> Float[Tensor, "*axes"]:
        """w, float32 at least; each head's part sums to 1 over its valid entries."""
        if not -x.dim() <= self.dim < x.dim():
            raise ValueError(
                f"GAAM: dim must be an axis of x, from {-x.dim()} to {x.dim() - 1}, got {self.dim} and x of "
                f"shape {tuple(x.shape)}"
            )
        length = x.shape[self.dim]
        if length < self.heads:
            raise ValueError(
                f"GAAM: axis {self.dim} must have at least one entry per head, got {length} entries for "
                f"{self.heads} heads"
            )
        size = length // self.heads
        sizes = [size] * (self.heads - 1) + [length - size * (self.heads - 1)]
        weigh = released_weights if self.official else gaussian_weights
        masks = [None] * self.heads if valid is None else list(valid.split(sizes, self.dim))
        parts = zip(x.split(sizes, self.dim), masks, self.offset, self.scale, strict=True)
        return torch.cat(
            [
                weigh(part, offset, scale, dim=self.dim, valid=mask, eps=self.eps)
                for part, mask, offset, scale in parts
            ],
            self.dim,
        )

    def forward(
        self, x: Float[Tensor, "*axes"], *, valid: Bool[Tensor, "*mask"] | None = None
    ) -> Float[Tensor, "*axes"]:
        """`valid`: of the shape of x, or of its first axes, such as (B, N) for x (B, N, C)."""
        if valid is None:
            return (x * self.weights(x)).to(x.dtype)
        mask = valid.reshape(*valid.shape, *(1,) * (x.dim() - valid.dim())).expand_as(x)
        # Padding, be it NaN, takes no part in products or their gradients.
        kept = x.masked_fill(~mask, 0.0)
        if self.official:
            # As released, its densities stay in the sum that divides all weights: NaN spreads from there.
            return torch.where(mask, kept * self.weights(x, mask), x)
        return torch.where(mask, (kept * self.weights(kept, mask)).to(x.dtype), x)

    @torch.no_grad()
    def collapse(self) -> "GAAM":
        """The same function with one Gaussian per head, for inference. ValueError for the official form."""
        if self.official:
            raise ValueError("GAAM: the official form's clamp depends on K; collapse the default form")
        one = GAAM(self.heads, dim=self.dim, eps=self.eps).to(self.offset)
        for head in range(self.heads):
            one.offset[head, 0], one.scale[head, 0] = collapsed(self.offset[head], self.scale[head])
        return one


class GaussianBlock(nn.Module):
    """x <- x + GAAM(x), once for every layer given, such as one for each axis."""

    def __init__(self, layers: Sequence[GAAM]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "*axes"], *, valid: Bool[Tensor, "*mask"] | None = None
    ) -> Float[Tensor, "*axes"]:
        """All layers in turn; padding passes through unchanged."""
        for layer in self.layers:
            step = x + layer(x, valid=valid)
            if valid is None:
                x = step
            else:
                x = torch.where(valid.reshape(*valid.shape, *(1,) * (x.dim() - valid.dim())), step, x)
        return x


def _make(setting: Setting) -> nn.Module:
    # Heads are parts of the axis, which do not see each other: of tokens there is one.
    return GAAM(1, gaussians=setting.heads, dim=1)


register_mixer(
    MixerEntry(
        "gaam",
        _make,
        frozenset({"NS"}),
        padding=True,
        permutes=True,
        # Where tokens are equal the variance is 0, and eps is all that is left below the square.
        differentiable="almost",
        why_not=(
            "weights are normalised by the mean and variance of the whole axis, which is that of its own "
            "sequence"
        ),
    )
)
