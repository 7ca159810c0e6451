"""Disjoint token ranges of one text for calibration, selection and test."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attlas._common.errors import UsageError

__all__ = ["REPEAT", "SHARES", "Passage", "Passages", "split_tokens", "tokenise", "without_repeats"]

# A run of this many tokens that stood in the text before is a repetition, not a phrase of the language.
REPEAT = 16
# Test gets the most: its contexts should differ from each other.
SHARES: Mapping[str, float] = {"calibration": 0.35, "selection": 0.15, "test": 0.5}


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens of the text, the first at `start`."""

    start: int
    ids: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True, eq=False)
class Passages:
    """The tokens [start, start + len(tokens)) of a text, of which passages are taken."""

    split: str
    start: int
    tokens: np.ndarray

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + len(self.tokens)

    def take(self, count: int, length: int, seed: int = 0) -> list[Passage]:
        """`count` passages of `length` tokens, spread evenly with jitter; they overlap only if they must.

        Raises UsageError if the range holds fewer than `length` tokens.
        """
        if count < 0 or length < 1:
            raise ValueError(f"count must be >= 0 and length >= 1, got count={count}, length={length}")
        spare = len(self.tokens) - length
        if spare < 0:
            raise UsageError(
                f"too little text: a {self.split} passage needs {length} tokens, its share of the text has "
                f"{len(self.tokens)}; give a longer text or shorter lengths"
            )
        draw = random.Random(f"{self.split}-{seed}-{length}")
        slot = (spare + length) / max(count, 1)
        jitter = max(slot - length, 0)
        starts = [min(int(index * slot + draw.random() * jitter), spare) for index in range(count)]
        if jitter == 0 and count > 1:
            starts = [round(index * spare / (count - 1)) for index in range(count)]
        draw.shuffle(starts)
        return [Passage(self.start + at, tuple(self.tokens[at : at + length].tolist())) for at in starts]


def tokenise(tokenizer: Any, text: str) -> np.ndarray:
    """Token ids of `text` without special tokens; text that looks like one ("<|im_end|>") stays text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    return np.asarray(ids, dtype=np.int64)


def without_repeats(tokens: np.ndarray, run: int = REPEAT) -> np.ndarray:
    """`tokens` without every token of a later copy of `run` or more consecutive tokens.

    Manuals repeat whole sections; disjoint ranges of such a text still share text. Cutting joins new
    neighbours, so it is repeated until nothing is left to cut. Cost: sorting n rows of `run` tokens.
    """
    if run < 1:
        raise ValueError(f"run must be at least 1 token, got {run}")
    while len(tokens) > run:
        windows = np.lib.stride_tricks.sliding_window_view(tokens, run)
        _, first = np.unique(windows, axis=0, return_index=True)
        later = np.ones(len(windows), dtype=bool)
        later[first] = False
        if not later.any():
            break
        # A window drops all its tokens: the number of dropped windows that cover each token.
        edges = np.zeros(len(tokens) + 1, dtype=np.int64)
        edges[: len(later)] += later
        edges[run : run + len(later)] -= later
        tokens = tokens[np.cumsum(edges[:-1]) == 0]
    return tokens


def split_tokens(
    tokens: np.ndarray,
    needs: Mapping[str, int],
    *,
    shares: Mapping[str, float] = SHARES,
    source: str = "the text",
) -> dict[str, Passages]:
    """Cut `tokens` into one contiguous range per split, in the order of `shares`, that share no text.

    Repetitions are dropped before (`without_repeats`), so no run of `REPEAT` tokens is in two splits.
    `needs`: the longest passage of each split, in tokens. Raises UsageError where a range would be shorter,
    with the number of tokens that the whole text must have.
    """
    unknown = sorted(set(needs) - set(shares))
    if unknown:
        raise ValueError(f"needs names the splits {unknown}, known are {sorted(shares)}")
    given, tokens = len(tokens), without_repeats(tokens)
    total = float(sum(shares.values()))
    enough = max(
        (int(np.ceil(needs.get(name, 0) * total / share)) for name, share in shares.items()), default=0
    )
    if len(tokens) < enough + len(shares):
        wanted = ", ".join(f"{name} {needs.get(name, 0)}" for name in shares)
        repeated = f" ({given - len(tokens)} repeated ones not counted)" if given > len(tokens) else ""
        raise UsageError(
            f"too little text: {source} has {len(tokens)} tokens{repeated}, at least "
            f"{enough + len(shares)} are needed so that no split shares text with another "
            f"(longest passages: {wanted}); give a longer text or shorter lengths"
        )
    edges = np.round(np.cumsum([0.0, *shares.values()]) / total * len(tokens)).astype(int)
    return {
        name: Passages(name, int(start), tokens[start:stop])
        for name, start, stop in zip(shares, edges[:-1], edges[1:], strict=True)
    }
