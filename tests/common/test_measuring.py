"""Memory of a run, counted at the allocator."""

from __future__ import annotations

import torch

from attlas._common.measuring import extra_bytes, in_turns


def test_the_worst_moment_counts_and_what_was_there_before_does_not() -> None:
    held = torch.ones(1 << 20)

    def run() -> torch.Tensor:
        one = held * 2  # 4 MiB
        del one
        two = held + 1
        return (two * 3).sum()  # 8 MiB at once

    found = extra_bytes(run) / 2**20
    assert 8.0 <= found < 8.1


def test_runs_take_turns_and_the_figure_is_chosen() -> None:
    told: list[str] = []
    runs = [lambda: told.append("one"), lambda: told.append("two")]
    found = in_turns(runs, times=3, warm=1, taken=lambda figures: float(len(figures)))
    assert found == [3.0, 3.0] and told == ["one", "two"] * 4
