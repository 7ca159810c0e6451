"""Edge lists out of text files: one edge a line, with clear words for every wrong one."""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attlas._common.errors import UsageError
from attlas.graph.graph import Graph

__all__ = ["NamedGraph", "column_of", "is_finite", "read_edges", "read_nodes", "refuse_lines", "rows_of"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class NamedGraph:
    """A graph with the names that its nodes and edge types have in a file, in the order of their numbers."""

    graph: Graph
    nodes: tuple[str, ...]
    types: tuple[str, ...]


def read_edges(
    path: str | os.PathLike[str],
    *,
    sender: str | int = 0,
    receiver: str | int = 1,
    kind: str | int | None = None,
    values: tuple[str | int, ...] = (),
    header: bool | None = None,
    separator: str | None = None,
    nodes: Sequence[str] = (),
) -> NamedGraph:
    """A graph out of a .csv, .tsv or blank-separated file with one edge a line.

    sender, receiver, kind (the edge's type), values (numbers, which become edge_attr in float64): columns by
    name or by place from 0. header: whether the first line names the columns; by default it does where a
    column is asked for by name. Nodes and types get numbers in the order in which they first appear. Left out
    are empty lines, and remarks: lines that begin with #, with a separator only those before the first row.
    separator: "," for .csv, a tab for .tsv, blanks otherwise. nodes: names beside those of the edges, for
    nodes without any; they come last.

    Nothing is half loaded: UsageError names the line that has too few columns, an empty name or a value that
    is no finite number, and says how many more there are.
    """
    place = Path(path)
    if separator is not None and len(separator) != 1:
        raise UsageError(f"separator must be one letter, got {separator!r}")
    named = any(isinstance(column, str) for column in (sender, receiver, kind, *values))
    titled = named if header is None else header
    rows = rows_of(place, separator, "give a file with one edge a line", titled=titled)
    titles: list[str] | None = None
    if titled:
        first = next(rows, None)
        if first is None:
            raise UsageError(f"{place} is empty: a line with the columns' names is expected")
        titles = first[1]
    elif named:
        raise UsageError("columns by name need a header line: leave header unset, or give places from 0")
    wanted = [_column(one, titles, place) for one in (sender, receiver, *values)]
    typed = None if kind is None else _column(kind, titles, place)
    return _collected(place, rows, wanted, typed, nodes)


def read_nodes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names in the column node of a table, whatever else stands in it; UsageError for an empty one."""
    place = Path(path)
    remedy = "give a table with the column node"
    rows = rows_of(place, None, remedy, titled=True)
    column = column_of(place, next(rows, (0, []))[1], "node")
    names = {line: cells[column] if column < len(cells) else "" for line, cells in rows}
    refuse_lines(place, [f"line {line}: a name is empty" for line, name in names.items() if not name])
    return tuple(dict.fromkeys(names.values()))


def rows_of(
    path: Path, separator: str | None, remedy: str, *, titled: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of every line of a text table that says something; see `read_edges`.

    titled: the first row is taken for titles. UsageError: a file that cannot be read, with the remedy, or
    that is no such table; a remark right before the titles that may be the titles themselves.
    """
    remark: tuple[int, list[str]] | None = None
    begun = False
    for line, cells in _lines_of(path, separator, remedy):
        if cells[0].startswith("#") and not (begun and _separator(path, separator)):
            remark = line, cells
            continue
        if titled and not begun and remark is not None:
            _refuse_titles(path, remark, line, cells)
        begun = True
        yield line, cells


def _refuse_titles(path: Path, remark: tuple[int, list[str]], line: int, cells: list[str]) -> None:
    """UsageError where a remark has as many cells as the first row: one of them would be lost."""
    said = [remark[1][0].lstrip("#").strip(), *remark[1][1:]]
    said = said if said[0] else said[1:]
    if len(said) == len(cells) > 1:
        raise UsageError(
            f"{path}: line {remark[0]} begins with # and has as many columns as line {line}, which is taken "
            "for the titles: take off the # if these are the titles, or leave out the line"
        )


def _separator(path: Path, separator: str | None) -> str | None:
    return _SEPARATORS.get(path.suffix.lower()) if separator is None else separator


def _lines_of(path: Path, separator: str | None, remedy: str) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of every line that is not empty."""
    separator = _separator(path, separator)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if separator is None:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield number, line.split()
                return
            reader = csv.reader(stream, delimiter=separator, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}; nothing was loaded") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {remedy}") from error


def _column(wanted: str | int, titles: list[str] | None, path: Path) -> int:
    if isinstance(wanted, int):
        if wanted < 0:
            raise UsageError(f"columns are counted from 0, got {wanted}")
        return wanted
    return column_of(path, titles or [], wanted)


def column_of(path: Path, titles: Sequence[str], wanted: str) -> int:
    """The column of that title; UsageError where none or more than one has it."""
    if wanted not in titles:
        raise UsageError(
            f"{path} has no column {wanted!r}; its first line names {', '.join(titles) or 'none'}"
        )
    if titles.count(wanted) > 1:
        raise UsageError(
            f"{path} has {titles.count(wanted)} columns {wanted!r}: give every column a title of its own"
        )
    return titles.index(wanted)


def is_finite(text: str) -> bool:
    """Whether a cell is a finite number, as other programs write it too (Python alone reads 1_000)."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _collected(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    wanted: list[int],
    typed: int | None,
    others: Sequence[str],
) -> NamedGraph:
    nodes: dict[str, int] = {}
    types: dict[str, int] = {}
    ends: list[tuple[int, int]] = []
    numbers: list[list[float]] = []
    kinds: list[int] = []
    wrong: list[str] = []
    for line, cells in rows:
        problem = _problem(cells, wanted, typed)
        if problem:
            wrong.append(f"line {line}: {problem}")
            continue
        a, b = (nodes.setdefault(cells[column], len(nodes)) for column in wanted[:2])
        ends.append((a, b))
        numbers.append([float(cells[column]) for column in wanted[2:]])
        if typed is not None:
            kinds.append(types.setdefault(cells[typed], len(types)))
    refuse_lines(path, wrong)
    if not ends:
        raise UsageError(f"{path} holds no edge: one line per edge is expected")
    for name in others:
        nodes.setdefault(name, len(nodes))
    graph = Graph.from_edge_index(
        torch.tensor(ends, dtype=torch.int64).T,
        num_nodes=len(nodes),
        edge_attr=torch.tensor(numbers, dtype=torch.float64) if wanted[2:] else None,
        edge_type=None if typed is None else torch.tensor(kinds, dtype=torch.int64),
    )
    return NamedGraph(graph, tuple(nodes), tuple(types))


def refuse_lines(path: Path, wrong: Sequence[str]) -> None:
    """UsageError with the first of the wrong lines ("line 3: why"), and how many more there are."""
    if wrong:
        others = "1 more line is" if len(wrong) == 2 else f"{len(wrong) - 1} more lines are"
        more = f" ({others} wrong)" if len(wrong) > 1 else ""
        raise UsageError(f"{path}, {wrong[0]}{more}; nothing was loaded")


def _problem(cells: list[str], wanted: list[int], typed: int | None) -> str | None:
    columns = [*wanted, *([] if typed is None else [typed])]
    if max(columns) >= len(cells):
        return f"{max(columns) + 1} columns are expected, it has {len(cells)}"
    if any(not cells[column] for column in [*wanted[:2], *([] if typed is None else [typed])]):
        return "a name is empty"
    for column in wanted[2:]:
        if not is_finite(cells[column]):
            return f"column {column} must be a finite number, got {cells[column]!r}"
    return None
