"""The comparison table of a run, for the terminal and for the page: the same columns, the same digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attlas.report.run import Method, Quality, Run, Timing
from attlas.report.verdict import verdict

__all__ = [
    "COLUMNS",
    "Column",
    "budget_table",
    "columns_of",
    "footnotes",
    "print_results",
    "results_table",
    "sections",
]

ABSENT = "–"
MEBI = 2**20
QUALITY_SHORT = ("NLL", "CE", "exact")


@dataclass(frozen=True)
class Column:
    """One column: group, two-line heading, how a method's figure is found, shown, explained."""

    group: str
    heading: tuple[str, str]
    value: Callable[[Method, int], float | None]
    digits: str
    help: str
    width: int
    detail: bool = False

    def text(self, method: Method, length: int) -> str:
        value = self.value(method, length)
        return ABSENT if value is None else format(value, self.digits)


def _quality(field: str) -> Callable[[Method, int], float | None]:
    return lambda method, length: getattr(method.quality.get(length, Quality()), field)


def _time(field: str, unit: float = 1.0) -> Callable[[Method, int], float | None]:
    def find(method: Method, length: int) -> float | None:
        value = getattr(method.time.get(length, Timing()), field)
        return None if value is None else value / unit

    return find


def _density(method: Method, length: int) -> float | None:
    measured = length in method.quality or length in method.time
    return method.density_at(length) if measured else None


_BOUND = "bound / attention: 100% is the limit"
COLUMNS: tuple[Column, ...] = (
    Column(
        "KV memory", ("KV", "kept"), _density, ".1%", "deployed mean KV density: tokens kept / all tokens", 6
    ),
    Column("KV memory", ("KV", "MiB"), _time("kv_bytes", MEBI), ".1f", "key-value cache as measured", 6),
    Column(
        "Quality",
        ("text", "NLL"),
        _quality("text_nll"),
        ".3f",
        "nats per token of unseen text, low is good",
        5,
    ),
    Column(
        "Quality", ("answer", "CE"), _quality("answer_ce"), ".3f", "nats per answer token, low is good", 6
    ),
    Column("Quality", ("exact", "match"), _quality("exact"), ".0%", "share of needles answered exactly", 5),
    Column("Prefill", ("prefill", "s"), _time("prefill_seconds"), ".2f", "whole model, the prompt", 7),
    Column(
        "Prefill", ("attn", "s"), _time("prefill_attention_seconds"), ".2f", "attention alone", 5, detail=True
    ),
    Column(
        "Prefill", ("bound", "s"), _time("prefill_bound_seconds"), ".2f", "least possible attention time", 5
    ),
    Column("Prefill", ("of", "bound"), _time("prefill_fraction"), ".0%", _BOUND, 5),
    Column("Decode", ("decode", "ms"), _time("decode_ms"), ".1f", "whole model, one step of the batch", 6),
    Column("Decode", ("attn", "ms"), _time("decode_attention_ms"), ".1f", "attention alone", 5, detail=True),
    Column("Decode", ("bound", "ms"), _time("decode_bound_ms"), ".1f", "reading the kept KV bytes once", 5),
    Column("Decode", ("of", "bound"), _time("decode_fraction"), ".0%", _BOUND, 5),
)


def columns_of(run: Run, *, detail: bool = True) -> tuple[Column, ...]:
    """The columns for which the run has at least one figure."""
    lengths = {*run.quality_lengths, *run.time_lengths}
    return tuple(
        column
        for column in COLUMNS
        if (detail or not column.detail)
        and any(column.value(method, length) is not None for method in run.main_methods for length in lengths)
    )


def sections(run: Run) -> list[tuple[int, tuple[Method, ...]]]:
    """Length and measured methods of each section of the table, lengths ascending."""
    lengths = sorted({*run.quality_lengths, *run.time_lengths})
    found = [(n, tuple(m for m in run.main_methods if n in m.quality or n in m.time)) for n in lengths]
    return [(length, rows) for length, rows in found if rows]


