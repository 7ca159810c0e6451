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
from attlas._common.files import missing_folders, read_json, remove_empty, writable_folder, write_json
from attlas.tune.settings import Settings

__all__ = ["Store", "digest"]

STATE, RUN, STAGES = "state", "run.json", "stages.json"


def digest(value: Any) -> str:
    """Short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The folder of a run: `plan.json` and `results.json` for the user, `state/` for going on.

    The first run in a folder writes its settings, model and text there; another one's raise UsageError that
    names the difference, unless `fresh` forgets that run, its results included. Without a folder a temporary
    one is used. A part is kept with its name and digest; one that is not as it was written raises UsageError
    at once.
    """

    def __init__(
        self, folder: Path | None, settings: Settings, facts: dict[str, str], *, fresh: bool
    ) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="attlas-") if folder is None else None
        self.folder = Path(self.temporary.name) if self.temporary else Path(folder or ".")
        self.state = self.folder / STATE
        self._made = missing_folders(self.state)
        writable_folder(self.folder)
        if fresh:
            self._forget()
        writable_folder(self.state)
        self._claim(settings, facts)
        self.stages: list[dict[str, Any]] = self._stages_before()
        for file in self._parts():
            self._read(file)

    def _forget(self) -> None:
        """Remove what an earlier run has left, its results too: they would pass for this one's."""
        for name in (STATE, "pictures"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("plan.json", "results.json", "report.html"):
            (self.folder / name).unlink(missing_ok=True)

    def _claim(self, settings: Settings, facts: dict[str, str]) -> None:
        file = self.state / RUN
        # JSON has no tuples: compare what a reader would see.
        mine = json.loads(json.dumps({"settings": settings.to_dict(), **facts}))
        if not file.exists():
            write_json(file, mine)
            return
        remedy = "start afresh (fresh=True, --fresh): everything is computed again"
        found = _load(file, remedy)
        if found == mine:
            return
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
            raise _damaged(file, "it holds no settings of a run", remedy)
        wrong = settings.difference(found["settings"])
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
        file = self.state / STAGES
        if not file.exists():
            return []
        remedy = "delete it: only the times of the stages so far are lost"
        before = _load(file, remedy)
        if not isinstance(before, list) or not all(_is_stage(stage) for stage in before):
            raise _damaged(file, "it holds no list of stages", remedy)
        return [stage | {"resumed": True} for stage in before]

    def _parts(self) -> list[Path]:
        return sorted(file for file in self.state.glob("*.json") if file.name not in (RUN, STAGES))

    def _read(self, file: Path) -> Any:
        """The value of a part, as it was written; `profile.safetensors` is checked by who reads it."""
        remedy = "delete it: the same command computes this part again and keeps the others"
        found = _load(file, remedy)
        if not isinstance(found, dict) or set(found) != {"part", "digest", "value"}:
            raise _damaged(file, "it does not have the form of a part", remedy)
        if found["part"] != file.stem or found["digest"] != digest(found["value"]):
            raise _damaged(file, "its content is not what was written there", remedy)
        return found["value"]

    def path(self, name: str) -> Path:
        """A file in the state folder."""
        return self.state / name

    def has(self, name: str) -> bool:
        """Whether the JSON part `name` is there."""
        return self.path(f"{name}.json").exists()

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON part `name`: read if it is there, else computed and written (atomically)."""
        file = self.path(f"{name}.json")
        if not file.exists():
            # As a resumed run would see it: bitwise the same from here on.
            value = json.loads(json.dumps(compute()))
            write_json(file, {"part": name, "digest": digest(value), "value": value})
        return self._read(file)

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
            write_json(self.state / STAGES, self.stages)

    def forget_refused(self) -> None:
        """Leave no trace of a run that was refused before its first part: the next may be another one."""
        if any(file.name not in (RUN, STAGES) for file in self.state.iterdir()):
            return
        for name in (RUN, STAGES):
            self.path(name).unlink(missing_ok=True)
        remove_empty([self.state, *self._made])

    def close(self) -> None:
        """Remove a temporary folder."""
        if self.temporary is not None:
            self.temporary.cleanup()


def _load(file: Path, remedy: str) -> Any:
    try:
        return read_json(file, what="run file")
    except UsageError as error:
        # JSON's own words stand in the cause; a reader of the message needs the file and the remedy.
        cause = error.__cause__
        raise _damaged(file, f"not valid JSON: {cause}" if cause else str(error), remedy) from error


def _damaged(file: Path, reason: str, remedy: str) -> UsageError:
    return UsageError(f"{file}, which the run needs to go on, is damaged ({reason}); {remedy}")


def _is_stage(stage: Any) -> bool:
    return (
        isinstance(stage, dict)
        and isinstance(stage.get("name"), str)
        and isinstance(stage.get("seconds"), int | float)
    )
