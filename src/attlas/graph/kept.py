"""What is computed of a graph is computed once and lives as long as the graph."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from attlas.graph.graph import Graph

__all__ = ["kept"]

Options = ParamSpec("Options")
Found = TypeVar("Found")


def kept(
    make: Callable[Concatenate[Graph, Options], Found],
) -> Callable[Concatenate[Graph, Options], Found]:
    """The function of a graph and plain options, which remembers what it found.

    Options are numbers, texts, or tuples of them. Results stand beside the graph's sorted edges and must not
    be written to; another graph of equal edges, as `replace` makes it, has none.
    """

    @wraps(make)
    def found(graph: Graph, *given: Options.args, **named: Options.kwargs) -> Found:
        store: dict[Any, Found] = graph.__dict__.setdefault("_kept", {})
        options = *given, *sorted(named.items())
        plain = tuple(tuple(option) if isinstance(option, list) else option for option in options)
        mark = (make.__module__, make.__qualname__, plain)
        if mark not in store:
            store[mark] = make(graph, *given, **named)
        return store[mark]

    return found
