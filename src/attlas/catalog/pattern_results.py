"""The parts of RESULTS.md on comparisons: the tables that their commands print, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attlas.report.extrapolation_tables import extrapolation_tables
from attlas.report.mixer_tables import mixer_tables
from attlas.report.static_tables import StaticTable, static_tables

__all__ = ["extrapolation_section", "mixers_section", "patterns_section"]


def patterns_section(result: Mapping[str, Any], made_with: str) -> str:
    """Every table of the comparison of static patterns."""
    return _section(result, static_tables(result), made_with)


def mixers_section(result: Mapping[str, Any], made_with: str) -> str:
    """Every table of the comparison of token mixers."""
    return _section(result, mixer_tables(result), made_with)


def extrapolation_section(result: Mapping[str, Any], made_with: str) -> str:
    """The table of length extrapolation and attention sinks."""
    return _section(result, extrapolation_tables(result), made_with)


def _section(result: Mapping[str, Any], tables: Sequence[StaticTable], made_with: str) -> str:
    """The tables with what their columns mean and what is left out."""
    parts = [f"## {result['title']}\n"]
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.rows]
        cells = "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)
        parts.append(f"### {table.title}\n\n{cells}\n" + "".join(f"- {note}\n" for note in table.notes))
    return "\n".join([*parts, f"{made_with}\n"])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
