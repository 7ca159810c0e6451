"""How a run tells where it is; the command line draws bars from it."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Progress", "Silent", "as_progress", "counted"]


@runtime_checkable
class Progress(Protocol):
    """Told of every stage and of every step in it."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins; it has `total` steps."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more are done."""


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""


class _Spoken(Silent):
    """One line of text per stage."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def stage(self, name: str, total: int) -> None:
        self.say(name)


def as_progress(progress: object) -> Progress:
    """A Progress from one, from a function that takes a line of text, or from nothing."""
    if progress is None:
        return Silent()
    if isinstance(progress, Progress):
        return progress
    if callable(progress):
        return _Spoken(progress)
    raise TypeError(f"progress must have stage() and advance(), or take a line of text, got {progress!r}")


def counted(progress: Progress, name: str) -> Callable[[int, int], None]:
    """`report(done, of)` as functions of the search take it, told to `progress` as a stage of its own."""
    before: list[int] = []

    def report(done: int, of: int) -> None:
        if not before:
            progress.stage(name, of)
            before.append(0)
        if done > before[0]:
            progress.advance(done - before[0])
            before[0] = done

    return report
