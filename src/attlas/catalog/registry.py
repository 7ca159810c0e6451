"""Finds the cards: one file per system in `catalog/cards/`, each with a module-level `CARD`."""

from __future__ import annotations

import difflib
import pkgutil
from functools import lru_cache
from importlib import import_module

from attlas._common.errors import UsageError
from attlas.catalog import cards as folder
from attlas.catalog.card import Card

__all__ = ["all_cards", "find"]


@lru_cache(maxsize=1)
def _all() -> dict[str, Card]:
    found: dict[str, Card] = {}
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        entry = import_module(f"{folder.__name__}.{module.name}").CARD
        if entry.key != module.name:
            raise ValueError(
                f"the card in cards/{module.name}.py has key {entry.key!r}; name the file after it"
            )
        found[entry.key] = entry
    return found


def all_cards() -> tuple[Card, ...]:
    """Every card of the atlas, by key."""
    return tuple(_all().values())


def find(key: str) -> Card:
    """The card named `key`; UsageError lists what there is."""
    known = _all()
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"no system named {key!r} in the atlas; {hint} (attlas list shows all)")
