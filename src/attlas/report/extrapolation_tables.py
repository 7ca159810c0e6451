"""Length extrapolation as a table: for the terminal, the page and RESULTS.md alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from attlas._common.files import check_schema, read_json
from attlas.report.mixer_tables import labels, told
from attlas.report.static_tables import StaticTable, print_tables

__all__ = ["NAME", "extrapolation_tables", "load_extrapolation", "print_extrapolation"]

NAME, SCHEMA, VERSION = "extrapolation", "attlas.extrapolation", 1
Row = Mapping[str, Any]


def load_extrapolation(folder: str | Path) -> dict[str, Any]:
    """The result in `folder`; UsageError where it is missing or damaged."""
    path = Path(folder) / f"{NAME}.json"
    return check_schema(read_json(path, what="result"), SCHEMA, VERSION, source=str(path))


def print_extrapolation(result: Row, console: Console | None = None) -> None:
    """Print the table."""
    print_tables(extrapolation_tables(result), console)


def extrapolation_tables(result: Row) -> tuple[StaticTable, ...]:
    """One table: loss at every length, and the first token's share at both ends."""
    settings = result["settings"]
    lengths, there = settings["lengths"], [row for row in result["rows"] if "absent" not in row]
    first, last = lengths[0], lengths[-1]
    called = labels([row["mixer"] for row in result["rows"]])
    # Narrow enough for a terminal of 80 columns; the rise from end to end is in the result.
    columns = ["mixer", *(f"{length:,}" for length in lengths)]
    columns += [f"first token {first:,}", f"first token {last:,}", f"Sink {first:,}", f"Sink {last:,}"]
    cells = [(called[row["mixer"]], *map(_cell, row["losses"]), *_sinks(row)) for row in there]
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
        f"{told(settings['seeds']).capitalize()}.",
        f"Small models of {settings['layers']} layers, width {settings['width']}, {settings['heads']} heads, "
        f"trained for {settings['steps']} steps of {settings['batch']} windows of {first} bytes of "
        f"{settings['text']}, and never at another length.",
        "First token: the share of a row's attention that it gets, mean over rows, heads, layers and "
        f"windows; uniform attention gives it {uniform(first):.3f} at {first:,} and {uniform(last):.4f} at "
        f"{last:,}. Sink: the share of heads and windows in which its mean over the rows is above "
        f"{settings['threshold']:g} (arXiv 2410.10781). Weights that do not sum to 1 are divided by their "
        "sum first. -: a mixer without an attention map.",
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
