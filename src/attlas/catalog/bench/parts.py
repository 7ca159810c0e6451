"""What an interrupted comparison goes on from: every finished piece is a file until all are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attlas._common.files import check_schema, read_json, write_json

__all__ = ["Parts"]


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
        """The piece `name`: read, or computed and written."""
        path, schema = self._path(name), self.schema + ".part"
        if not path.exists():
            write_json(path, {"schema": schema, "version": self.version, "value": compute()})
        return check_schema(read_json(path), schema, self.version, source=str(path))["value"]

    def remove(self) -> None:
        """Forget all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
