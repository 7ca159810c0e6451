"""A progress bar per stage."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars"]


class Bars:
    """Progress of a run on standard error: one bar per stage; the finished ones stay with their time."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console or Console(stderr=True),
        )
        self._bars: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._progress.stop()

    def stage(self, name: str, total: int) -> None:
        """A stage begins; it has `total` steps. A stage that is told of again goes on in its bar."""
        # Not before: a run that is refused shows its reason alone.
        self._progress.start()
        if self._current is not None:
            self._progress.stop_task(self._current)
        if name in self._bars:
            self._current = self._bars[name]
            done = self._progress.tasks[self._current].total or 0
            self._progress.update(self._current, total=done + total)
            return
        self._current = self._bars[name] = self._progress.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """`steps` more of the present stage are done."""
        if self._current is not None:
            self._progress.advance(self._current, steps)
