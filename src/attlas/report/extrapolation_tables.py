"""Length extrapolation as a table: for the terminal, the page and RESULTS.md alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from attlas._common.files import check_schema, read_json
from attlas.report.mixer_tables import labels, told
from attlas.report.static_tables import StaticTable, print_tables

__all__ = ["NAME", "extrapolation_tables", "load_extrapolation", "print_extrapolation"]

BEHIND = 6  # columns behind the losses
COLUMN = 13  # letters of a mean beside its deviation, and of the gap
NAME, SCHEMA, VERSION = "extrapolation", "attlas.extrapolation", 1
Row = Mapping[str, Any]


def load_extrapolation(folder: str | Path) -> dict[str, Any]:
    """The result in `folder`; UsageError where it is missing or damaged."""
    path = Path(folder) / f"{NAME}.json"
    return check_schema(read_json(path, what="result"), SCHEMA, VERSION, source=str(path))


def print_extrapolation(result: Row, console: Console | None = None) -> None:
    """Print the table; in parts, losses first, where the terminal is too narrow for it."""
    console = console or Console()
    (whole,) = extrapolation_tables(result)
    room = max(1, (console.width - max((len(row[0]) for row in whole.rows), default=0)) // COLUMN)
    if len(whole.columns) - 1 <= room:
        print_tables((whole,), console)
        return
    cut = len(whole.columns) - BEHIND
    starts = [*range(1, cut, room), *range(cut, len(whole.columns), room)]
    ends = [*(start for start in starts[1:]), len(whole.columns)]
    for start, end in zip(starts, ends, strict=True):
        print_tables((_part(whole, start, end, last=end == ends[-1]),), console)


def _part(whole: StaticTable, start: int, end: int, *, last: bool) -> StaticTable:
    """Some columns beside the names; the notes stand under the last part."""
    rows = tuple((row[0], *row[start:end]) for row in whole.rows)
    columns = (whole.columns[0], *whole.columns[start:end])
    return replace(whole, columns=columns, rows=rows, notes=whole.notes if last else ())


def extrapolation_tables(result: Row) -> tuple[StaticTable, ...]:
    """One table: loss at every length, its rise, and the first token's share at both ends."""
    settings = result["settings"]
    lengths, there = settings["lengths"], [row for row in result["rows"] if "absent" not in row]
    first, last = lengths[0], lengths[-1]
    called = labels([row["mixer"] for row in result["rows"]])
    columns = ["mixer", *(f"{length:,}" for length in lengths), "rise"]
    columns += [f"first token {first:,}", f"first token {last:,}", f"Sink {first:,}", f"Sink {last:,}"]
    columns.append("parameters")
    cells = [
        (
            called[row["mixer"]],
            *map(_cell, (*row["losses"], row["rise"])),
            *_sinks(row),
            f"{row['runs'][0]['parameters']:,}",
        )
        for row in there
    ]
    notes = _notes(settings)
    said = [f"{called[row['mixer']]}: {row['says']}" for row in there if row["says"] != row["mixer"]]
    if said:
        notes.append("; ".join(said) + ".")
    for row in there:
        if row["diverged"]:
            lost = f"{row['diverged']} of {len(row['runs'])} seeds diverged"
            notes.append(f"{called[row['mixer']]}: {lost} and are left out of the mean.")
    notes += [
        f"Left out: {called[row['mixer']]}: {row['absent']}." for row in result["rows"] if "absent" in row
    ]
    title = f"Trained at {first:,} bytes, tested up to {last:,} ({last / first:g}x)"
    return (StaticTable("extrapolation", title, tuple(columns), tuple(cells), tuple(notes)),)


def _notes(settings: Row) -> list[str]:
    first, last = settings["lengths"][0], settings["lengths"][-1]
    return [
        f"Loss in nats per byte of the same last {first} bytes of {settings['windows']} held-out windows, "
        f"with contexts of {first:,} to {last:,} bytes: only the text before them grows. "
        f"{told(settings['seeds']).capitalize()}. Rise: the loss at {last:,} minus that at {first:,}.",
        f"Small models of {settings['layers']} layers, width {settings['width']}, {settings['heads']} heads, "
        f"trained for {settings['steps']} steps of {settings['batch']} windows of {first} bytes of "
        f"{settings['text']}, and never at another length.",
        "First token: the share of a row's attention that it gets, mean over rows, heads, layers and "
        f"windows; uniform attention gives it {uniform(first):.3f} at {first:,} and {uniform(last):.4f} at "
        f"{last:,}. Sink: the share of heads and windows in which its mean over the rows is above "
        f"{settings['threshold']:g} (arXiv 2410.10781). Weights that do not sum to 1 are divided by their "
        "sum first. -: a mixer without an attention map. That source fixes the threshold at 64 tokens of "
        "natural text; its value depends on the tokens, so that figures of two lengths compare mixers, not "
        "lengths, and models trained so briefly may have no sink at all.",
        "Parameters are not equal: a gate and normalised queries and keys bring their own.",
    ]


def uniform(tokens: int) -> float:
    """What the first of so many tokens gets of uniform causal attention, H_T / T."""
    return sum(1 / row for row in range(1, tokens + 1)) / tokens


def _cell(found: Row) -> str:
    if found["mean"] is None:
        return "diverged"
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ±{found['sd']:.3f}")


def _sinks(row: Row) -> tuple[str, ...]:
    if row["sinks"] is None:
        return ("-",) * 4
    return tuple(_cell(at[name]) for name in ("first_share", "strength") for at in row["sinks"])
