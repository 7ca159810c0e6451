"""Loops compiled by `numba`, run over ranges in as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

__all__ = ["equal_ranges", "jit", "over_ranges"]


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled without the interpreter's lock, kept on disk where a folder can be written."""
    from numba import njit

    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return njit(nogil=True, error_model="numpy")(function)


def over_ranges(work: Callable[[int, int], Any], bounds: Sequence[int]) -> None:
    """work(first, last) of every range between neighbouring bounds, each in one thread.

    Threads live for this call alone, so that nothing waits for them after a fork.
    """
    ranges = list(pairwise(bounds))
    threads = min(torch.get_num_threads(), len(ranges))
    if threads <= 1:
        for first, last in ranges:
            work(first, last)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, first, last) for first, last in ranges]:
            done.result()


def equal_ranges(count: int, least: int = 4096, pieces: int = 16) -> list[int]:
    """Bounds of at most `pieces` ranges of 0 .. count, none below `least` unless there is one alone."""
    parts = max(1, min(pieces, count // least))
    return [count * part // parts for part in range(parts + 1)]
