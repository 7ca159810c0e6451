"""Performer: softmax attention by positive random features, at linear cost.

Source: Choromanski et al. 2020, arXiv 2009.14794, with the constants of CAB (arXiv 2210.07661). Legend:
B batch, H heads, N queries, M keys, D head width, F features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.inputs import check_tokens
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan.state import wide

__all__ = ["PerformerAttention", "orthogonal_directions", "performer", "positive_features"]

EPSILON = 1e-4  # added to every exponential feature
LEAST = 0.1  # denominators are at least this


def orthogonal_directions(heads: int, features: int, width: int) -> Float[Tensor, "H F D"]:
    """Directions whose blocks of `width` are orthogonal, with the lengths of Gaussian vectors.

    Each alone is Gaussian, so that features are unbiased. Drawn from torch's generator; float32.
    """
    blocks = -(-features // width)
    turned = torch.linalg.qr(torch.randn(heads, blocks, width, width))
    # Q as it comes leans to one side; with the signs of R's diagonal all rotations are equally likely.
    whole = (turned.Q * turned.R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).flatten(1, 2)[:, :features]
    return whole * torch.randn(heads, features, width).norm(dim=-1, keepdim=True)


def positive_features(
    x: Float[Tensor, "B H N D"],
    directions: Float[Tensor, "H F D"],
    *,
    keys: bool = False,
    valid: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N F"]:
    """phi(x) = (exp(w.y - |y|^2 / 2 - s) + 1e-4) / sqrt F, y = x / D^(1/4): phi(q).phi(k) ~ exp(q.k/sqrt D).

    s is the largest w.y: of each query's own features, or with `keys` of all valid tokens of a head, which
    is why a causal form would see the future. Features of tokens that are not valid are 0.
    """
    scaled = x.to(wide(x.dtype)) * x.shape[-1] ** -0.25
    along = scaled @ directions.to(scaled.dtype).transpose(-1, -2)
    if keys:
        seen = along if valid is None else along.masked_fill(~valid[:, None, :, None], -torch.inf)
        most = seen.amax((-1, -2), keepdim=True).clamp_min(torch.finfo(along.dtype).min)
    else:
        most = along.amax(-1, keepdim=True)
    exponent = along - scaled.square().sum(-1, keepdim=True) / 2 - most
    if valid is not None:
        # What stands in padding may be larger than the maximum of the rest.
        exponent = exponent.masked_fill(~valid[:, None, :, None], 0)
    found = (exponent.exp() + EPSILON) * directions.shape[1] ** -0.5
    return found if valid is None else found.masked_fill(~valid[:, None, :, None], 0)


def performer(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H M D"],
    value: Float[Tensor, "B H M E"],
    directions: Float[Tensor, "H F D"],
    *,
    valid: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B H N E"]:
    """out_i = phi(q_i) . sum_j phi(k_j) v_j^T / max(phi(q_i) . sum_j phi(k_j), 0.1).

    The clamp is CAB's: where it acts the weights sum to less than 1. valid: keys that are there.
    Cost: (N + M) F (D + E) multiplications a head.
    """
    asked = positive_features(query, directions)
    given = positive_features(key, directions, keys=True, valid=valid)
    kept = value.to(given.dtype)
    if valid is not None:
        kept = kept.masked_fill(~valid[:, None, :, None], 0)
    summed = asked @ (given.transpose(-1, -2) @ kept)
    total = asked @ given.sum(2)[..., None]
    return (summed / total.clamp_min(LEAST)).to(value.dtype)


class PerformerAttention(nn.Module):
    """x -> W_o of the heads' `performer` attention; not causal, across sequences with `context`.

    Args: width, heads; features: 16 in CAB; redraw: in training, Gaussian directions anew in every forward
    pass, from torch's generator, as in CAB; otherwise, and in evaluation, the orthogonal ones that the module
    keeps. bias: of the four projections.

    Shapes: (B, N, width) [, (B, M, width)] -> (B, N, width).
    """

    directions: Tensor

    def __init__(
        self, width: int, heads: int, *, features: int = 16, redraw: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or features < 1:
            raise ValueError(
                f"width must be a multiple of heads and features at least 1, got {width}, {heads} and "
                f"{features}"
            )
        self.heads, self.redraw = heads, redraw
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.register_buffer("directions", orthogonal_directions(heads, features, width // heads))

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        valid: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """`valid` False marks padding, of the context where there is one."""
        check_tokens("performer", rows=False, x=x, context=context)
        source = x if context is None else context
        made = (self.query(x), self.key(source), self.value(source))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        anew = self.training and self.redraw
        directions = torch.randn_like(self.directions) if anew else self.directions
        mixed = performer(query, key, value, directions, valid=valid)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _make(setting: Setting) -> nn.Module:
    return PerformerAttention(setting.width, setting.heads)


register_mixer(
    MixerEntry(
        "performer",
        _make,
        frozenset({"NS", "NC", "CC"}),
        padding=True,
        differentiable="almost",
        permutes=True,
        why_not=(
            "the exponents of keys are shifted by their maximum over the whole sequence, which the constants "
            "in features and denominator make visible: a causal form would see the future"
        ),
    )
)
