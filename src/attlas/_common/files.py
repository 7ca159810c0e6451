"""Atomic files and strict JSON: a reader sees the old file or the new one, never a half of either."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError

__all__ = [
    "check_folder",
    "check_schema",
    "missing_folders",
    "read_json",
    "remove_empty",
    "to_json",
    "writable_folder",
    "write_atomic",
    "write_json",
]

_CONSTANTS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # as they stand in a file


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` by way of a temporary file in the same folder.

    Missing parent folders are made. Interrupted at any moment, `path` holds its former content or the new.
    Raises UsageError where the folder cannot be written.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with _as_usage_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes private files; a result is as readable as any other new file.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    return target


def to_json(value: Any) -> str:
    """JSON with sorted keys and two-space indent; ValueError names the place of a NaN or an infinity."""
    place = _not_finite(value, "$")
    if place is not None:
        raise ValueError(f"JSON holds only finite numbers, but {place[0]} is {place[1]!r}")
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as JSON (sorted keys, finite numbers only), atomically."""
    return write_atomic(path, to_json(value))


def read_json(path: str | os.PathLike[str], *, what: str = "file") -> Any:
    """Read a JSON file; UsageError says whether it is missing, unreadable or damaged, and where."""
    source = Path(path)
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
        place = _not_finite(value, "$")
        if place is not None:
            raise ValueError(f"{place[0]}: {_CONSTANTS[str(place[1])]} is not a JSON number")
        return value
    except FileNotFoundError:
        raise UsageError(f"{what} {source} does not exist; check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{what} {source} is a folder; give the file inside it") from None
    except OSError as error:
        raise UsageError(f"{what} {source} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {source} is damaged, not valid JSON ({error}); write it anew") from error


def check_schema(value: Any, schema: str, version: int, *, source: str) -> dict[str, Any]:
    """Return `value` if it is an object of `schema` with a version in 1..`version`, else raise UsageError."""
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise UsageError(f"{source} is not a file of schema {schema!r}: found {found!r}; give another file")
    found = value.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UsageError(f"{source} is damaged: version must be a whole number from 1, got {found!r}")
    if found > version:
        raise UsageError(
            f"{source} was written by a newer Attlas ({schema} version {found}, this one reads up to "
            f"{version}); upgrade Attlas or write the file anew"
        )
    return value


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder if it is missing and prove that a file can be written in it, else raise UsageError."""
    folder = Path(path)
    if folder.is_file():
        raise UsageError(f"{folder} is a file, but a folder is needed (out, --out); give another name")
    with _as_usage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def check_folder(path: str | os.PathLike[str]) -> Path:
    """As `writable_folder`, but leaves nothing behind: for a check before the work that may be refused."""
    missing = missing_folders(path)
    try:
        return writable_folder(path)
    finally:
        remove_empty(missing)


def missing_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The folders that making `path` would make, the innermost first."""
    return [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders` that are empty, in their order; the others stay as they are."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _as_usage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason}; choose a folder that you may write to") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _not_finite(value: Any, place: str) -> tuple[str, float] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return place, value
    children: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        children = [(f"{place}.{key}", child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(f"{place}[{index}]", child) for index, child in enumerate(value)]
    for name, child in children:
        found = _not_finite(child, name)
        if found is not None:
            return found
    return None
