"""Small tasks for the four attention patterns of CAB (arXiv 2210.07661): masked bytes, sets, transduction."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["MASK", "SPELLING", "curves", "masked_bytes", "reversed_digits", "spelled_digits"]

MASK = 256
"""Stands for a masked byte."""
IGNORED = -100  # torch's label without a loss
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLING = 27
"""Symbols of spelled digits: a to z, then the space behind every word."""


def masked_bytes(
    windows: Iterator[Tensor], seed: int, share: float = 0.15
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) of byte windows (B, n): `share` of the bytes replaced by MASK, labels -100 elsewhere.

    At least one byte of every window is masked.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of masked bytes must be above 0 and at most 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    for ids in windows:
        drawn = torch.rand(ids.shape, generator=generator)
        hidden = (drawn < share) | (drawn == drawn.amin(1, keepdim=True))
        yield ids.masked_fill(hidden, MASK), ids.masked_fill(~hidden, IGNORED)


def curves(count: int, known: int, asked: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A function from a set of its points: endless (points (B, known, 2), places (B, asked, 1), values).

    y = a sin(2 pi f x + p), x in -1 .. 1, a in 0.5 .. 1, f in 0.25 .. 0.75 and p drawn anew for every row.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(columns: int, least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(count, columns, generator=generator)

    while True:
        height, rate, phase = draw(1, 0.5, 1.0), draw(1, 0.25, 0.75), draw(1, 0.0, 2 * math.pi)
        x = draw(known + asked, -1.0, 1.0)
        y = height * torch.sin(2 * math.pi * rate * x + phase)
        points = torch.stack([x, y], -1)
        yield points[:, :known], points[:, known:, :1], points[:, known:, 1:]


def reversed_digits(count: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (digits (B, length), the same from behind), 0 to 9."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        digits = torch.randint(0, 10, (count, length), generator=generator)
        yield digits, digits.flip(1)


def spelled_digits(count: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (digits (B, length), their words letter by letter (B, 6 length), -100 behind the end)."""
    letters = [[ord(letter) - ord("a") for letter in word] + [SPELLING - 1] for word in WORDS]
    longest = max(map(len, letters)) * length
    generator = torch.Generator().manual_seed(seed)
    while True:
        digits = torch.randint(0, 10, (count, length), generator=generator)
        rows = []
        for row in digits.tolist():
            spelled = [letter for digit in row for letter in letters[digit]]
            rows.append(spelled + [IGNORED] * (longest - len(spelled)))
        yield digits, torch.tensor(rows)
