from __future__ import annotations

from typing import Any

import pytest
import torch

from attlas.cache.rows import Clock, checked_total, split_rows


def valid(*rows: str) -> torch.Tensor:
    """Rows of 1 and 0 as a bool tensor."""
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def test_rows_without_padding_are_one_job_of_the_whole_batch() -> None:
    (job,) = split_rows(None, [5, 5, 5], [20, 20, 20], 4)
    assert job.whole
    assert (job.start, job.count, job.end, job.total) == (5, 4, 9, 20)
    states = torch.randn(3, 2, 4, 8)
    assert job.take(states) is states


def test_rows_are_grouped_by_their_real_tokens() -> None:
    jobs = split_rows(valid("0011", "0011", "1111", "0000", "1100"), [0] * 5, [9] * 5, 4)
    assert [(job.rows, job.columns, job.count) for job in jobs] == [
        (slice(0, 2), slice(2, 4), 2),
        (slice(2, 3), slice(0, 4), 4),
        (slice(4, 5), slice(0, 2), 2),
    ]


@pytest.mark.parametrize("rows", [("0110", "1111", "0110"), ("1011", "1111", "1011")])
def test_put_writes_where_take_reads(rows: tuple[str, ...]) -> None:
    states = torch.randn(3, 2, 4, 5)
    copy = torch.zeros_like(states)
    for job in split_rows(valid(*rows), [0, 0, 0], [None] * 3, 4):
        job.put(copy, job.take(states))
    assert torch.equal(copy, states * valid(*rows)[:, None, :, None])


def test_rows_of_different_totals_do_not_share_a_job() -> None:
    jobs = split_rows(None, [0, 0], [10, 20], 4)
    assert [job.total for job in jobs] == [10, 20]


def test_a_step_is_shared_by_all_layers() -> None:
    clock = Clock(10)
    first = clock.step(0, 4, 2, valid("0011", "1111"))
    assert clock.step(0, 4, 2, None) is first
    assert clock.starts == [2, 4]
    decode = clock.step(4, 1, 2, None)
    assert decode.decode and decode.starts == (2, 4)
    assert not first.decode


def test_a_layer_that_lags_behind_is_an_error() -> None:
    clock = Clock(None)
    clock.step(0, 4, 1, None)
    clock.step(4, 1, 1, None)
    with pytest.raises(
        RuntimeError, match=r"this layer has seen 0 columns but the cache is at 5: an earlier forward"
    ):
        clock.step(0, 1, 1, None)


def test_more_tokens_than_total_is_an_error() -> None:
    clock = Clock([8, 5])
    clock.step(0, 5, 2, None)
    with pytest.raises(ValueError, match=r"row 1 would hold 6 tokens, but the cache was built for total=5"):
        clock.step(5, 1, 2, None)


def test_another_batch_size_is_an_error() -> None:
    clock = Clock([8, 5])
    with pytest.raises(ValueError, match=r"the cache has 2 rows \(totals\) but the keys have a batch of 3"):
        clock.step(0, 5, 3, None)


@pytest.mark.parametrize(
    ("total", "given"),
    [("5", r"'5'$"), (2.5, r"2\.5$"), (True, r"True$"), ([4, "5"], r"'5' in \[4, '5'\]$"), ("", r"''$")],
)
def test_a_total_that_is_no_number_of_tokens(total: Any, given: str) -> None:
    with pytest.raises(
        ValueError, match=r"total must be a number of tokens \(prompt .* with one per row, got " + given
    ):
        checked_total(total)
