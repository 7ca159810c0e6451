"""The page docs/released.md, from results/released.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

__all__ = ["HEAD", "released_page"]

HEAD = """# What the released code really computes

For some systems the published code and the published formula are two different things. Attlas builds the
formula, by default unless the entry says otherwise, and keeps the released behaviour behind a switch, so that
both can be used, compared and cited. This page says where they differ, which file shows it, and by how much.
Every figure is computed by `{command}` with {seeds} seeds on small inputs; it says nothing about results that
were obtained with either form.

Repositories change. Each entry names the file, and where it is known the commit, that was read, and whether
that file was run beside the form that is here.
"""


def released_page(result: Mapping[str, Any] | None, made_with: str = "") -> str:
    """The text of the page; without a result it says that nothing has been measured."""
    note = "\n<!-- Generated from results/released.json by `make results`; do not edit. -->\n"
    if result is None or not result["entries"]:
        empty = "# What the released code really computes\n"
        return f"{empty}{note}\nNothing has been measured yet: `python -m attlas.catalog.released`.\n"
    entries = sorted(result["entries"], key=lambda entry: entry["system"])
    parts = [HEAD.format(command=result["command"], seeds=result["seeds"]) + note, _contents(entries)]
    for _, group in groupby(entries, key=lambda entry: entry["system"]):
        own = list(group)
        parts.append(f"## {own[0]['title']} ({own[0]['source']})\n")
        parts += [_section(entry) for entry in own]
    return "\n".join([*parts, f"---\n\n{made_with}\n"])


def _contents(entries: list[Mapping[str, Any]]) -> str:
    lines = ["| system | finding | file |\n| --- | --- | --- |\n"]
    for entry in entries:
        cells = (f"`{entry['system']}`", entry["point"], f"`{entry['repository']}`, `{entry['file']}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(lines)


def _section(entry: Mapping[str, Any]) -> str:
    commit = f" at commit `{entry['commit'][:12]}`" if entry["commit"] else ""
    rows = "".join(
        f"| {name} | {row['mean']:.4g} | {row['sd']:.2g} |\n" for name, row in entry["summary"].items()
    )
    return (
        f"### {entry['point']}\n\n"
        f"**File**: `{entry['file']}`, `{entry['function']}`, in {entry['repository']}{commit}.\n\n"
        f"**The paper**: {entry['paper']}\n\n"
        f"**The file**: {entry['release']}\n\n"
        f"**Consequence**: {entry['consequence']}\n\n"
        f"**Measured here**: {entry['measured']}\n\n"
        f"**Both forms here**: {entry['switch']} {entry['compared']}\n\n"
        f"| figure | mean | sd |\n| --- | --- | --- |\n{rows}"
    )
