"""Rotary positions (arXiv 2104.09864)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["rotary", "rotary_pairs"]


def rotary(
    x: Float[Tensor, "*batch n d"],
    positions: Int[Tensor, "*places n"],
    *,
    base: float = 10000.0,
    factor: float = 1.0,
) -> Float[Tensor, "*batch n d"]:
    """Rotate pairs of columns c and c + d/2 of token i by positions_i / factor * base^(-2c/d), c < d/2.

    positions: of all rows, or axes in front that broadcast to those of x, as (B, 1, n) for (B, H, n, d).
    q_i . k_j of rotated rows depends on positions through i - j only. factor above 1 is linear position
    interpolation (arXiv 2306.15595): the new length over the trained one. Angles are float32 (float64 for
    float64). Raises ValueError for an odd width or a factor that is not positive. Cost: O(n d).
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rotary needs an even width, got {width}")
    if not factor > 0:
        raise ValueError(f"rotary factor must be above 0 (new length / trained length), got {factor}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rates = base ** (-torch.arange(0, width, 2, dtype=wide, device=x.device) / width)
    angle = positions.to(wide)[..., None] / factor * rates
    cos, sin = angle.cos(), angle.sin()
    low, high = x.to(wide).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


def rotary_pairs(
    x: Float[Tensor, "*batch n d"], positions: Int[Tensor, "n"], *, base: float = 10000.0
) -> Float[Tensor, "*batch n d"]:
    """The same with pairs of neighbouring columns 2c and 2c + 1, as in the paper."""
    halves = x.unflatten(-1, (-1, 2)).mT.flatten(-2)
    return rotary(halves, positions, base=base).unflatten(-1, (2, -1)).mT.flatten(-2)
