"""The registry of recipes: every kind by its name in JSON and in text."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attlas.pattern.base import Pattern

__all__ = ["REGISTRY", "register"]

REGISTRY: dict[str, type["Pattern"]] = {}
"""Every kind of recipe by its name in JSON and in text."""


def register(name: str) -> Callable[[type["Pattern"]], type["Pattern"]]:
    """Class decorator: give a frozen dataclass its name in JSON and in text, and enter it in the registry.

    An atom is one such class with ``pair`` and ``intervals``; its fields are sizes, integers, None, text,
    patterns or tuples of patterns, and everything else (JSON, text, bind, layout, counts) follows from them.
    """

    def enter(kind: type["Pattern"]) -> type["Pattern"]:
        if name in REGISTRY:
            raise ValueError(f"a pattern named {name!r} is already registered")
        kind.name = name
        REGISTRY[name] = kind
        return kind

    return enter
