"""Pictures of token mixers: result against state, loss against FLOPs, time and memory against length."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from attlas.report.mixer_tables import labels, told
from attlas.report.static_figures import COLOURS, SHAPES
from attlas.report.theme import Chart, data, titled

__all__ = ["frontier_figure", "length_figure", "loss_figure"]

Row = Mapping[str, Any]
SIDE = {"width": 560, "height": 340}
PANELS = (
    ("forward_ms", 1.0, "forward, ms"),
    ("train_ms", 1.0, "forward and backward, ms"),
    ("train_bytes", 2.0**20, "memory of training, MiB"),
    ("decode_us", 1.0, "one more token, microseconds"),
)


def _names(result: Row) -> dict[str, str]:
    return labels(result["settings"]["mixers"])


def _look(result: Row, *, columns: int = 4) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape by mixer, the same in every picture; their legends merge."""
    names = list(_names(result).values())
    legend = alt.Legend(title=None, orient="bottom", columns=columns, symbolSize=90, labelLimit=260)
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(names))]
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]
    return (
        alt.Color("mixer:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("mixer:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def _told(task: Row) -> list[Row]:
    return [row for row in task["rows"] if "absent" not in row and row["mean"] is not None]


def frontier_figure(result: Row, task: Row) -> Chart:
    """The task's result against the bytes of the state, a point per mixer and width (as BASED)."""
    names, (colour, shape) = _names(result), _look(result)
    rows = [
        {
            "mixer": names[row["mixer"]],
            "kib": row["state_bytes"] / 1024,
            "score": row["mean"],
            "low": row["mean"] - (row["sd"] or 0.0),
            "high": row["mean"] + (row["sd"] or 0.0),
        }
        for row in _told(task)
        if row["state_bytes"]
    ]
    wide = [*(row["low"] for row in rows), *(row["high"] for row in rows)]
    domain = [0.0, max(1.0, *wide)] if task["metric"] == "accuracy" else alt.Undefined
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "kib:Q", title="state of one sequence, KiB", scale=alt.Scale(type="log", nice=False, padding=24)
        ),
        color=colour,
    )
    y = alt.Y("score:Q", title=task["metric"], scale=alt.Scale(domain=domain, zero=False))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(y=y, shape=shape)
    spread = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    layers: list[alt.Chart] = [spread, points]
    if len(result["settings"]["widths"]) > 1:
        layers.insert(0, base.mark_line(strokeWidth=1.5).encode(y=y, order="kib:Q"))
    better = "higher" if task["higher_is_better"] else "lower"
    lines = [
        f"{task['says']}; {better} is better",
        f"{told(result['settings']['seeds'])} at equal parameters and FLOPs",
    ]
    return titled(alt.layer(*layers).properties(**SIDE), f"{task['name']}: result against state", lines)


def loss_figure(result: Row, task: Row) -> Chart:
    """Mean training loss over the seeds against the FLOPs spent; of several widths the largest."""
    names, (colour, shape) = _names(result), _look(result)
    width = max(result["settings"]["widths"])
    rows = []
    for row in _told(task):
        curves = [run["curve"] for run in row["runs"] if "curve" in run]
        if row["width"] == width:
            rows += [
                {
                    "mixer": names[row["mixer"]],
                    "gflop": at[0][0] / 1e9,
                    "loss": statistics.fmean(p[1] for p in at),
                }
                for at in zip(*curves, strict=True)
            ]
    base = alt.Chart(data(rows)).encode(
        x=alt.X("gflop:Q", title="GFLOP of training"),
        y=alt.Y("loss:Q", title="training loss", scale=alt.Scale(zero=task["metric"] == "accuracy")),
        color=colour,
    )
    ends = [
        [row for row in rows if row["mixer"] == name][-1]
        for name in names.values()
        if any(row["mixer"] == name for row in rows)
    ]
    last = alt.Chart(data(ends)).encode(x="gflop:Q", y="loss:Q", color=colour, shape=shape)
    chart = base.mark_line(strokeWidth=2, opacity=0.85) + last.mark_point(filled=True, size=90, opacity=1)
    size = f", width {width}" if len(result["settings"]["widths"]) > 1 else ""
    seeds = result["settings"]["seeds"]
    lines = f"{task['says']}; {f'mean over {seeds} seeds' if seeds > 1 else 'one seed'}{size}"
    return titled(chart.properties(**SIDE), f"{task['name']}: loss against FLOPs", lines)


def length_figure(result: Row) -> Chart:
    """Time, memory and the time of one more token against the length, on doubling axes."""
    speed = result["speed"]
    panels = [_panel(result, speed["rows"], speed["lengths"], *panel) for panel in PANELS]
    there = [panel for panel in panels if panel is not None]
    pairs = [alt.hconcat(*there[at : at + 2], spacing=36) for at in range(0, len(there), 2)]
    lines = f"one layer of width {speed['width']} with {speed['heads']} heads, one sequence"
    return titled(alt.vconcat(*pairs, spacing=24), "Time and memory against length", lines)


def _panel(
    result: Row, rows: Sequence[Row], lengths: Sequence[int], field: str, unit: float, title: str
) -> alt.LayerChart | None:
    names, (colour, shape) = _names(result), _look(result)
    points = [
        {"mixer": names[row["mixer"]], "length": length, "value": value / unit}
        for row in rows
        for length, value in zip(lengths, row[field], strict=True)
        if value
    ]
    if not points:
        return None
    domain = [lengths[0] * 0.9, lengths[-1] * 1.1]
    base = alt.Chart(data(points), title=title).encode(
        x=alt.X(
            "length:Q",
            scale=alt.Scale(type="log", base=2, domain=domain, nice=False),
            axis=alt.Axis(values=list(lengths), format=",d", grid=False),
            title="length in tokens",
        ),
        y=alt.Y("value:Q", scale=alt.Scale(type="log"), title=None),
        color=colour,
    )
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape)
    return (base.mark_line(strokeWidth=2) + marks).properties(width=380, height=260)
