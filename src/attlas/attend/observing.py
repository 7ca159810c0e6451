"""Seeing what is asked of `attend` from outside, as analyses of whole networks need it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from attlas.attend.request import Request

__all__ = ["observed", "observing"]

_WATCHERS: ContextVar[tuple[Callable[[Request], None], ...]] = ContextVar("attlas_watchers", default=())


@contextmanager
def observing(see: Callable[[Request], None]) -> Iterator[None]:
    """Call `see` with the request of every `attend` inside the block, before it runs; blocks nest.

    A request has the call's query, key, pattern, score, normaliser and token spaces: what `reduce` takes.
    """
    token = _WATCHERS.set((*_WATCHERS.get(), see))
    try:
        yield
    finally:
        _WATCHERS.reset(token)


def observed(request: Request) -> None:
    """Tell every enclosing `observing()` of a request."""
    for see in _WATCHERS.get():
        see(request)
