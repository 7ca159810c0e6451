"""Pictures of a run on a graph's nodes: a drawing, degrees, the training curve, mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from attlas.report.theme import SEQUENTIAL, Chart, data, titled

__all__ = ["confusion_figure", "curve_figure", "degree_figure", "drawing_figure", "target_figure"]

Row = Mapping[str, Any]
# Okabe and Ito (2008), and three more that stay apart from them.
CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#333399")
OTHER = "#9aa3ad"
BLUE, ORANGE = "#0072B2", "#D55E00"


def drawing_figure(record: Row) -> Chart:
    """The graph or a piece of it: colour = prediction, a dark ring = the label is another one."""
    found = record["drawing"]
    nodes = [_node(record, row) for row in found["nodes"]]
    lines = [
        {"x": nodes[a]["x"], "y": nodes[a]["y"], "x2": nodes[b]["x"], "y2": nodes[b]["y"]}
        for a, b in found["edges"]
    ]
    bare: dict[str, Any] = {"axis": None, "scale": alt.Scale(zero=False, nice=False)}
    x, y = alt.X("x:Q", **bare), alt.Y("y:Q", **bare)
    edges = (
        alt.Chart(data(lines))
        .mark_rule(color="#8a929c", opacity=0.45, strokeWidth=0.8)
        .encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    )
    points = (
        alt.Chart(data(nodes))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=x,
            y=y,
            color=_colour(record, nodes),
            stroke=alt.Stroke(
                "state:N",
                scale=alt.Scale(domain=["label differs", "test, right"], range=["#000000", "#ffffff"]),
                legend=None,
            ),
            strokeWidth=alt.StrokeWidth(
                "wrong:N", scale=alt.Scale(domain=[False, True], range=[0.6, 2.4]), legend=None
            ),
        )
    )
    count = record["summary"]["nodes"]
    what = f"all {count:,} nodes" if found["whole"] else f"{len(nodes)} of {count:,} nodes around one of them"
    ring = "; a black ring: the label is another class" if record["classes"] else ""
    return titled(
        (edges + points).properties(width=560, height=460),
        "The graph",
        f"{what}, coloured by prediction{ring}",
    )


def _node(record: Row, row: Row) -> dict[str, Any]:
    wrong = bool(record["classes"]) and row["label"] is not None and row["label"] != row["prediction"]
    return {
        "x": row["x"],
        "y": row["y"],
        "prediction": row["prediction"],
        "wrong": wrong,
        "state": "label differs" if wrong else "test, right",
    }


def _colour(record: Row, nodes: list[dict[str, Any]]) -> alt.Color:
    if not record["classes"]:
        return alt.Color("prediction:Q", scale=alt.Scale(scheme=SEQUENTIAL), title="prediction")
    there = {node["prediction"] for node in nodes}
    shown = [name for name in record["classes"] if name in there]
    colours = [CLASSES[place] if place < len(CLASSES) else OTHER for place in range(len(shown))]
    legend = alt.Legend(title=None, orient="bottom", columns=4, labelLimit=140, values=shown[: len(CLASSES)])
    return alt.Color("prediction:N", scale=alt.Scale(domain=shown, range=colours), legend=legend)


def degree_figure(summary: Row) -> Chart:
    """How many nodes have 0, 1, 2-3, 4-7, ... edges, in and out."""
    rows = [
        {"edges": _bin(place), "order": place, "nodes": count, "direction": title}
        for name, title in (("in_degree", "in"), ("out_degree", "out"))
        for place, count in enumerate(summary[name]["histogram"])
        if count
    ]
    most = max(row["order"] for row in rows)
    order = [_bin(place) for place in range(most + 1)]
    chart = (
        alt.Chart(data(rows))
        .mark_bar()
        .encode(
            x=alt.X(
                "edges:O",
                sort=order,
                scale=alt.Scale(domain=order),
                title="edges of a node",
                axis=alt.Axis(labelAngle=-40),
            ),
            xOffset=alt.XOffset("direction:N", sort=["in", "out"]),
            y=alt.Y(
                "nodes:Q",
                scale=alt.Scale(type="symlog"),
                title="nodes",
                axis=alt.Axis(format="~s", tickCount=5),
            ),
            color=alt.Color(
                "direction:N",
                scale=alt.Scale(domain=["in", "out"], range=[BLUE, ORANGE]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
        )
        .properties(width=420, height=240)
    )
    return titled(chart, "Degrees", "nodes by how many edges they have, in doubling steps")


def _bin(place: int) -> str:
    low, high = (0, 0) if place == 0 else (2 ** (place - 1), 2**place - 1)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def curve_figure(record: Row) -> Chart:
    """Training and validation loss against steps, and the step whose weights were taken."""
    rows = [
        {"step": row["step"], "loss": row[part], "nodes": title}
        for row in record["curve"]
        for part, title in (("train", "train"), ("valid", "valid"))
        if row[part] is not None
    ]
    lines = (
        alt.Chart(data(rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=25))
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, format=",d", tickMinStep=1)),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "nodes:N",
                scale=alt.Scale(domain=["train", "valid"], range=[BLUE, ORANGE]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
        )
    )
    taken = (
        alt.Chart(data([{"step": record["best_step"]}]))
        .mark_rule(color="#56606b", strokeDash=[4, 3])
        .encode(x="step:Q")
    )
    unit = "cross-entropy in nats" if record["classes"] else "squared error of the scaled target"
    return titled(
        (lines + taken).properties(width=420, height=240),
        "Training",
        f"{unit}; dashed: the weights that were taken",
    )


def confusion_figure(record: Row) -> Chart:
    """Test nodes by class and by what they were told to be, as shares of the class."""
    classes, counts = record["classes"], record["confusion"]
    rows = [
        {"class": classes[a], "told": classes[b], "share": count / max(1, sum(row)), "nodes": count}
        for a, row in enumerate(counts)
        for b, count in enumerate(row)
    ]
    side = min(40, max(14, 420 // len(classes)))
    base = alt.Chart(data(rows)).encode(
        x=alt.X("told:N", sort=classes, title="told to be", axis=alt.Axis(labelAngle=-40, labelLimit=110)),
        y=alt.Y("class:N", sort=classes, title="class", axis=alt.Axis(labelLimit=110)),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            scale=alt.Scale(scheme="blues", domain=[0, 1]),
            legend=alt.Legend(title="of the class", format=".0%"),
        )
    )
    chart: Chart = cells
    if side >= 28:
        chart = cells + base.mark_text(fontSize=11).encode(
            text=alt.Text("nodes:Q", format=",d"),
            color=alt.condition("datum.share > 0.55", alt.value("white"), alt.value("#1b1f24")),
        )
    size = side * len(classes)
    return titled(
        chart.properties(width=size, height=size), "Mistakes", "test nodes: their class against what was told"
    )


def target_figure(record: Row) -> Chart:
    """Targets of test nodes against their predictions; the line is where both are equal."""
    rows = [{"target": a, "prediction": b} for a, b in record["pairs"]]
    ends = [value for pair in record["pairs"] for value in pair]
    span = alt.Scale(domain=[min(ends), max(ends)], nice=True)
    equal = [{"target": value, "prediction": value} for value in (min(ends), max(ends))]
    x, y = alt.X("target:Q", scale=span), alt.Y("prediction:Q", scale=span)
    line = alt.Chart(data(equal)).mark_line(color="#8a929c", strokeDash=[4, 3]).encode(x=x, y=y)
    points = alt.Chart(data(rows)).mark_point(filled=True, size=30, opacity=0.6, color=BLUE).encode(x=x, y=y)
    chart = (line + points).properties(width=320, height=320)
    return titled(chart, "Mistakes", f"{len(rows)} test nodes; dashed: prediction = target")
