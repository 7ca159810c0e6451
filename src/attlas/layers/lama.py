"""LAMA: a sequence pooled by m attention distributions of a low-rank bilinear form with one context vector.

Source: Mehta et al. 2019, arXiv 1912.00835. Legend: B batch, N tokens, D their width, m heads.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.attend import attend
from attlas.layers.inputs import check_tokens
from attlas.pattern import Tokens
from attlas.score import Given

__all__ = ["LAMA", "lama_logits", "masked_mean", "star", "word_importance"]


def lama_logits(
    hidden: Float[Tensor, "B N D"],
    context: Float[Tensor, "*B D"],
    p: Float[Tensor, "D m"],
    q: Float[Tensor, "D m"],
) -> Float[Tensor, "B m N"]:
    """Every head's affinity of the context to every token, limited, and of length 1 over the heads.

        f_r(t) = c^T p_r q_r^T h_t,   e(t) = tanh f(t),   e(t) <- e(t) / |e(t)|_2 over the m heads

    context: (D,), or one for each row (B, D). A token whose m affinities are all 0 has the logits 0, and the
    gradient of its affinities before the length. One head alone is not divided by its length: all its logits
    would be 1 or -1. Logits lie in [-1, 1], so that no token gets more than e^2 times the weight of another.
    In float32 for lower precisions, the products too. Cost: 2 B N D m FLOPs.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    hidden, context, p, q = (part.to(wide) for part in (hidden, context, p, q))
    limited = torch.tanh((context @ p)[..., None, :] * (hidden @ q))
    if limited.shape[-1] > 1:
        # By a power of two first: squares of tiny affinities would be 0, and nothing else is rounded by it.
        largest = limited.detach().abs().amax(-1, keepdim=True)
        limited = limited / torch.where(largest > 0, largest / largest.frexp().mantissa, 1.0)
        square = limited.square().sum(-1, keepdim=True)
        limited = limited * torch.where(square > 0, square, 1.0).rsqrt()
    return limited.transpose(-1, -2)


def star(
    logits: Float[Tensor, "B m N"],
    hidden: Float[Tensor, "B N D"],
    *,
    valid: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B m D"]:
    """sum_t softmax_t(logits_r) h_t: one node that receives from all tokens, by m kinds of edges.

    An `attend` of one query with given logits. A row without valid tokens gives 0. ValueError: no rows or
    no tokens.
    """
    check_tokens("star", hidden=hidden)
    count = hidden.shape[1]
    nobody = hidden.new_zeros(1, logits.shape[1], 1, 1)
    sender = hidden.new_zeros(1, 1, 1, 1).expand(len(hidden), 1, count, 1)
    score = Given(logits[:, :, None].to(torch.promote_types(hidden.dtype, torch.float32)))
    there = Tokens(count, total=count, valid=valid)
    found = attend(nobody.expand(len(hidden), -1, -1, -1), sender, hidden[:, None], score=score, k_at=there)
    return torch.as_tensor(found)[:, :, 0]


def masked_mean(
    hidden: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B D"]:
    """The mean of the valid tokens, 0 of none."""
    if valid is None:
        return hidden.mean(1)
    kept = hidden.masked_fill(~valid[..., None], 0.0)
    return kept.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)


def word_importance(
    logits: Float[Tensor, "B m N"], valid: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B N"]:
    """The mean over the heads of a_r(t) = softmax_t, to show: rows sum to 1, those of padding alone to 0."""
    if valid is None:
        return logits.softmax(-1).mean(1)
    absent = ~valid[:, None]
    weights = logits.masked_fill(absent, -torch.finfo(logits.dtype).max).softmax(-1).masked_fill(absent, 0.0)
    return weights.mean(1)


class LAMA(nn.Module):
    """(B, N, D) -> (B, m, D): m attention distributions over the tokens, each head's mean side by side.

        A = softmax over the tokens of `lama_logits`,   M = A H

    Args:
        width, heads: D and m.
        context: "learned": one vector for all inputs, D more parameters ("LAMA"); "mean": of the valid tokens
            of each ("LAMA+ctx").

    2 D m parameters for P and Q, which start as linear layers do; a learned context starts from N(0, 1). The
    full form would need D^2 m, an attention block 4 D^2. Cost: O(N D m), linear in N; no N x N.
    Raises ValueError for no rows or tokens, fewer than one head, or another context.
    """

    def __init__(self, width: int, heads: int, *, context: str = "learned") -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"LAMA: heads must be at least 1, got {heads}")
        if context not in ("learned", "mean"):
            raise ValueError(f"LAMA: context must be 'learned' or 'mean', got {context!r}")
        self.heads = heads
        self.p, self.q = (nn.Linear(width, heads, bias=False) for _ in range(2))
        self.context = nn.Parameter(torch.randn(width)) if context == "learned" else None

    def logits(
        self, hidden: Float[Tensor, "B N D"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B m N"]:
        """What `star` and `word_importance` take."""
        check_tokens("LAMA", hidden=hidden)
        context = masked_mean(hidden, valid) if self.context is None else self.context
        return lama_logits(_real(hidden, valid), context, self.p.weight.mT, self.q.weight.mT)

    def forward(
        self, hidden: Float[Tensor, "B N D"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B m D"]:
        """`valid` False marks padding."""
        return star(self.logits(hidden, valid=valid), _real(hidden, valid), valid=valid)


def _real(hidden: Tensor, valid: Tensor | None) -> Tensor:
    """Padding may hold anything, and nothing times NaN is NaN."""
    return hidden if valid is None else hidden.masked_fill(~valid[..., None], 0.0)
