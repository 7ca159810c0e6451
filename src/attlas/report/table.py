"""The figures of a run in the terminal: as many tables as its width asks for, no figure left out."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attlas.report.columns import ByLength, Column, by_length_tables, columns_of, footnotes, sections
from attlas.report.run import Run
from attlas.report.verdict import verdict

__all__ = ["print_results", "results_tables", "small_tables"]

# Groups of columns per table, from the widest layout to the narrowest.
LAYOUTS = (
    (("KV memory", "Quality", "Prefill", "Decode"),),
    (("KV memory", "Quality"), ("Prefill", "Decode")),
    (("KV memory", "Quality"), ("Prefill",), ("Decode",)),
)


def results_tables(run: Run, *, width: int = 120) -> tuple[Table, ...]:
    """The main comparison, a section per length and a row per method, in the fewest tables that fit."""
    for layout in LAYOUTS:
        columns = [found for groups in layout if (found := columns_of(run, groups))]
        tables = tuple(_comparison(run, found) for found in columns)
        if _fit(tables, width):
            break
    return tables


def small_tables(table: ByLength, *, width: int = 120) -> tuple[Table, ...]:
    """A table with lengths across, or one per length where they do not fit side by side."""
    whole = (_across(table, table.lengths),)
    return whole if _fit(whole, width) else tuple(_across(table, (length,)) for length in table.lengths)


def print_results(run: Run, console: Console | None = None) -> None:
    """Print the tables, the smaller ones (two keys, other budgets), the notes and the verdict."""
    console = console or Console()
    parts: list[RenderableType] = []
    for comparison in results_tables(run, width=console.width):
        parts += [comparison, Text()]
    parts.append(Text(" ".join(footnotes(run)) + "\n", style="dim"))
    for table in by_length_tables(run):
        parts += [*small_tables(table, width=console.width), Text(f"{table.note}\n", style="dim")]
    judged = verdict(run)
    parts.append(Text(judged.headline, style="bold"))
    findings = Table.grid(padding=(0, 1, 0, 0))
    for finding in judged.findings:
        colour = "dim" if finding.good is None else "green" if finding.good else "red"
        # As Text: a label may hold what rich would take for markup.
        findings.add_row(Text(finding.mark, style=colour), Text(finding.text))
    parts.append(Padding(findings, (0, 0, 1, 0)))
    console.print(Group(*parts))


def _comparison(run: Run, columns: tuple[Column, ...]) -> Table:
    table = _grid("")
    for column in columns:
        _add(table, column.heading)
    for length, rows in sections(run, columns):
        table.add_row(Text(f"{length:,} tokens", style="bold cyan"))
        for method in rows:
            style = {"plan": "bold", "dense": "dim"}.get(method.kind, "")
            cells = (column.text(method, length) for column in columns)
            table.add_row(Text(f" {method.label}"), *cells, style=style)
        table.add_section()
    return table


def _across(table: ByLength, lengths: tuple[int, ...]) -> Table:
    shown = _grid(f"\n\n{table.title}")
    for length in lengths:
        for index, column in enumerate(table.columns):
            _add(shown, (f"{length:,}" if index == 0 else "", *column.heading))
    for before, method in zip((None, *table.methods), table.methods, strict=False):
        if before is not None and before.budget != method.budget and not method.main:
            shown.add_section()
        cells = (column.text(method, length) for length in lengths for column in table.columns)
        shown.add_row(Text(method.label), *cells, style="bold" if method.kind == "plan" else "")
    return shown


def _grid(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), show_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _add(table: Table, heading: tuple[str, ...]) -> None:
    table.add_column(Text("\n".join(heading), justify="right"), justify="right", no_wrap=True, min_width=5)


def _fit(tables: tuple[Table, ...], width: int) -> bool:
    # Rich measures within the console that it is given: this one is wide enough for every table.
    endless = Console(width=10_000)
    return all(endless.measure(table).maximum <= width for table in tables)
