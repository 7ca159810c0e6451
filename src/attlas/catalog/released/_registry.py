"""Finds the entries: one file per system in this folder, each with a tuple `RELEASED`."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from importlib import import_module

from attlas._common.errors import UsageError
from attlas.catalog import released as folder
from attlas.catalog.released._entry import Released

__all__ = ["all_released", "released_of"]


@lru_cache(maxsize=1)
def all_released() -> tuple[Released, ...]:
    """Every entry, by system; files whose name begins with "_" are the mechanism."""
    found: list[Released] = []
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        if module.name.startswith("_"):
            continue
        entries = import_module(f"{folder.__name__}.{module.name}").RELEASED
        if not isinstance(entries, tuple):
            raise TypeError(
                f"RELEASED in released/{module.name}.py must be a tuple of Released, got "
                f"{type(entries).__name__}; write RELEASED = (Released(...),)"
            )
        for entry in entries:
            if entry.system != module.name:
                raise ValueError(
                    f"the entry in released/{module.name}.py has system {entry.system!r}; name the file "
                    "after it"
                )
        found.extend(entries)
    names = [entry.name for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two entries have one name, {', '.join(twice)}; give them different points")
    return tuple(found)


def released_of(system: str) -> tuple[Released, ...]:
    """The entries of one system; UsageError lists the systems that have any."""
    found = tuple(entry for entry in all_released() if entry.system == system)
    if not found:
        known = ", ".join(dict.fromkeys(entry.system for entry in all_released()))
        raise UsageError(f"nothing on the released code of {system!r}; entries are there for {known}")
    return found
