"""Mixers as dynamical systems, as tables: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from attlas._common.files import check_schema, read_json
from attlas.report.static_tables import StaticTable, print_tables

__all__ = ["NAME", "dsf_tables", "load_dsf", "print_dsf"]

NAME, SCHEMA, VERSION = "dsf", "attlas.dsf", 1
Row = Mapping[str, Any]
NONE = "–"


def load_dsf(folder: str | Path) -> dict[str, Any]:
    """The result in `folder`; UsageError where it is missing or damaged."""
    path = Path(folder) / f"{NAME}.json"
    return check_schema(read_json(path, what="result"), SCHEMA, VERSION, source=str(path))


def print_dsf(result: Row, console: Console | None = None) -> None:
    """Print the tables."""
    print_tables(dsf_tables(result), console)


def dsf_tables(result: Row) -> tuple[StaticTable, ...]:
    """States, memory kernels, and the consequences."""
    there = [row for row in result["mixers"] if not row["absent"]]
    tables = [_states(result["settings"], there), _memory(result["settings"], there)] if there else []
    absent = [row for row in result["mixers"] if row["absent"]]
    if absent:
        tables.append(_absent(absent))
    return (*tables, _consequences(result["consequences"]))


def _states(settings: Row, rows: Sequence[Row]) -> StaticTable:
    lengths = (settings["length"] // 4, settings["length"], 4 * settings["length"])
    cells = []
    for row in rows:
        state = row["state"]
        if state is None:
            cells.append((row["name"], *[NONE] * 5, f"{row['parameters']:,}"))
            continue
        sizes = (f"{size:,}" for size in state["bytes"])
        kept = "constant" if state["constant"] else "grows"
        cells.append((row["name"], f"{state['numbers'][1]:,}", *sizes, kept, f"{row['parameters']:,}"))
    return StaticTable(
        "states",
        f"State of one sequence, width {settings['width']}, {settings['heads']} heads",
        ("mixer", "numbers N", *(f"bytes at {length}" for length in lengths), "state", "parameters"),
        tuple(cells),
        (
            f"Numbers: in the state after {lengths[1]} tokens, N of the system in time. {NONE}: keeps no "
            "state of its own.",
        ),
    )


def _memory(settings: Row, rows: Sequence[Row]) -> StaticTable:
    length = settings["length"]
    lags = (1, length // 8, length // 2)
    cells = []
    for row in rows:
        kernel, frozen = row["jacobian"], row["frozen"]
        held = NONE if frozen is None else _relative(frozen, lags[-1])
        exact = NONE if row["error"] is None else f"{row['error']:.0e}"
        cells.append(
            (row["name"], *(_relative(kernel, lag) for lag in lags), f"{half_within(kernel)}", held, exact)
        )
    headings = (*(f"lag {lag}" for lag in lags), "half within", f"held lag {lags[-1]}", "error")
    return StaticTable(
        "memory",
        f"What reaches the output from earlier inputs, {length} tokens, initial weights",
        ("mixer", *headings),
        tuple(cells),
        (
            "Lag: norm of the Jacobian of an output by the input so many tokens before, over that of lag 0; "
            "root mean square over rows of the second half. Half within: lags that hold half of the squared "
            "norm behind lag 0. Held: the same from the transfer matrix, gates held as the input sets them, "
            "where the system is written down; error: of that system's output against the module, relative.",
        ),
    )


def _relative(kernel: Sequence[float], lag: int) -> str:
    return NONE if not kernel[0] else f"{kernel[lag] / kernel[0]:.1e}"


def half_within(kernel: Sequence[float]) -> int:
    """The least lag such that lags 1 .. it hold half of the squared norm of lags 1 and more; 0 for none."""
    squares = [value**2 for value in kernel[1:]]
    total, seen = sum(squares), 0.0
    for lag, square in enumerate(squares, 1):
        seen += square
        if total and seen >= total / 2:
            return lag
    return 0


def _absent(rows: Sequence[Row]) -> StaticTable:
    return StaticTable(
        "absent",
        "No system in time",
        ("mixer", "why"),
        tuple((row["name"], row["absent"]) for row in rows),
        (),
    )


def _consequences(checks: Sequence[Row]) -> StaticTable:
    cells = tuple(
        (
            check["name"],
            "; ".join(f"{name}: {value:.2g}" for name, value in check["values"].items()),
            "yes" if check["holds"] else "no",
        )
        for check in checks
    )
    notes = tuple(f"{check['name']}: {check['says']}" for check in checks)
    return StaticTable("consequences", "What follows", ("check", "computed", "holds"), cells, notes)
