"""Writes RESULTS.md, docs/released.md and the README's table from `results/*.json`: generated, never edited.

python -m attlas.catalog.results [--check] [--root FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import read_json, write_atomic
from attlas.catalog.claim import OUTCOMES
from attlas.catalog.pattern_results import extrapolation_section, mixers_section, patterns_section
from attlas.catalog.released._page import released_page

__all__ = ["BEGIN", "END", "fill_region", "load_results", "main", "readme_table", "results_page", "table"]

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
ON_RELEASED = "attlas.released"  # a page of its own
Rows = Sequence[Sequence[str]]


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result of `folder` by file name without its suffix, sorted."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        value = read_json(path, what="result")
        if not isinstance(value, dict) or not isinstance(value.get("schema"), str):
            raise UsageError(f"result {path} has no schema; write it with the command that measures it")
        found[path.stem] = value
    return found


def table(header: Sequence[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _written(result: Mapping[str, Any]) -> str:
    """When the rule was written; `rule_changed` of a result says what became of it since."""
    first = "written before its results were seen"
    changed = result.get("rule_changed")
    return first if changed is None else f"{first}, {changed}"


def claim_section(result: Mapping[str, Any]) -> str:
    """One claim: says, measured, verdict, and every value with its spread."""
    rows = [
        [name, f"{row['mean']:.4g}", f"{row['sd']:.2g}", f"{row['least']:.4g}", f"{row['largest']:.4g}"]
        for name, row in result["summary"].items()
    ]
    return (
        f"## {result['title']} ({result['source']})\n\n"
        f"**Paper says**: {result['says']}\n\n"
        f"**Judged by** ({_written(result)}): {result['rule']}\n\n"
        f"**Measured here**: {result['measured']}\n\n"
        f"**Verdict: {result['verdict']}**\n\n"
        + table(["value", "mean", "sd", "least", "largest"], rows)
        + f"\n{len(result['runs'])} seeds, {result['seconds'] / 60:.0f} minutes. {_made_with(result)}\n"
    )


def run_section(result: Mapping[str, Any]) -> str:
    """One run of `attlas tune`: the methods by length."""
    model = result["model"]
    return (
        f"## attlas tune on {model['name']}\n\n"
        + quality_table(result)
        + ("\n" + time_table(result) if _timed(result) else "")
        + "".join(f"\n- {note}" for note in result.get("notes", ()))
        + f"\n\n{_made_with(result)}\n"
    )


def quality_table(result: Mapping[str, Any]) -> str:
    """Density, text NLL, answer cross-entropy and exact match of every method at every length."""
    rows = []
    for method in result["methods"]:
        for length in sorted(method["quality"], key=int):
            quality = method["quality"][length]
            rows.append(
                [
                    method.get("label", method["name"]),
                    length,
                    _number(method["density"].get(length), ".3f"),
                    _number(quality.get("text_nll"), ".3f"),
                    _number(quality.get("answer_ce"), ".3f"),
                    _number(quality.get("exact"), ".2f"),
                    str(quality.get("needles", "")),
                ]
            )
    return table(["method", "length", "KV density", "text NLL", "answer CE", "exact match", "needles"], rows)


def time_table(result: Mapping[str, Any]) -> str:
    """KV bytes, prefill and decode of every timed method, each with its fraction of the bound."""
    rows = []
    for method, length, figures in _timed(result):
        rows.append(
            [
                method.get("label", method["name"]),
                f"{length} x {figures['batch']}",
                _number(figures.get("kv_bytes"), ",.0f"),
                _number(figures.get("prefill_seconds"), ".2f"),
                _number(figures.get("prefill_fraction"), ".2f"),
                _number(figures.get("decode_ms"), ".1f"),
                _number(figures.get("decode_fraction"), ".2f"),
            ]
        )
    header = ["method", "length x batch", "KV bytes", "prefill s", "of bound", "decode ms", "of bound"]
    return table(header, rows)


def other_section(name: str, result: Mapping[str, Any]) -> str:
    """Any other result: its title, its rows if it has them, its notes."""
    text = f"## {result.get('title', name)}\n\n"
    if result.get("rows"):
        header = list(result.get("columns") or result["rows"][0])
        rows = [[_cell(row.get(column)) for column in header] for row in result["rows"]]
        text += table(header, rows)
    text += "".join(f"\n- {note}" for note in result.get("notes", ()))
    return text + f"\n\n{_made_with(result)}\n"


def results_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of RESULTS.md."""
    head = (
        "# Results\n\n"
        "Generated from `results/*.json` by `make results`; do not edit. Figures are of the machine named "
        "with them; ratios travel better than seconds.\n\n"
    )
    if not results:
        return head + "Nothing has been measured yet: `make demo`, `make claims`.\n"
    sections: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "attlas.run": run_section,
        "attlas.claim": claim_section,
        "attlas.patterns": lambda result: patterns_section(result, _made_with(result)),
        "attlas.mixers": lambda result: mixers_section(result, _made_with(result)),
        "attlas.extrapolation": lambda result: extrapolation_section(result, _made_with(result)),
    }
    parts = []
    for order in (*sections, None):
        for name, result in results.items():
            schema = result["schema"]
            if schema == order and order is not None:
                parts.append(sections[order](result))
            elif order is None and schema not in (*sections, ON_RELEASED):
                parts.append(other_section(name, result))
    return head + "\n".join(parts)


