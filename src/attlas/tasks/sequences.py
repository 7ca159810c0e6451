"""Small sequence tasks for token mixers: copying, induction, a hidden key in text, digits pixel by pixel.

Each draws (inputs, labels): labels (B, N) hold the answer at the place where it is to be given and `UNASKED`
elsewhere, or are one per sequence, (B,). Legend: B sequences, N length.
"""

import torch
from torch import Tensor

from attlas.tasks.images import digits_on_canvas
from attlas.tasks.mqar import UNASKED

__all__ = ["ASK_KEY", "PASSKEY_VOCABULARY", "SHOW_KEY", "copying", "digit_tokens", "induction", "passkey"]

SHOW_KEY, ASK_KEY, PASSKEY_VOCABULARY = 256, 257, 258
"""Tokens beside the 256 bytes: "the key follows" and "say the key"."""
LEVELS = 17  # grey values of scikit-learn's digits, 0 to 16


def copying(count: int, length: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random symbols, a sign to begin, and the symbols again: each is the answer at the place before it.

    Tokens: 0 is the sign, symbols are 1 .. `symbols`; (length - 1) / 2 of them are copied, so that `length`
    must be odd (ValueError). The first of them is asked for at the sign.
    """
    if length < 3 or length % 2 == 0:
        raise ValueError(f"copying: length must be odd and at least 3 (symbols, sign, symbols), got {length}")
    if symbols < 2:
        raise ValueError(f"copying: symbols must be at least 2, got {symbols}")
    half = length // 2
    drawn = torch.randint(1, symbols + 1, (count, half), generator=generator)
    inputs = torch.cat([drawn, drawn.new_zeros(count, 1), drawn], 1)
    labels = torch.full_like(inputs, UNASKED)
    labels[:, half:-1] = drawn
    return inputs, labels


def induction(count: int, length: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random symbols with one token that stands twice, the second time at the end: what followed the first?

    The special token is 0 and its place is uniform over 0 .. N - 3; all others are 1 .. `symbols`. ValueError
    for a length below 3. Source: the induction head of Olsson et al. 2022, arXiv 2209.11895, as the
    synthetic task of Fu et al. 2022 (H3), arXiv 2212.14052.
    """
    if length < 3 or symbols < 2:
        raise ValueError(f"induction: length must be at least 3 and symbols 2, got {length} and {symbols}")
    inputs = torch.randint(1, symbols + 1, (count, length), generator=generator)
    place = torch.randint(0, length - 2, (count, 1), generator=generator)
    inputs.scatter_(1, place, 0)
    inputs[:, -1] = 0
    labels = torch.full_like(inputs, UNASKED)
    labels[:, -1] = inputs.gather(1, place + 1).squeeze(1)
    return inputs, labels


def passkey(
    text: Tensor, count: int, length: int, digits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A number hidden in windows of a text (bytes), asked for at the end, digit by digit.

    SHOW_KEY and the `digits` digits replace text at a random place; the window ends with ASK_KEY and all
    digits but the last, each the answer at the place before it. ValueError: a length or a text too short.
    Source: the pass-key retrieval of Mohtashami and Jaggi 2023, arXiv 2305.16300, with tokens of its own for
    its sentences and real text for its filler.
    """
    end = length - digits  # where ASK_KEY stands
    if digits < 1 or end < digits + 1:
        raise ValueError(
            f"passkey: a length of {length} has no room for a sign and {digits} digits, twice; give at least "
            f"{2 * digits + 1}"
        )
    if len(text) < length:
        raise ValueError(f"passkey: windows of {length} bytes do not fit in {len(text)} bytes of text")
    starts = torch.randint(0, len(text) - length + 1, (count, 1), generator=generator)
    inputs = text[starts + torch.arange(length)]
    key = torch.randint(ord("0"), ord("9") + 1, (count, digits), generator=generator)
    place = torch.randint(0, end - digits, (count, 1), generator=generator)
    inputs.scatter_(1, place, SHOW_KEY)
    inputs.scatter_(1, place + 1 + torch.arange(digits), key)
    inputs[:, end] = ASK_KEY
    inputs[:, end + 1 :] = key[:, :-1]
    labels = torch.full_like(inputs, UNASKED)
    labels[:, end:] = key
    return inputs, labels


def digit_tokens(seed: int, *, train: int, test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test) of handwritten digits as 64 tokens, row by row, of 17 grey values, with 10 labels.

    Source: UCI optical digits as shipped with scikit-learn (BSD); train and test never share a digit.
    """
    parts = digits_on_canvas(8, step=None, train=train, test=test, seed=seed)
    rounded = [((part.images * (LEVELS - 1)).round().long().flatten(1), part.labels) for part in parts]
    return rounded[0], rounded[1]
