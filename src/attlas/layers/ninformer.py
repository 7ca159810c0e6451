"""A whole MLP-Mixer block as the gate of a linear map of the same tokens (NiNformer).

Shapes: B batch, N tokens (fixed when made), C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.mixers import MixerEntry, Setting, register_mixer

__all__ = ["FeedForward", "MixerBlock", "MixerGate", "NiNBlock", "TokenFeedForward"]


class FeedForward(nn.Module):
    """x -> drop(W_2 drop(GELU(W_1 x + b_1)) + b_2) over the last axis, of `width`, through `hidden`."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Every row on its own."""
        return self.drop(self.down(self.drop(functional.gelu(self.up(x)))))


class TokenFeedForward(FeedForward):
    """The same over the axis of the tokens, for each column: (B, N, C) -> (B, N, C), N = `tokens`.

    Two batched products with the tokens on the rows, W_1 x and W_2 h, so that nothing is transposed.
    """

    def __init__(self, tokens: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(tokens, hidden, dropout)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """ValueError: another number of tokens than it was made for."""
        made = self.up.in_features
        if x.shape[1] != made:
            raise ValueError(
                f"this mixer is made for {made} tokens, got {x.shape[1]}: its weights belong to positions; "
                "resize the input or make one for this number"
            )
        return self.drop(_along(self.down, self.drop(functional.gelu(_along(self.up, x)))))


def _along(linear: nn.Linear, x: Tensor) -> Tensor:
    """W x + b with the features of `linear` on axis 1 of x: one batched product."""
    weight = linear.weight.expand(len(x), -1, -1)
    return torch.baddbmm(linear.bias[:, None], weight, x)


class MixerBlock(nn.Module):
    """A block of MLP-Mixer: x + FF_tokens(LN x), then + FF_channels(LN of that). Source: arXiv 2105.01601.

    Args:
        width, tokens: C and N; hidden: inside of both; token_hidden: of that over the tokens, if another one.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        hidden: int,
        *,
        token_hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inside = hidden if token_hidden is None else token_hidden
        if min(width, tokens, hidden, inside) < 1:
            raise ValueError(
                "MixerBlock: width, tokens, hidden and token_hidden must be at least 1, got "
                f"{width}, {tokens}, {hidden} and {inside}"
            )
        self.before_tokens, self.before_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = TokenFeedForward(tokens, inside, dropout)
        self.channels = FeedForward(width, hidden, dropout)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Both residual steps."""
        x = x + self.tokens(self.before_tokens(x))
        return x + self.channels(self.before_channels(x))


class MixerGate(nn.Module):
    """u -> (W u + b) * MixerBlock(u), element by element; the gate is neither squashed nor stripped of u.

    Args: as of `MixerBlock`.

    Shapes: (B, N, width) -> the same, N fixed. Cost: O(N t C + N C c) for hidden widths t and c.
    Source: arXiv 2403.02411, Abdullah-88/NiNformer ninformer.py.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        hidden: int,
        *,
        token_hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gate = MixerBlock(width, tokens, hidden, token_hidden=token_hidden, dropout=dropout)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """All tokens at once."""
        return self.linear(x) * self.gate(x)


class NiNBlock(nn.Module):
    """x -> x + MixerGate(LN x), then + FF(LN of that); both LN are one module, with one set of weights.

    Args: as of `MixerBlock`; the official code has one hidden width for all three feed-forward parts.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        hidden: int,
        *,
        token_hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = MixerGate(width, tokens, hidden, token_hidden=token_hidden, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Both residual steps; ValueError: another width than it was made for."""
        width = self.norm.normalized_shape[0]
        if x.shape[-1] != width:
            raise ValueError(f"NiNBlock: x must have the width {width} it was made for, got {x.shape[-1]}")
        x = x + self.mixer(self.norm(x))
        return x + self.feed_forward(self.norm(x))


def _of_length(setting: Setting) -> nn.Module:
    return MixerGate(setting.width, setting.fixed_length, 2 * setting.width)


register_mixer(
    MixerEntry(
        "ninformer",
        _of_length,
        frozenset({"NS"}),
        tokens="length",
        why_not="its weights belong to the positions of one sequence of fixed length, all seen at once",
    )
)