def readme_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The README's region: the demo's table and one short line per claim."""
    parts = [
        f"`attlas tune` on {result['model']['name']}, text and questions unseen in calibration:\n\n"
        + quality_table(result)
        for result in results.values()
        if result["schema"] == "attlas.run"
    ]
    claims = [result for result in results.values() if result["schema"] == "attlas.claim"]
    if claims:
        verdicts = Counter(result["verdict"] for result in claims)
        told = ", ".join(f"{verdicts[name]} {_PLURAL[name]}" for name in OUTCOMES if verdicts[name])
        seeds = min(len(result["runs"]) for result in claims)
        parts.append(
            f"Central claims of {len(claims)} papers, each measured again with at least {seeds} seeds by a "
            f"rule written before its results were seen: {told}. "
            "[RESULTS.md](RESULTS.md) says by how much, and names each rule that was worded again afterwards."
            "\n\n"
            + table(
                ["system", "source", "verdict"],
                [[result["title"], result["source"], result["verdict"]] for result in claims],
            )
        )
    if not parts:
        parts = ["Nothing has been measured yet: `make demo`, `make claims`.\n"]
    return "\n".join(parts)


_PLURAL = {
    "holds": "hold",
    "does not hold": "do not hold",
    "not shown at this scale": "are not shown at this scale",
}


def fill_region(text: str, content: str) -> str:
    """`text` with what stands between the two marks replaced by `content`."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(
            f"README.md needs the marks {BEGIN} and {END}; put them back where the table belongs"
        )
    return f"{before}{begin}\n{content}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check only tell whether they are up to date (exit code 1 if not)."""
    parser = argparse.ArgumentParser(
        description="Write RESULTS.md, docs/released.md and the README's table from results/."
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.root / "results")
        readme = options.root / "README.md"
        wanted = {
            options.root / "RESULTS.md": results_page(results),
            options.root / "docs" / "released.md": _released(results),
            readme: fill_region(readme.read_text(encoding="utf-8"), readme_table(results)),
        }
        stale = [path for path, text in wanted.items() if _content(path) != text]
        if options.check:
            for path in stale:
                print(f"{path} is out of date: run make results", file=sys.stderr)
            return int(bool(stale))
        for path in stale:
            write_atomic(path, wanted[path])
    except UsageError as error:
        print(f"attlas: {error}", file=sys.stderr)
        return 2
    return 0


def _released(results: Mapping[str, Mapping[str, Any]]) -> str:
    found = [result for result in results.values() if result["schema"] == ON_RELEASED]
    return released_page(found[0], _made_with(found[0])) if found else released_page(None)


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _timed(result: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    return [
        (method, length, method["time"][length])
        for method in result["methods"]
        for length in sorted(method.get("time") or {}, key=int)
    ]


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _made_with(result: Mapping[str, Any]) -> str:
    parts = []
    if result.get("command"):
        parts.append(f"Command: `{result['command']}`.")
    machine, made = result.get("machine") or {}, result.get("versions") or {}
    if machine:
        memory = machine.get("memory_bytes")
        size = f", {memory / 2**30:.0f} GiB" if memory else ""
        parts.append(f"Machine: {machine.get('processor')}, {machine.get('cores')} cores{size}.")
    if made:
        parts.append("Versions: " + ", ".join(f"{name} {number}" for name, number in made.items()) + ".")
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
