"""Pictures and a page of the comparison of length extrapolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from attlas._common.files import writable_folder, write_atomic
from attlas.report.extrapolation_tables import NAME, extrapolation_tables, load_extrapolation, uniform
from attlas.report.figures import png
from attlas.report.mixer_tables import labels, told
from attlas.report.page import ReportFiles
from attlas.report.static_figures import COLOURS, SHAPES
from attlas.report.static_page import comparison_page
from attlas.report.theme import Chart, data, length_axis, titled
from attlas.tune.progress import Progress, Silent

__all__ = ["loss_by_length", "sink_figure", "write_extrapolation"]

Row = Mapping[str, Any]
SIDE = {"width": 560, "height": 340}


def write_extrapolation(folder: str | Path, *, progress: Progress | None = None) -> ReportFiles:
    """Write `folder`/extrapolation/*.png and index.html from `folder`/extrapolation.json, atomically.

    The loss against the length, and the first token's share at both ends where there are maps; pictures of
    what is no longer in the result are removed. UsageError: the result is missing or damaged.
    """
    result = load_extrapolation(folder)
    target = writable_folder(Path(folder) / NAME)
    progress, found = progress or Silent(), _there(result)
    figures: dict[str, tuple[str, Chart]] = {}
    if found:
        figures["loss"] = ("Loss against length", loss_by_length(result))
    if any(row["sinks"] for row in found):
        figures["sinks"] = ("The first token's share", sink_figure(result))
    progress.stage("pictures", len(figures))
    written = {}
    for name, (label, chart) in figures.items():
        written[label] = write_atomic(target / f"{name}.png", png(chart, scale=1.5))
        progress.advance()
    for old in set(target.glob("*.png")) - set(written.values()):
        old.unlink()
    page = comparison_page(result, extrapolation_tables(result), list(written.items()))
    return ReportFiles(write_atomic(target / "index.html", page), tuple(written.values()))


def loss_by_length(result: Row) -> Chart:
    """Loss on the same bytes against the context, a line per mixer with the spread of the seeds."""
    lengths = result["settings"]["lengths"]
    rows = [
        {"mixer": name, "length": length} | _spread(at)
        for name, row in _named(result)
        for length, at in zip(lengths, row["losses"], strict=True)
    ]
    colour, shape = _look(result)
    base = alt.Chart(data(rows)).encode(x=length_axis(lengths), color=colour)
    y = alt.Y("value:Q", title="nats per byte", scale=alt.Scale(zero=False))
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(y=y, shape=shape)
    bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    lines = [
        f"the same last {lengths[0]} bytes with more and more context; lower is better",
        told(result["settings"]["seeds"]),
    ]
    chart = base.mark_line(strokeWidth=2).encode(y=y) + bars + marks
    return titled(chart.properties(**SIDE), f"Trained at {lengths[0]} bytes, tested beyond", lines)


def sink_figure(result: Row) -> Chart:
    """The first token's share at the trained and at the longest length; uniform attention as a tick."""
    settings = result["settings"]
    ends = (settings["lengths"][0], settings["lengths"][-1])
    rows = [
        {"mixer": name, "length": f"{length:,} tokens", "uniform": uniform(length)}
        | _spread(at["first_share"])
        for name, row in _named(result)
        for length, at in zip(ends, row["sinks"] or (), strict=False)
    ]
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("mixer:N", sort=list(_labels(result).values()), title=None),
        x=alt.X("value:Q", title="first token's share of attention", scale=alt.Scale(zero=True)),
    )
    bars = base.mark_bar(height=14).encode(color=alt.Color("mixer:N", scale=_scale(result), legend=None))
    spread = base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q"), x2="high:Q")
    ticks = base.mark_tick(color="black", thickness=2, height=20).encode(x="uniform:Q")
    chart = alt.layer(bars, spread, ticks).properties(width=250, height=26 * max(1, len(_labels(result))))
    panels = chart.facet(column=alt.Column("length:N", title=None, sort=[f"{n:,} tokens" for n in ends]))
    lines = [f"{told(settings['seeds'])}; black ticks: uniform attention", "bars far above them are a sink"]
    return titled(panels, "The first token's share", lines)


def _there(result: Row) -> list[Row]:
    return [row for row in result["rows"] if "absent" not in row and row["rise"]["mean"] is not None]


def _labels(result: Row) -> dict[str, str]:
    return labels([row["mixer"] for row in result["rows"]])


def _named(result: Row) -> Sequence[tuple[str, Row]]:
    return [(_labels(result)[row["mixer"]], row) for row in _there(result)]


def _spread(found: Row) -> dict[str, float]:
    sd = found["sd"] or 0.0
    return {"value": found["mean"], "low": found["mean"] - sd, "high": found["mean"] + sd}


def _scale(result: Row) -> alt.Scale:
    names = list(_labels(result).values())
    return alt.Scale(domain=names, range=[COLOURS[at % len(COLOURS)] for at in range(len(names))])


def _look(result: Row) -> tuple[alt.Color, alt.Shape]:
    names = list(_labels(result).values())
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolSize=90, labelLimit=260)
    shapes = alt.Scale(domain=names, range=[SHAPES[at % len(SHAPES)] for at in range(len(names))])
    return (
        alt.Color("mixer:N", scale=_scale(result), legend=legend),
        alt.Shape("mixer:N", scale=shapes, legend=legend),
    )
