"""What an interrupted comparison goes on from: every finished piece is a file until all are there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json, to_json, write_json
from attlas._common.machine import PACKAGE, source_digest, versions

__all__ = ["Parts", "code_mark"]

UNMEASURED = ("cli", "report")  # rooms that only show what was measured


@dataclass(frozen=True)
class Parts:
    """Pieces of a result of `schema`, each a JSON file in `folder`."""

    folder: Path
    schema: str
    version: int

    def has(self, name: str) -> bool:
        """Whether the piece is there."""
        return self._path(name).exists()

    def keep(self, name: str, compute: Callable[[], Any]) -> Any:
        """The piece `name`: read, or computed and written; a damaged file is computed anew."""
        found = self._read(name)
        if found is None:
            piece = {"schema": self.schema + ".part", "version": self.version, "value": compute()}
            found = read_json(write_json(self._path(name), piece))
        return found["value"]

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        try:
            found = check_schema(read_json(path), self.schema + ".part", self.version, source=str(path))
        except UsageError:  # missing, or cut off: nobody could write it anew by hand
            return None
        return found if "value" in found else None

    def remove(self) -> None:
        """Forget all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def code_mark() -> str:
    """Names the code that runs an experiment: pieces that other code made are not mixed in."""
    code = source_digest(*(folder.name for folder in PACKAGE.iterdir() if folder.name not in UNMEASURED))
    return hashlib.sha256(to_json({"code": code, "versions": versions()}).encode()).hexdigest()[:8]
