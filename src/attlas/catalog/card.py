"""The card of one published system: what it is, where it lives here, and what was checked."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

__all__ = ["Card", "resolve"]

_KEY = re.compile(r"[a-z][a-z0-9_]*")
_WHERE = re.compile(r"attlas(\.\w+)*:\w+")


@dataclass(frozen=True)
class Card:
    """One system of the atlas.

    `lives` and `claim` are import paths `"package.module:name"`; they are resolved on use, so that listing
    the atlas loads no system. `room` is the folder of `attlas` that holds it, `kind` says in a word or two
    what it is. `departures` tell where this code leaves the official one or the paper, `unverified` what no
    test or measurement here has confirmed.
    """

    key: str
    title: str
    year: int
    room: str
    kind: str
    what: str
    lives: tuple[str, ...]
    source: str
    code: str | None = None
    departures: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    claim: str | None = None

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"key must be lower-case letters, digits and '_', starting with a letter: {self.key!r}"
            )
        for field in ("title", "room", "kind", "what", "source"):
            if not getattr(self, field).strip():
                raise ValueError(f"card {self.key!r}: {field} is empty; every card says it")
        if not self.lives:
            raise ValueError(f"card {self.key!r}: lives is empty; name the import path of the system")
        for path in (*self.lives, *((self.claim,) if self.claim else ())):
            if not _WHERE.fullmatch(path):
                raise ValueError(
                    f"card {self.key!r}: an import path reads 'attlas.module:name', got {path!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values."""
        return asdict(self)


def resolve(path: str) -> Any:
    """The object at an import path `"package.module:name"`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
