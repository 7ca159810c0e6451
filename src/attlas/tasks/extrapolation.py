"""Length extrapolation: the loss on the same bytes with more and more of the text before them."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.tasks.bytes import ByteText

__all__ = ["endings", "losses_at_lengths"]

TOKENS = 8192
"""Tokens of a call of the model, about: longer contexts go in smaller batches."""


def endings(text: ByteText, longest: int, windows: int) -> Int[Tensor, "windows"]:
    """The last targets of `windows` windows of `longest` + 1 bytes, evenly spread over `text.test`.

    ValueError: a window that does not fit.
    """
    last = len(text.test) - 1
    if longest > last:
        raise ValueError(
            f"a context of {longest} bytes and its last target do not fit in {last + 1} held-out bytes; "
            "give shorter lengths or a text with more of them"
        )
    if windows < 1:
        raise ValueError(f"windows must be at least 1, got {windows}")
    return torch.linspace(longest, last, windows, dtype=torch.float64).round().to(torch.int64)


@torch.no_grad()
def losses_at_lengths(
    model: nn.Module, text: ByteText, lengths: Sequence[int], *, tail: int = 128, windows: int = 16
) -> dict[int, float]:
    """{length: nats per byte of the last `tail` bytes of every window}, of a model of next bytes.

    The bytes that count are the same at every length: only the context before them grows. `model(inputs,
    where)` gives the logits (tokens, vocabulary) at the places (B, length) that `where` marks, as
    `models.SmallLM` does; it is left in the mode that it was in. windows: of `text.test`, evenly spread.
    ValueError: no lengths, a length below `tail`, a window that does not fit. Cost: one forward of `windows`
    rows per length.
    """
    if not lengths or tail < 1 or min(lengths) < tail:
        raise ValueError(
            f"lengths must hold numbers of at least tail = {tail} (itself at least 1), got {list(lengths)}"
        )
    ends = endings(text, max(lengths), windows)
    was_training = model.training
    model.eval()
    try:
        return {length: _loss(model, text.test, ends, length, tail) for length in lengths}
    finally:
        model.train(was_training)


def _loss(model: nn.Module, ids: Tensor, ends: Tensor, length: int, tail: int) -> float:
    total = 0.0
    device = next((parameter.device for parameter in model.parameters()), ids.device)
    for some in ends.split(max(1, TOKENS // length)):
        rows = ids[some[:, None] + torch.arange(-length, 1)].to(device)
        where = torch.zeros(len(some), length, dtype=torch.bool, device=device)
        where[:, -tail:] = True
        logits = model(rows[:, :-1], where).float()
        total += float(functional.cross_entropy(logits, rows[:, -tail:].flatten(), reduction="sum"))
    return total / (len(ends) * tail)