def footnotes(run: Run) -> list[str]:
    """What must stand beside the figures: needles, unprofiled lengths, batch sizes, what is absent."""
    notes = []
    needles = sorted({q.needles for m in run.main_methods for q in m.quality.values() if q.needles})
    if needles:
        notes.append(f"{'–'.join(str(n) for n in {needles[0]: 0, needles[-1]: 0})} needles per length.")
    unseen = [n for n in run.quality_lengths if run.lengths and n not in run.lengths]
    if unseen:
        notes.append(f"Never profiled: {', '.join(f'{n:,}' for n in unseen)} tokens.")
    for length in run.time_lengths:
        batches = sorted({t.batch for m in run.main_methods if (t := m.time.get(length)) and t.batch})
        if batches:
            notes.append(f"Times at {length:,} tokens: batch {', '.join(map(str, batches))}.")
    if not run.time_lengths:
        notes.append("Times and KV bytes were not measured in this run.")
    return notes


def _grid() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, header_style="bold")


def results_table(run: Run, *, width: int = 110) -> Table:
    """One table: a section per length, a row per method; below 110 columns the attention-only times go."""
    columns = columns_of(run, detail=width >= 110)
    table = _grid()
    table.add_column("", no_wrap=True, max_width=25, overflow="ellipsis")
    for column in columns:
        heading = Text("\n".join(column.heading), justify="right")
        table.add_column(heading, justify="right", no_wrap=True, min_width=column.width)
    for length, rows in sections(run):
        table.add_row(Text(f"{length:,} tokens", style="bold cyan"))
        for method in rows:
            style = {"plan": "bold", "dense": "dim"}.get(method.kind, "")
            table.add_row(f"  {method.label}", *(c.text(method, length) for c in columns), style=style)
        table.add_section()
    return table


def budget_table(run: Run) -> Table | None:
    """The plan and its baselines at the other budgets, a row each; None where there are none."""
    others = [method for method in run.methods if not method.main and method.quality]
    if not others:
        return None
    table, longest = _grid(), run.quality_lengths[-1]
    table.add_column("\nOther budgets", no_wrap=True, max_width=25, overflow="ellipsis")
    table.add_column(Text(f"kept at\n{longest:,}", justify="right"), justify="right", no_wrap=True)
    shown = [column for column in COLUMNS if column.group == "Quality"]
    for length in run.quality_lengths:
        for index in range(len(shown)):
            first, second = f"{length:,}" if index == 0 else "", QUALITY_SHORT[index]
            heading = Text(f"{first}\n{second}", justify="right")
            table.add_column(heading, justify="right", no_wrap=True, min_width=5)
    budget = None
    for method in sorted(others, key=lambda m: -(m.budget or 0)):
        if budget is not None and method.budget != budget:
            table.add_section()
        budget = method.budget
        cells = [column.text(method, length) for length in run.quality_lengths for column in shown]
        style = "bold" if method.kind == "plan" else ""
        table.add_row(method.label, COLUMNS[0].text(method, longest), *cells, style=style)
    return table


def print_results(run: Run, console: Console | None = None) -> None:
    """Print the table, the other budgets and the verdict."""
    console = console or Console()
    parts: list[RenderableType] = [results_table(run, width=console.width)]
    other = budget_table(run)
    if other is not None:
        parts.append(other)
    parts.append(Text(" ".join(footnotes(run)) + "\n", style="dim"))
    judged = verdict(run)
    parts.append(Text(judged.headline, style="bold"))
    findings = Table.grid(padding=(0, 1, 0, 0))
    for finding in judged.findings:
        colour = "dim" if finding.good is None else "green" if finding.good else "red"
        findings.add_row(Text(finding.mark, style=colour), finding.text)
    parts.append(Padding(findings, (0, 0, 1, 0)))
    console.print(Group(*parts))
