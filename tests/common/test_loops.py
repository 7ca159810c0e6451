"""Ranges of loops: all are done once, by any number of threads, and errors come out."""

from itertools import pairwise

import pytest
import torch

from attlas._common.loops import equal_ranges, jit, over_ranges


@pytest.mark.parametrize("threads", [1, 3])
def test_every_range_is_done_once(threads):
    before, done = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        over_ranges(lambda first, last: done.append((first, last)), [0, 2, 2, 7, 9])
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [(0, 2), (2, 2), (2, 7), (7, 9)]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_one_range_comes_out(threads):
    def work(first: int, last: int) -> None:
        if first == 3:
            raise ValueError("range 3 is wrong")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match="range 3 is wrong"):
            over_ranges(work, [0, 3, 6])
    finally:
        torch.set_num_threads(before)


def test_ranges_are_about_equal_and_not_too_small():
    assert equal_ranges(0) == [0, 0] and equal_ranges(10, least=20) == [0, 10]
    bounds = equal_ranges(1000, least=100, pieces=7)
    sizes = [b - a for a, b in pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == 1000 and len(sizes) == 7 and max(sizes) - min(sizes) <= 1


def test_what_cannot_be_kept_on_disk_is_compiled_all_the_same(monkeypatch):
    import numba

    asked = []

    def refusing(**options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", refusing)
    assert jit(abs) is abs and asked == [True, False]
    monkeypatch.setattr(numba, "njit", lambda **options: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        jit(abs)
