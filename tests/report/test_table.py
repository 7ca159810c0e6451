"""The terminal tables: what they show at any width, what they leave out, what they say beside it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attlas.report.columns import COLUMNS, by_length_tables, columns_of, quality_table, sections
from attlas.report.table import print_results

GROUPS = ("KV memory", "Quality", "Prefill", "Decode")
MEMORY = ["50.0%", "90.4", "+0.4%"]
QUALITY = ["3.005", "0.490", "65%"]
PREFILL, DECODE = ["6.45", "2.00", "1.45", "72%"], ["76.0", "21.0", "14.5", "69%"]


def printed(run, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_results(run, console)
    return console.file.getvalue()


def rows(text: str, label: str) -> list[list[str]]:
    """The cells of every table row of a method, from the top."""
    lines = [line for line in text.splitlines() if line.strip().startswith(label + "  ")]
    return [line.strip().removeprefix(label).split() for line in lines]


@pytest.mark.parametrize(
    ("width", "plan_rows"),
    [
        (140, [MEMORY + QUALITY + PREFILL + DECODE]),
        (100, [MEMORY + QUALITY, PREFILL + DECODE]),
        (80, [MEMORY + QUALITY, PREFILL + DECODE]),
        (70, [MEMORY + QUALITY, PREFILL, DECODE]),
    ],
)
def test_no_width_loses_a_figure(results, read_run, width, plan_rows):
    next(m for m in results["methods"] if m["name"] == "mean_attention")["label"] = (
        "profiled by mean attention"
    )
    run = read_run(results)
    text = printed(run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    found = rows(text, "Plan")
    tables, remaining = len(plan_rows), len(run.time_lengths)
    assert [found[table * remaining + remaining - 1] for table in range(tables)] == plan_rows
    cells = text.split()
    for length, methods in sections(run, columns_of(run, GROUPS)):
        for method in methods:
            for column in COLUMNS:
                if not column.page_only:
                    assert column.text(method, length) in cells, (width, method.name, length, column.heading)
    for table in by_length_tables(run):
        for method in table.methods:
            for length in table.lengths:
                assert all(column.text(method, length) in cells for column in table.columns)


def test_notes_beside_the_figures(results, read_run):
    text = " ".join(printed(read_run(results), 140).split())
    assert "40 needles per length. Never profiled: 4,096 tokens." in text
    assert "KV bytes and decoding: batch 8, prefill: batch 1." in text
    assert "two facts of one kind, and the question tells them apart by their owner, 16 needles" in text


def test_two_keys(results, read_run):
    two_keys, _ = by_length_tables(read_run(results))
    assert [method.name for method in two_keys.methods] == ["dense", "plan", "uniform"]
    assert two_keys.lengths == (1024,)
    assert [column.text(two_keys.methods[1], 1024) for column in two_keys.columns] == ["0.700", "62%"]
    for method in results["methods"]:
        method.pop("multi_key", None)
    assert [table.title for table in by_length_tables(read_run(results))] == ["Other budgets"]


def test_other_budgets(results, read_run):
    run = read_run(results)
    text = printed(run, 140)
    assert rows(text, "Plan at 0.35")[0][:2] == ["35.0%", "3.050"]
    assert text.index("Plan at 0.35") < text.index("Uniform at 0.35") < text.index("Plan at 0.25")
    assert "text NLL does not compare" not in text
    results["methods"] = [m for m in results["methods"] if "@" not in m["name"]]
    assert [table.title for table in by_length_tables(read_run(results))] == ["Two facts of one kind"]


def test_other_budgets_on_other_items_are_said(results, read_run):
    for method in results["methods"]:
        if "@" in method["name"]:
            method["quality"] = {"1024": method["quality"]["1024"] | {"needles": 20}}
    _, budgets = by_length_tables(read_run(results))
    assert budgets.lengths == (1024,)
    assert budgets.note == (
        "Other budgets, 20 needles per length. These are other items than the main comparison's: text NLL "
        "does not compare with it."
    )


def test_unmeasured_columns_go_and_are_named(results, read_run):
    for method in results["methods"]:
        method["time"] = {}
    run = read_run(results)
    assert {column.group for column in columns_of(run, GROUPS, page=True)} == {"KV memory", "Quality"}
    text = printed(run, 110)
    assert "Times and KV bytes were not measured in this run." in text
    assert "prefill" not in text


def test_missing_value_is_a_dash(results, read_run):
    results["methods"][1]["quality"]["1024"]["answer_ce"] = None
    run = read_run(results)
    assert rows(printed(run, 140), "Plan")[0][2:6] == ["+0.4%", "3.045", "–", "85%"]
    assert [c.text(run.method("plan"), 1024) for c in quality_table(run).columns] == [
        "50.0%", "3.045", "–", "85%"
    ]  # fmt: skip


def test_a_label_is_no_markup(results, read_run):
    results["methods"][1]["label"] = "[bold]plan[/nonsense]"
    assert "Better than" in printed(read_run(results), 140)
    assert "[bold]plan[/nonsense]" in printed(read_run(results), 140)
