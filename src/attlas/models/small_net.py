"""The small network that comparisons of token mixers train: everything beside the mixers stays the same."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers import Block

__all__ = ["LastToken", "LearnedPositions", "MeanToken", "SmallNet"]


class SmallNet(nn.Module):
    """embedding -> pre-norm RMSNorm blocks with a GELU MLP -> RMSNorm -> head.

    Args:
        embedding: the input -> (B, N, width).
        mixers: one token mixer per block, (B, N, width) -> (B, N, width), made while they are taken.
        head: makes what maps (B, N, width) to the output: a linear layer for an answer at every token,
            `nn.Sequential(LastToken(), ...)` or `MeanToken()` for one answer.
        inner: hidden width of every MLP; 4 width unless given.

    Source: the reference model of this library's claims and comparisons, of no paper.
    """

    def __init__(
        self,
        embedding: nn.Module,
        mixers: Iterable[nn.Module],
        head: Callable[[], nn.Module],
        *,
        width: int,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        norm = partial(nn.RMSNorm, eps=1e-6)
        # Half a unit more, so that rounding down gives `inner` again.
        ratio = 4.0 if inner is None else (inner + 0.5) / width
        self.blocks = nn.ModuleList(
            Block(width, mixer, ratio=ratio, norm=norm, bias=False) for mixer in mixers
        )
        self.norm = norm(width)
        self.head = head()

    def forward(self, inputs: Tensor, where: Bool[Tensor, "B N"] | None = None) -> Tensor:
        """The head's output; `where`: at these tokens alone, (tokens, ...), which saves the others' cost."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x if where is None else x[where]))


class LearnedPositions(nn.Module):
    """x + a learned vector per position, (B, N, width) with N up to `length`; standard deviation 0.02."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """ValueError: more tokens than positions."""
        if x.shape[1] > len(self.places):
            raise ValueError(f"positions were made for {len(self.places)} tokens, got {x.shape[1]}")
        return x + self.places[: x.shape[1]]


class LastToken(nn.Module):
    """(B, N, C) -> (B, C): the last token, which has seen all others in a causal network."""

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """The last of every row."""
        return x[:, -1]


class MeanToken(nn.Module):
    """(B, N, C) -> (B, C): the mean over tokens."""

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """The mean of every row."""
        return x.mean(1)
