"""The comparison of static patterns as tables: for the terminal, the page and RESULTS.md alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attlas._common.files import check_schema, read_json

__all__ = ["NAME", "StaticTable", "load_patterns", "print_patterns", "print_tables", "static_tables"]

NAME, SCHEMA, VERSION = "static_patterns", "attlas.patterns", 1
NAMED = 16  # letters of a name that are not broken for want of room
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True)
class StaticTable:
    """Cells as text, the first column the names; notes tell what the columns are and what is left out."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def load_patterns(folder: str | Path) -> dict[str, Any]:
    """The result in `folder`; UsageError where it is missing or damaged."""
    path = Path(folder) / f"{NAME}.json"
    return check_schema(read_json(path, what="result"), SCHEMA, VERSION, source=str(path))


def static_tables(result: Row) -> tuple[StaticTable, ...]:
    """The tables of a result: those parts that were measured."""
    settings = result["settings"]
    wanted, layers, length = settings["density"], settings["layers"], settings["length"]
    found = [
        _table(
            "sequence",
            f"On a sequence of {length:,} tokens, asked for {wanted:.1%} of the causal pairs",
            result["sequence"],
            _geometry(layers, result["sequence"]),
            _explained(layers, "the last token", settings["block"]),
        )
    ]
    if result["grid"]:
        sides = " x ".join(map(str, settings["grid"]))
        found.append(
            _table(
                "grid",
                f"On a grid of {sides} tokens (frames x height x width), asked for "
                f"{settings['grid_density']:.1%} of all pairs",
                result["grid"],
                _geometry(layers, result["grid"]),
                _explained(layers, "the middle token", settings["block"]),
            )
        )
    if result["zero_shot"]:
        part = result["zero_shot"]
        found.append(
            _table(
                "zero_shot",
                f"{part['model']} as it is, at {length:,} tokens",
                part["rows"],
                ZERO_SHOT,
                (
                    "NLL and CE are in nats per token. Pairs: share of the causal pairs that are computed; "
                    "KV: share of the cache that must be kept. Without training for it; the text and the "
                    "wordings of the hidden facts were in no calibration.",
                ),
            )
        )
    if result["small"]:
        small = settings["small"]
        notes = [
            f"Bits per held-out byte after {small['steps']} steps of {small['batch']} windows, "
            "mean and standard deviation over the seeds; all start from equal weights and batches."
        ]
        if _alike(result["small"]["rows"]):
            notes.append("Every two means lie within the larger of their deviations: no difference is shown.")
        found.append(
            _table(
                "small",
                f"Small models of {small['layers']} layers trained on {small['length']} bytes at a time",
                result["small"]["rows"],
                SMALL,
                tuple(notes),
            )
        )
    return tuple(found)


def _alike(rows: Sequence[Row]) -> bool:
    """Whether no two rows differ by more than their seeds do."""
    known = [row for row in rows if row.get("sd") is not None]  # left out: no density of theirs fits
    return len(known) > 1 and all(
        abs(one["bits"] - two["bits"]) <= max(one["sd"], two["sd"]) for one in known for two in known
    )


def _share(name: str, digits: str = ".1%") -> Callable[[Row], str]:
    return lambda row: _number(row.get(name), digits)


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


ZERO_SHOT: tuple[Column, ...] = (
    ("pairs", _share("density")),
    ("KV", _share("kv_density")),
    ("text NLL", _share("text_nll", ".3f")),
    ("answer CE", _share("answer_ce", ".3f")),
    ("exact match", _share("exact", ".2f")),
    ("needles", lambda row: str(row["needles"])),
)
SMALL: tuple[Column, ...] = (
    ("pairs", _share("density")),
    ("bits per byte", _share("bits", ".3f")),
    ("sd", _share("sd", ".3f")),
    ("seeds", lambda row: str(row["seeds"])),
)


def _geometry(layers: int, rows: Sequence[Row]) -> tuple[Column, ...]:
    def reached(layer: int) -> Callable[[Row], str]:
        return lambda row: f"{row['reach'][layer]:.0%}"

    columns: list[Column] = [("pairs", _share("density"))]
    columns += [(f"reach {layer + 1}", reached(layer)) for layer in range(layers)]
    columns += [("complete", _share("complete", ".0%")), ("holes", lambda row: f"{row['holes']:,}")]
    columns += [("blocks", _share("blocks", ".0%")), ("filled", _share("filled", ".0%"))]
    if any("speedup" in row for row in rows):
        columns += [("x SDPA", _share("speedup", ".2f")), ("of bound", _share("of_bound", ".0%"))]
    return tuple(columns)


def _explained(layers: int, token: str, block: int) -> tuple[str, ...]:
    return (
        f"Reach l: share of what {token} could see at all that can arrive there after l layers. Complete: "
        f"the same after {layers}, mean of tokens spread evenly. Holes: positions not reached between "
        f"reached ones. Blocks: share of the blocks of {block} x {block} pairs that hold any; filled: mean "
        "share of such a block that is pairs. x SDPA: how many times faster a forward call is than dense "
        "attention beside it in one process; of bound: that over the ratio of pairs.",
    )


def _table(
    key: str, title: str, rows: Sequence[Row], columns: tuple[Column, ...], notes: tuple[str, ...]
) -> StaticTable:
    there = [row for row in rows if "absent" not in row]
    cells = tuple((row["label"], *(show(row) for _, show in columns)) for row in there)
    left_out = tuple(f"Left out: {row['absent']}." for row in rows if "absent" in row)
    headings = ("pattern", *(heading for heading, _ in columns))
    return StaticTable(key, title, headings, cells, notes + left_out)


def print_patterns(result: Row, console: Console | None = None) -> None:
    """Print the tables."""
    print_tables(static_tables(result), console)


def print_tables(tables: Sequence[StaticTable], console: Console | None = None) -> None:
    """Print tables with their titles and notes."""
    console = console or Console()
    for table in tables:
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0), header_style="bold")
        longest = max((len(row[0]) for row in table.rows), default=0)
        shown.add_column(table.columns[0], overflow="fold", min_width=min(longest, NAMED))
        for heading in table.columns[1:]:
            shown.add_column(Text(heading.replace(" ", "\n"), justify="right"), justify="right", min_width=5)
        for row in table.rows:
            shown.add_row(Text(row[0]), *row[1:])
        console.print(Text(table.title, style="bold"))
        console.print(shown)
        for note in table.notes:
            console.print(Text(note, style="dim"))
        console.print()
