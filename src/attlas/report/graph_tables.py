"""A graph, and a run on its nodes, as tables: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from attlas.report.static_tables import StaticTable, print_tables

__all__ = ["graph_run_tables", "headline", "print_graph_run", "print_summary", "summary_tables"]

NONE = "–"
Row = Mapping[str, Any]
UNITS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "cross_entropy": "cross-entropy",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
}
BASELINES = {"constant": "one answer for all", "linear": "linear, no messages"}
MOST_CLASSES = 20


def print_summary(summary: Row, types: Sequence[str] = (), console: Console | None = None) -> None:
    """Print what a graph is like."""
    print_tables(summary_tables(summary, types), console)


def print_graph_run(record: Row, console: Console | None = None) -> None:
    """Print the scores of a run, without what stands in its page alone."""
    print_tables((_scores(record),), console)


def graph_run_tables(record: Row) -> tuple[StaticTable, ...]:
    """Scores, classes one by one, the graph, how the net was made."""
    found = [_scores(record)]
    if record["confusion"] and len(record["classes"]) <= MOST_CLASSES:
        found.append(_classes(record))
    return (*found, *summary_tables(record["summary"], record["types"]), _made(record))


def headline(record: Row) -> str:
    """The run in a sentence: what it reaches on test nodes, and what is reached without messages."""
    name = "accuracy" if record["classes"] else "mae"
    model, count = record["settings"]["model"], record["labelled"]["test"]
    own = record["scores"]["test"][name]
    linear, constant = (record["baselines"][one][name] for one in ("linear", "constant"))
    if record["classes"]:
        return (
            f"{model} tells {own:.1%} of {count:,} test nodes right; a linear model without messages "
            f"{linear:.1%}, the commonest class {constant:.1%}."
        )
    return (
        f"{model} is off by {own:.3g} on average over {count:,} test nodes; a linear model without messages "
        f"by {linear:.3g}, the mean by {constant:.3g}."
    )


def summary_tables(summary: Row, types: Sequence[str] = ()) -> tuple[StaticTable, ...]:
    """Size and shape of a graph, its degrees, and its types where it has some."""
    found = [_facts(summary), _degrees(summary)]
    if summary["types"]:
        names = list(types) or [str(kind) for kind in range(len(summary["types"]))]
        rows = tuple((name, f"{count:,}") for name, count in zip(names, summary["types"], strict=True))
        found.append(StaticTable("types", "Types of edges", ("type", "edges"), rows, ()))
    return tuple(found)


def _facts(summary: Row) -> StaticTable:
    rows = []
    if summary["bipartite"]:
        rows += [("senders", f"{summary['senders']:,}"), ("receivers", f"{summary['receivers']:,}")]
    else:
        rows.append(("nodes", f"{summary['nodes']:,}"))
    rows.append(("edges", f"{summary['edges']:,}"))
    if summary["graphs"] > 1:
        rows.append(("graphs of the batch", f"{summary['graphs']:,}"))
    rows.append(("density", f"{summary['density']:.2g}"))
    if not summary["bipartite"]:
        parts = summary["components"]
        back = NONE if summary["reciprocal"] is None else f"{summary['reciprocal']:.0%}"
        rows += [
            ("directed", "yes" if summary["directed"] else "no"),
            ("edges with a way back", back),
            ("loops", f"{summary['loops']:,}"),
            ("isolated nodes", f"{summary['isolated']:,}"),
            ("components", f"{parts['count']:,}, the largest of {parts['largest']:,} nodes"),
        ]
    rows.append(("equal edges", f"{summary['equal_edges']:,}"))
    features = summary["features"]
    if features:
        shape = " x ".join(map(str, features["shape"])) or "1"
        rows.append(("edge features", f"{shape} {features['dtype']}"))
    return StaticTable("graph", "The graph", ("", "value"), tuple(rows), ())


def _degrees(summary: Row) -> StaticTable:
    rows = []
    for name, title in (("in_degree", "into a node"), ("out_degree", "out of a node")):
        one = summary[name]
        if one is None:
            rows.append((title, *[NONE] * 6))
            continue
        quantiles = (f"{one[part]:,}" for part in ("p50", "p90", "p99", "max"))
        rows.append((title, f"{one['mean']:.2f}", *quantiles, f"{one['top']:.0%}"))
    return StaticTable(
        "degrees",
        "Edges of a node",
        ("edges", "mean", "median", "90\u00a0%", "99\u00a0%", "most", "top\u00a01\u00a0%"),
        tuple(rows),
        ("Top 1 %: share of all edges at the hundredth of the nodes that have most.",),
    )


def _scores(record: Row) -> StaticTable:
    splits = [name for name in ("train", "valid", "test") if record["scores"][name]]
    measures = [name for name in UNITS if name in record["scores"]["test"]]
    model = record["settings"]["model"]
    rows = [
        (f"{model}, {split}", f"{record['labelled'][split]:,}", *_cells(record["scores"][split], measures))
        for split in splits
    ]
    rows += [
        (f"{BASELINES[name]}, test", f"{record['labelled']['test']:,}", *_cells(found, measures))
        for name, found in record["baselines"].items()
    ]
    return StaticTable(
        "scores",
        "Scores",
        ("", "nodes", *(UNITS[name] for name in measures)),
        tuple(rows),
        (
            f"Split: {record['split']}. Weights of step {record['best_step']:,} of "
            f"{record['settings']['steps']:,}, chosen by the validation loss where there are such nodes. One "
            "run with one seed: repeat it with others (--seed) before small differences are believed.",
            "One answer for all: the commonest class or the mean. Linear: logistic or ridge regression of "
            "the same features and encodings, node by node; what the net has beyond it comes from messages "
            "and depth.",
        ),
    )


def _cells(found: Row | None, measures: Sequence[str]) -> list[str]:
    return [f"{found[name]:.3f}" if found and name in found else NONE for name in measures]


def _classes(record: Row) -> StaticTable:
    counts = record["confusion"]
    rows = []
    for place, name in enumerate(record["classes"]):
        there, told = sum(counts[place]), sum(row[place] for row in counts)
        right = counts[place][place]
        rows.append(
            (
                name,
                f"{there:,}",
                f"{right / there:.0%}" if there else NONE,
                f"{right / told:.0%}" if told else NONE,
                _mistaken(record["classes"], counts[place], place),
            )
        )
    return StaticTable(
        "classes",
        "Test nodes class by class",
        ("class", "nodes", "found", "right when told", "most often taken for"),
        tuple(rows),
        (),
    )


def _mistaken(classes: Sequence[str], row: Sequence[int], own: int) -> str:
    others = [(count, classes[place]) for place, count in enumerate(row) if place != own and count]
    return f"{max(others)[1]} ({max(others)[0]:,})" if others else NONE


def _made(record: Row) -> StaticTable:
    settings = record["settings"]
    names = record["feature_names"]
    shown = (
        "log degrees"
        if names is None
        else f"{len(names)}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
    )
    rows = (
        ("layers", f"{settings['depth']} x {settings['model']}, width {settings['width']}"),
        ("parameters", f"{record['parameters']:,}"),
        ("features", shown),
        *([("reads of edges", _edges(record["edges"]))] if "edges" in record else []),
        ("encodings", settings["encodings"] or "none"),
        ("steps", _steps(settings)),
        ("seed", str(settings["seed"])),
        ("time", f"{record['seconds']:.0f} s"),
    )
    return StaticTable("made", "The net", ("", "value"), rows, ())


def _edges(found: Row) -> str:
    unread = " and ".join(found["unread"])
    return f"{found['reads']}; their {unread} are not read" if unread else found["reads"]


def _steps(settings: Row) -> str:
    size = settings["batch"]
    each = f"{size:,} nodes, fan-out {settings['fanout']}" if size else "the whole graph"
    return f"{settings['steps']:,} of {each}"
