"""Attention over two hops: from the queries through a few middle tokens to the keys."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from attlas.attend.core import attend
from attlas.score import Score

__all__ = ["via"]


def via(
    query: Float[Tensor, "B H N D"],
    middle: Float[Tensor, "B H A D"],
    key: Float[Tensor, "B G M D"],
    value: Float[Tensor, "B G M V"],
    *,
    onward: Score | None = None,
    **options: Any,
) -> Float[Tensor, "B H N V"]:
    """What the queries get from the keys through A middle tokens, which first gather and then hand out.

        out = attend(query, middle, attend(middle, key, value))

    `middle` are queries of the first hop and keys of the second (Agent Attention, arXiv 2312.08874, is this
    with pooled queries). options: of `attend`, such as `score` or `backend`, for both hops; onward: the
    score of the second hop, if another. A pattern between tokens of different kinds belongs to two calls of
    `attend`. Cost: 2 A (N + M) (D + V) FLOPs per head and batch row, never N x M.
    """
    refused = sorted({"pattern", "q_at", "k_at", "return_state", "return_edge", "extra"} & set(options))
    if refused:
        raise ValueError(
            f"via takes no {', '.join(refused)}: the hops differ in their tokens; call attend twice instead"
        )
    gathered = attend(middle, key, value, **options)
    if onward is not None:
        options["score"] = onward
    return attend(query, middle, gathered, **options)
