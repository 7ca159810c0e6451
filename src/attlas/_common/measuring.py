"""What is compared is measured alike: time in turns in one process, and memory that torch allocates."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["extra_bytes", "in_turns"]


def in_turns(
    runs: Sequence[Callable[[], Any]],
    times: int = 7,
    warm: int = 2,
    taken: Callable[[list[float]], float] = statistics.median,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each run, in turns so that a busy moment hits all alike; `warm` runs before.

    taken: of the `times` figures of a run, their median unless given. clock: `time.process_time` for CPU
    seconds of all threads, which other programs do not lengthen.
    """
    spent: list[list[float]] = [[] for _ in runs]
    for turn in range(times + warm):
        for index, run in enumerate(runs):
            start = clock()
            run()
            if turn >= warm:
                spent[index].append(clock() - start)
    return [taken(found) for found in spent]


def extra_bytes(run: Callable[[], Any]) -> int:
    """Largest memory of tensors that a run holds above what was held before, its result included."""
    # Otherwise the profiler writes lines of its own to the terminal.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
