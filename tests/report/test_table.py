"""The terminal table: what it shows, how wide it gets, what it leaves out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attlas.report.table import budget_table, columns_of, print_results


def printed(run, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_results(run, console)
    return console.file.getvalue()


def row(text: str, label: str, occurrence: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip().startswith(label + " ")]
    return lines[occurrence].strip().removeprefix(label).split()


def test_every_figure_of_the_plan(results, read_run):
    text = printed(read_run(results), 120)
    assert row(text, "Plan") == ["50.0%", "–", "3.045", "0.350", "85%"] + ["–"] * 8
    assert row(text, "Plan", 2) == [
        "50.0%", "90.0", "3.005", "0.490", "65%", "6.45", "2.00", "1.45", "72%", "76.0", "21.0", "14.5", "69%"
    ]  # fmt: skip
    assert row(text, "Dense", 2)[1] == "180.0"
    for length in ("1,024 tokens", "2,048 tokens", "4,096 tokens"):
        assert f"\n {length}" in text or f"\n{length}" in text
    assert "40 needles per length. Never profiled: 4,096 tokens. Times at 4,096 tokens: batch 8." in text


@pytest.mark.parametrize(("width", "detail"), [(100, False), (110, True), (120, True)])
def test_fits_the_terminal(results, read_run, width, detail):
    text = printed(read_run(results), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("attn" in text) is detail


def test_other_budgets(results, read_run):
    run = read_run(results)
    text = printed(run, 110)
    assert row(text, "Plan at 0.35")[:2] == ["35.0%", "3.050"]
    assert text.index("Plan at 0.35") < text.index("Uniform at 0.35") < text.index("Plan at 0.25")
    results["methods"] = [m for m in results["methods"] if "@" not in m["name"]]
    assert budget_table(read_run(results)) is None


def test_unmeasured_columns_go_and_are_named(results, read_run):
    for method in results["methods"]:
        method["time"] = {}
    run = read_run(results)
    assert {column.group for column in columns_of(run)} == {"KV memory", "Quality"}
    text = printed(run, 110)
    assert "Times and KV bytes were not measured in this run." in text
    assert "prefill" not in text


def test_missing_value_is_a_dash(results, read_run):
    results["methods"][1]["quality"]["1024"]["answer_ce"] = None
    assert row(printed(read_run(results), 110), "Plan")[:5] == ["50.0%", "–", "3.045", "–", "85%"]
