"""What pools a sequence to one vector, to compare with: the mean, additive attention, a self-attention block.

Legend: B batch, N tokens, D width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.attention import SelfAttention
from attlas.layers.lama import masked_mean, star

__all__ = ["AdditivePooling", "MeanPooling", "SelfAttentionPooling"]


class MeanPooling(nn.Module):
    """(B, N, D) -> (B, 1, D): the mean of the valid tokens."""

    def forward(
        self, hidden: Float[Tensor, "B N D"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B 1 D"]:
        """`valid` False marks padding."""
        return masked_mean(hidden, valid)[:, None]


class AdditivePooling(nn.Module):
    """(B, N, D) -> (B, 1, D): weights softmax_t( v . tanh(W h_t + b) ), D inner + 2 inner parameters.

    Source: Bahdanau et al. 2015, arXiv 1409.0473, with a learned query as in Yang et al. 2016 (HAN).
    """

    def __init__(self, width: int, inner: int | None = None) -> None:
        super().__init__()
        inner = width if inner is None else inner
        self.inner, self.asks = nn.Linear(width, inner), nn.Linear(inner, 1, bias=False)

    def forward(
        self, hidden: Float[Tensor, "B N D"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B 1 D"]:
        """`valid` False marks padding."""
        if valid is not None:
            hidden = hidden.masked_fill(~valid[..., None], 0.0)
        return star(self.asks(torch.tanh(self.inner(hidden))).mT, hidden, valid=valid)


class SelfAttentionPooling(nn.Module):
    """(B, N, D) -> (B, 1, D): multi-head self-attention (4 D^2), its residual and LayerNorm, then the mean.

    Source: Vaswani et al. 2017, arXiv 1706.03762. Cost: O(N^2 D).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm = SelfAttention(width, heads), nn.LayerNorm(width)

    def forward(
        self, hidden: Float[Tensor, "B N D"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B 1 D"]:
        """`valid` False marks padding."""
        if valid is not None:
            hidden = hidden.masked_fill(~valid[..., None], 0.0)
        return masked_mean(self.norm(hidden + self.attention(hidden, valid=valid)), valid)[:, None]
