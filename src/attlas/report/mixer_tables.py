"""The comparison of token mixers as tables: for the terminal, the page and RESULTS.md alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from attlas._common.files import check_schema, read_json
from attlas.report.static_tables import StaticTable, print_tables

__all__ = ["NAME", "labels", "load_mixers", "mixer_tables", "print_mixers", "told"]

NAME, SCHEMA, VERSION = "mixers", "attlas.mixers", 1
Row = Mapping[str, Any]
MEASURES = (("forward_ms", "forward"), ("train_ms", "training"), ("train_bytes", "memory"))


def load_mixers(folder: str | Path) -> dict[str, Any]:
    """The result in `folder`; UsageError where it is missing or damaged."""
    path = Path(folder) / f"{NAME}.json"
    return check_schema(read_json(path, what="result"), SCHEMA, VERSION, source=str(path))


def print_mixers(result: Row, console: Console | None = None) -> None:
    """Print the tables."""
    print_tables(mixer_tables(result), console)


def mixer_tables(result: Row) -> tuple[StaticTable, ...]:
    """A table per task, and one of time and memory where they were measured."""
    tables = [_task_table(task, result["settings"]) for task in result["tasks"]]
    if result["speed"] is not None:
        tables.append(_speed_table(result["speed"], result["settings"]["reference"]))
    return tuple(tables)


def labels(names: Sequence[str]) -> dict[str, str]:
    """What a mixer is called: of "package.module:Class" the class, unless two would be called alike."""
    short = {name: name.rpartition(":")[2] for name in names}
    taken = list(short.values())
    return {name: one if taken.count(one) == 1 else name for name, one in short.items()}


def told(seeds: int) -> str:
    """What the figures of so many seeds are."""
    return f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"


def _task_table(task: Row, settings: Row) -> StaticTable:
    there = [row for row in task["rows"] if "absent" not in row]
    called = labels(list(dict.fromkeys(row["mixer"] for row in task["rows"])))
    several = len(settings["widths"]) > 1
    # Narrow enough for a terminal of 80 columns; the MLP's width is in the result.
    columns = ["mixer", *(["width"] if several else []), task["metric"], "rate", "params", "% of budget"]
    columns += ["MFLOP", "steps", "% of budget", "state KiB"]
    cells = []
    for row in there:
        cells.append(
            (
                called[row["mixer"]],
                *([str(row["width"])] if several else []),
                _score(row),
                f"{row['rate']:g}",
                f"{row['parameters']:,}",
                f"{100 * row['parameters'] / row['budget']:.1f}",
                f"{row['flops'] / 1e6:.3g}",
                str(row["steps"]),
                f"{100 * row['flops'] * row['steps'] / row['flops_budget']:.1f}",
                _kib(row["state_bytes"]),
            )
        )
    better = "higher" if task["higher_is_better"] else "lower"
    reference, rates = settings["reference"], ", ".join(f"{rate:g}" for rate in settings["rates"])
    notes = [
        f"{task['metric'].capitalize()} on held-out data, {better} is better: "
        f"{told(settings['seeds'])}, at the learning rate of {rates} that did best with a seed and data of "
        f"its own. Blocks: {', '.join(task['layers'])}.",
        f"Equal budgets: the width of the MLP makes the parameters of the blocks those of {reference} with "
        f"an MLP of {settings['ratio']} times the width; the steps make the FLOPs of training those of its "
        f"{task['steps']} steps of {task['batch']} sequences. MFLOP: forward and backward of one sequence "
        "as computed. A mixer that has not learnt the task within these FLOPs is judged by how fast it "
        "learns, not by what its state can hold. State: what the mixers of the network keep of one sequence "
        "of this length; none: they cannot go on token by token.",
    ]
    for row in there:
        if row["uncounted"]:
            notes.append(f"FLOPs of {called[row['mixer']]} lack {', '.join(row['uncounted'])}.")
        if row["diverged"]:
            lost = f"{row['diverged']} of {len(row['runs'])} seeds diverged"
            notes.append(f"{called[row['mixer']]}: {lost} and are left out of the mean.")
    own = [called[row["mixer"]] for row in there if ":" in row["mixer"]]
    if own:
        notes.append(
            f"FLOPs are those of torch's operations: what {', '.join(dict.fromkeys(own))} may compute in "
            "numpy, numba or other code outside of torch is not counted, and buys steps that the others "
            "do not get."
        )
    missed = [
        f"{called[row['mixer']]} at width {row['width']} {spent:.1%}"
        for row in there
        if abs((spent := row["flops"] * row["steps"] / row["flops_budget"]) - 1) > settings["tolerance"]
    ]
    if missed:
        notes.append(f"Of the FLOPs {', '.join(missed)}: whole steps come no nearer, train for more of them.")
    notes += dict.fromkeys(f"Left out: {row['absent']}." for row in task["rows"] if "absent" in row)
    title = f"{task['name']}: {task['says']}"
    return StaticTable(f"task-{task['name']}", title, tuple(columns), tuple(cells), tuple(notes))


def _score(row: Row) -> str:
    if row["mean"] is None:
        return "diverged"
    return f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ±{row['sd']:.3f}")


def _kib(size: int | None) -> str:
    return "none" if size is None else _short(size, 1024)


def _speed_table(speed: Row, reference: str) -> StaticTable:
    lengths = speed["lengths"]
    there = [row for row in speed["rows"] if any(value is not None for value in row["forward_ms"])]
    called = labels([row["mixer"] for row in speed["rows"]])
    columns = (
        *("mixer", "forward ms", "training ms", "MiB", "token us", "state KiB"),
        *(f"pays from: {name}" for _, name in MEASURES),
    )
    cells = []
    for row in there:
        pays, whole = speed["efficiency"].get(row["mixer"], {}), row["forward_ms"][-1] is not None
        token = row["decode_us"][-1]
        cells.append(
            (
                called[row["mixer"]],
                _short(row["forward_ms"][-1]),
                _short(row["train_ms"][-1]),
                _short(row["train_bytes"][-1], 2**20),
                "none" if whole and token is None else _short(token),
                _kib(row["state_bytes"][-1]) if whole else "",
                *(_pays(pays.get(name), lengths) for name, _ in MEASURES),
            )
        )
    notes = [
        f"One layer of width {speed['width']} with {speed['heads']} heads on one sequence, all mixers "
        "in turns in one process. Training: forward and backward; MiB: the most that torch holds for it; "
        "token: one more behind the sequence, from the state.",
        f"Pays from: the efficiency length of CAB (arXiv 2210.07661), from where on it costs less than "
        f"{reference}: the larger root between a fit a n^2 + b n + c of that one's cost and d n + e of the "
        f"mixer's, of times without the shortest length. In brackets: outside of {lengths[0]:,} to "
        f"{lengths[-1]:,} tokens, extrapolated. Where the fits do not cross: always, partly or never, it "
        "costs less at all, some or none of the measured lengths. Too few: lengths for a fit.",
    ]
    notes += [f"Left out: {row['absent']}." for row in speed["rows"] if "absent" in row]
    for row in there:
        if None in row["forward_ms"] and "absent" not in row:
            longest = f"{lengths[row['forward_ms'].index(None) - 1]:,} tokens"
            slow = f"a training call took more than {speed['slow']:.0f} s"
            notes.append(f"{called[row['mixer']]} was not measured beyond {longest}: {slow}.")
    return StaticTable(
        "speed",
        f"Time and memory of one layer at {lengths[-1]:,} tokens",
        columns,
        tuple(cells),
        tuple(notes),
    )


def _short(value: float | None, unit: float = 1.0) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


def _pays(found: Row | None, lengths: Sequence[int]) -> str:
    if found is None:
        return ""
    if "length" not in found:
        return str(found.get("cheaper", "too few"))
    text = f"{found['length']:,.0f}"
    return text if lengths[0] <= found["length"] <= lengths[-1] else f"({text})"
