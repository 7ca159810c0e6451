"""What a run has done so far: one file per finished part, so that a killed run goes on where it was."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import read_json, writable_folder, write_json
from attlas.tune.settings import Settings

__all__ = ["Store", "digest"]

STATE = "state"


def digest(value: Any) -> str:
    """Short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The folder of a run: `plan.json` and `results.json` for the user, `state/` for going on.

    The first run in a folder writes its settings, model and text there; another one's raise UsageError that
    names the difference, unless `fresh` forgets what is there. Without a folder a temporary one is used.
    """

    def __init__(
        self, folder: Path | None, settings: Settings, facts: dict[str, str], *, fresh: bool
    ) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="attlas-") if folder is None else None
        self.folder = writable_folder(Path(self.temporary.name) if self.temporary else folder or ".")
        self.state = self.folder / STATE
        if fresh and self.state.exists():
            shutil.rmtree(self.state)
        writable_folder(self.state)
        self._claim(settings, facts)
        self.stages: list[dict[str, Any]] = self._stages_before()
        self._computed = False

    def _claim(self, settings: Settings, facts: dict[str, str]) -> None:
        file = self.state / "run.json"
        # JSON has no tuples: compare what a reader would see.
        mine = json.loads(json.dumps({"settings": settings.to_dict(), **facts}))
        if not file.exists():
            write_json(file, mine)
            return
        found = read_json(file, what="run file")
        if found == mine:
            return
        other = found.get("settings", {}) if isinstance(found, dict) else {}
        wrong = settings.difference(other)
        wrong += [
            f"{key} {found.get(key)} there, {value} here"
            for key, value in facts.items()
            if found.get(key) != value
        ]
        raise UsageError(
            f"{self.folder} holds a run of other settings ({'; '.join(wrong)}); choose another folder, or "
            "start afresh to forget that run (fresh=True, --fresh)"
        )

    def _stages_before(self) -> list[dict[str, Any]]:
        file = self.state / "stages.json"
        before = read_json(file, what="run file") if file.exists() else []
        return [stage | {"resumed": True} for stage in before]

    def path(self, name: str) -> Path:
        """A file in the state folder."""
        return self.state / name

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON part `name`: read if it is there, else computed and written (atomically)."""
        file = self.path(f"{name}.json")
        if file.exists():
            return read_json(file, what="part of the run")
        value = compute()
        self._computed = True
        write_json(file, value)
        # As a resumed run would see it: bitwise the same from here on.
        return read_json(file, what="part of the run")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to the stage; resumed = an earlier process had a share in it."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            old = next((stage for stage in self.stages if stage["name"] == name), None)
            if old is None:
                self.stages.append({"name": name, "seconds": spent, "resumed": False})
            else:
                old["seconds"] += spent
            write_json(self.state / "stages.json", self.stages)

    def close(self) -> None:
        """Remove a temporary folder."""
        if self.temporary is not None:
            self.temporary.cleanup()
