"""Pictures of what the methods cost: memory and time beside their bounds, time against length."""

from __future__ import annotations

from typing import Any

import altair as alt

from attlas.report.run import Method, Run
from attlas.report.theme import Chart, NotInRun, color, data, finish, length_axis, shape, top_axis

__all__ = ["cost", "times"]

# measured, its bound, unit, title, its name
COSTS = (
    ("kv_bytes", "kv_bytes_bound", 2**20, "KV cache", "MiB"),
    ("prefill_attention_seconds", "prefill_bound_seconds", 1, "Prefill, attention", "s"),
    ("decode_attention_ms", "decode_bound_ms", 1, "Decode step, attention", "ms"),
)
TOTALS = {"prefill_attention_seconds": "prefill_seconds", "decode_attention_ms": "decode_ms"}
TIMES = (
    ("prefill_seconds", None, 1, "Prefill, whole model", "s"),
    ("decode_ms", None, 1, "Decode step, whole model", "ms"),
    COSTS[1],
    COSTS[2],
)
ABSENT = "The run measured no times and no KV bytes."


def cost(run: Run) -> Chart:
    """KV bytes and attention time at one length, with the bound as a black tick.

    The length is the one with most methods, the longest of those.
    """
    timed = [m for m in run.main_methods if m.time]
    if not timed:
        raise NotInRun(ABSENT)
    length = max(run.time_lengths, key=lambda n: (sum(n in m.time for m in timed), n))
    methods = [m for m in timed if length in m.time]
    panels: list[Chart] = []
    for field, bound, unit, title, name in COSTS:
        rows = _rows(methods, field, bound, unit, (length,))
        if rows:
            panels.append(_cost_panel(rows, methods, title, name, first=not panels))
    if not panels:
        raise NotInRun(ABSENT)
    chart = alt.hconcat(*panels, spacing=22)
    return finish(chart, run, "Memory and time of attention", f"{_batches(run, length)}black tick: the bound")


def _batches(run: Run, length: int | None = None) -> str:
    times = [t for m in run.main_methods for n, t in m.time.items() if length in (None, n)]
    said = [] if length is None else [f"{length:,} tokens"]
    for name, sizes in (
        ("prefill", {t.prefill_batch for t in times if t.prefill_batch}),
        ("KV cache and decode", {t.batch for t in times if t.batch}),
    ):
        if sizes:
            said.append(f"{name} at batch {', '.join(map(str, sorted(sizes)))}")
    text = ", ".join([*said, ""])
    return text[:1].upper() + text[1:]


def _rows(
    methods: list[Method], field: str, bound: str | None, unit: float, lengths: tuple[int, ...]
) -> list[dict[str, Any]]:
    rows = []
    for method in methods:
        for length in lengths:
            timing = method.time.get(length)
            value = getattr(timing, field, None)
            if value is None:
                continue
            least = getattr(timing, bound) if bound else None
            rows.append(
                {
                    "method": method.label,
                    "length": length,
                    "value": value / unit,
                    "bound": None if least is None else least / unit,
                    "share": least / value if least is not None and value else None,
                    "total": getattr(timing, TOTALS[field]) if field in TOTALS else None,
                }
            )
    return rows


def _tips(rows: list[dict[str, Any]], title: str, unit: str) -> list[alt.Tooltip]:
    tips = [
        alt.Tooltip("method:N"),
        alt.Tooltip("length:Q", title="tokens", format=",d"),
        alt.Tooltip("value:Q", title=f"{title} ({unit})", format=",.3~f"),
    ]
    if any(row["bound"] is not None for row in rows):
        tips.append(alt.Tooltip("bound:Q", title=f"bound ({unit})", format=",.3~f"))
        tips.append(alt.Tooltip("share:Q", title="share of the bound", format=".0%"))
    if any(row["total"] is not None for row in rows):
        tips.append(alt.Tooltip("total:Q", title=f"whole model ({unit})", format=",.3~f"))
    return tips


def _cost_panel(
    rows: list[dict[str, Any]], methods: list[Method], title: str, unit: str, *, first: bool
) -> Chart:
    labels = alt.Axis(labelLimit=200, ticks=False, domain=False) if first else None
    order = [method.label for method in methods]
    base = alt.Chart(data(rows), title=title).encode(
        y=alt.Y("method:N", sort=order, title=None, axis=labels, scale=alt.Scale(domain=order)),
        tooltip=_tips(rows, title, unit),
    )
    bars = base.mark_bar(height={"band": 0.72}).encode(
        x=alt.X("value:Q", title=unit, axis=alt.Axis(tickCount=4, domain=False)),
        color=color(methods, legend=None),
    )
    ticks = base.mark_tick(color="#000000", stroke="#ffffff", strokeWidth=0.8, thickness=3.5, size=21)
    layer = bars + ticks.encode(x="bound:Q") + _shares(base, title)
    return layer.properties(width=235, height=26 * len(order))


def _shares(base: alt.Chart, title: str) -> alt.Chart:
    """The share of the bound behind each bar of a time; memory either meets its bound or is wrong."""
    text = base.mark_text(align="left", dx=6, fontSize=11, color="#78828c")
    shown = alt.Text("share:Q", format=".0%") if title != COSTS[0][3] else alt.value("")
    return text.encode(x="value:Q", text=shown)


def times(run: Run) -> Chart:
    """Time of prefill and of a decoding step against length: whole model, and attention with its bound."""
    methods = [m for m in run.main_methods if m.time]
    panels = []
    for field, bound, unit, title, name in TIMES:
        rows = _rows(methods, field, bound, unit, run.time_lengths)
        if rows:
            panels.append(_time_panel(rows, run.time_lengths, methods, title, name))
    if not panels:
        raise NotInRun("The run measured no times.")
    chart = alt.concat(*panels, columns=2, spacing=30).resolve_scale(color="shared", shape="shared")
    batches = _batches(run).removesuffix(", ")
    lines = "faint dashes: the bound of the same colour"
    return finish(chart, run, "Time against length", f"{batches}, {lines}" if batches else lines.capitalize())


def _time_panel(
    rows: list[dict[str, Any]], lengths: tuple[int, ...], methods: list[Method], title: str, unit: str
) -> Chart:
    base = alt.Chart(data(rows)).encode(
        x=length_axis(lengths),
        y=alt.Y("value:Q", scale=alt.Scale(zero=True), axis=top_axis(f"{title} ({unit})", "~r")),
        color=color(methods),
        tooltip=_tips(rows, title, unit),
    )
    layers: list[Any] = []
    if any(row["bound"] is not None for row in rows):
        least = base.encode(y="bound:Q")
        layers.append(least.mark_line(strokeWidth=1.5, strokeDash=[5, 4], opacity=0.55))
        # A line needs two lengths: a tick shows the bound where there is one.
        layers.append(least.mark_tick(thickness=2, size=18, opacity=0.55, orient="horizontal"))
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape(methods))
    return alt.layer(*layers, base.mark_line(strokeWidth=2), dots).properties(width=400, height=210)
