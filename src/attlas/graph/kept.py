"""What is computed of a graph is computed once and lives as long as the graph."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

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

    asked = signature(make)

    @wraps(make)
    def found(graph: Graph, *given: Options.args, **named: Options.kwargs) -> Found:
        store: dict[Any, Found] = graph.__dict__.setdefault("_kept", {})
        # By name, defaults too: one mark for all ways to ask for the same.
        bound = asked.bind(graph, *given, **named)
        bound.apply_defaults()
        _, *options = bound.arguments.values()
        plain = tuple(tuple(option) if isinstance(option, list) else option for option in options)
        mark = (make.__module__, make.__qualname__, plain)
        if mark not in store:
            with torch.inference_mode(False):  # training may use it afterwards
                store[mark] = make(graph, *given, **named)
        return store[mark]

    return found
