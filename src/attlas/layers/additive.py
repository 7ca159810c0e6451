"""Additive attention over a sentence: a score per token, one softmax, one weighted sum.

Legend: B sentences, N tokens, C channels, A hidden width of the score.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["AdditiveScore", "attention_pool", "token_weights"]


class AdditiveScore(nn.Module):
    """a_t = w2^T tanh(W1 h_t + b1), with a query vector q: w2^T tanh(W1 h_t + b1 + W_q q + b_q).

    Args:
        width: C of the tokens; `hidden`: A; `query`: width of the query vector, 0 for none.

    Shapes: (B, N, C) -> (B, N). Cost: 2 A (C + 1) FLOPs a token. Source: Bahdanau et al. 2014, arXiv
    1409.0473, in the form of arXiv 2009.12064.
    """

    def __init__(self, width: int, hidden: int, *, query: int = 0) -> None:
        super().__init__()
        for name, number, least in (("width", width, 1), ("hidden", hidden, 1), ("query", query, 0)):
            if number < least:
                raise ValueError(f"AdditiveScore: {name} must be at least {least}, got {number}")
        self.token = nn.Linear(width, hidden)
        self.query = nn.Linear(query, hidden) if query else None
        self.out = nn.Linear(hidden, 1, bias=False)

    def forward(
        self, hidden: Float[Tensor, "B N C"], query: Float[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B N"]:
        """The scores; ValueError where a query is missing or not expected."""
        if (query is None) != (self.query is None):
            wanted = "none" if self.query is None else f"one of width {self.query.in_features}"
            raise ValueError(
                f"AdditiveScore: query must be {wanted}, got {'none' if query is None else 'one'}; "
                "AdditiveScore(query=width) makes a score with a query"
            )
        inner = self.token(hidden)
        if self.query is not None:
            inner = inner + self.query(query)[:, None]
        return self.out(inner.tanh())[..., 0]


def token_weights(
    scores: Float[Tensor, "*B N"], valid: Bool[Tensor, "*B N"] | None = None
) -> Float[Tensor, "*B N"]:
    """softmax over the valid tokens, exactly 0 elsewhere; all 0 where no token is valid."""
    if valid is None:
        return scores.softmax(-1)
    empty = ~valid.any(-1, keepdim=True)
    logits = scores.masked_fill(~valid, -float("inf")).masked_fill(empty, 0.0)
    return logits.softmax(-1).masked_fill(~valid, 0.0)


def attention_pool(
    weights: Float[Tensor, "B N"], hidden: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B C"]:
    """sum_t w_t h_t over the valid tokens, whatever stands in the others."""
    kept = hidden if valid is None else hidden.masked_fill(~valid[..., None], 0.0)
    return torch.einsum("bn,bnc->bc", weights, kept)
