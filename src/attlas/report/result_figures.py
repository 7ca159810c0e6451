"""Pictures of what was measured: needles by depth, quality and cost against length, other budgets."""

from __future__ import annotations

from typing import Any

import altair as alt

from attlas.report.run import Method, Run
from attlas.report.theme import SEQUENTIAL, Chart, NotInRun, color, data, finish, length_axis, shape, top_axis

__all__ = ["budgets", "cost", "needles", "quality"]

MEASURES = (
    ("text_nll", "Text NLL", "nats per token, low is good", ".3f"),
    ("answer_ce", "Answer cross-entropy", "nats, low is good", ".3f"),
    ("exact", "Exact match", "share of needles, high is good", ".2f"),
)
COSTS = (
    ("kv_bytes", "kv_bytes_bound", 2**20, "KV cache", "MiB"),
    ("prefill_attention_seconds", "prefill_bound_seconds", 1, "Prefill, attention", "s"),
    ("decode_attention_ms", "decode_bound_ms", 1, "Decode step, attention", "ms"),
)
TOTALS = {"prefill_attention_seconds": "prefill_seconds", "decode_attention_ms": "decode_ms"}


def needles(run: Run) -> Chart:
    """Exact match by needle depth and length, dense, plan and uniform side by side."""
    methods = [m for name in ("dense", "plan", "uniform") if (m := run.method(name))]
    rows: list[dict[str, Any]] = [
        {
            "method": method.label,
            "length": f"{length:,}",
            "order": length,
            "depth": score.depth,
            "exact": score.exact,
            "answer": score.answer_ce,
            "n": score.n,
        }
        for method in methods
        for length, quality in method.quality.items()
        for score in quality.by_depth
        if score.exact is not None
    ]
    if not rows:
        raise NotInRun("The run recorded no needle results by depth.")
    lengths = [f"{n:,}" for n in sorted({row["order"] for row in rows})]
    base = alt.Chart().encode(
        x=alt.X(
            "length:O", sort=lengths, title="length in tokens", axis=alt.Axis(labelAngle=0, domain=False)
        ),
        y=alt.Y("depth:O", title="needle depth", axis=alt.Axis(format=".0%", domain=False)),
    )
    scale = alt.Scale(scheme=SEQUENTIAL, domain=[0, 1])
    legend = alt.Legend(title="exact match", format=".0%", gradientLength=160)
    cells = base.mark_rect(stroke="#ffffff", strokeWidth=1).encode(
        color=alt.Color("exact:Q", scale=scale, legend=legend),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("length:N", title="tokens"),
            alt.Tooltip("depth:Q", format=".0%"),
            alt.Tooltip("exact:Q", title="exact match", format=".1%"),
            alt.Tooltip("answer:Q", title="answer CE (nats)", format=".3f"),
            alt.Tooltip("n:Q", title="needles"),
        ],
    )
    text = base.mark_text(fontSize=11).encode(
        text=alt.Text("exact:Q", format=".0%"),
        color=alt.condition("datum.exact < 0.6", alt.value("#ffffff"), alt.value("#111111")),
    )
    depths = len({row["depth"] for row in rows})
    panel = (cells + text).properties(width=max(70 * len(lengths), 150), height=max(30 * depths, 120))
    header = alt.Header(title=None, labelFontSize=13)
    order = [method.label for method in methods]
    chart = panel.facet(column=alt.Column("method:N", sort=order, header=header), data=data(rows))
    return finish(chart, run, "Needles found, by depth and length", "0% depth is the start of the context")


def quality(run: Run) -> Chart:
    """Text NLL, answer cross-entropy and exact match against length, a line per method."""
    methods = [m for m in run.main_methods if m.quality]
    if not methods:
        raise NotInRun("The run recorded no quality figures.")
    lengths = run.quality_lengths
    pick = alt.selection_point(fields=["method"], bind="legend")
    panels = []
    for field, title, unit, digits in MEASURES:
        rows = [
            {"method": m.label, "length": n, "value": value, "kept": m.density_at(n)}
            for m in methods
            for n, q in m.quality.items()
            if (value := getattr(q, field)) is not None
        ]
        if not rows:
            continue
        scale = alt.Scale(domain=[0, 1]) if field == "exact" else alt.Scale(zero=False, nice=True)
        axis = top_axis(f"{title} ({unit})", ".0%" if field == "exact" else "~g")
        base = alt.Chart(data(rows)).encode(
            x=length_axis(lengths),
            y=alt.Y("value:Q", scale=scale, axis=axis),
            color=color(methods),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.12)),
            tooltip=[
                alt.Tooltip("method:N"),
                alt.Tooltip("length:Q", title="tokens", format=",d"),
                alt.Tooltip("value:Q", title=title, format=digits),
                alt.Tooltip("kept:Q", title="KV kept", format=".1%"),
            ],
        )
        dots = base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape(methods))
        panels.append((base.mark_line(strokeWidth=2) + dots).properties(width=262, height=230))
    panels[0] = panels[0].add_params(pick)
    chart = alt.hconcat(*panels, spacing=26).resolve_scale(color="shared", shape="shared")
    return finish(chart, run, "Quality against length", _lengths(run))


def _lengths(run: Run) -> str:
    profiled = ", ".join(f"{n:,}" for n in run.lengths)
    return f"Profiled at {profiled} tokens" if profiled else "All measured lengths"


def cost(run: Run) -> Chart:
    """KV bytes and attention time of prefill and decode per length, with the bound as a black tick."""
    methods = [m for m in run.main_methods if m.time]
    if not methods:
        raise NotInRun("The run measured no times and no KV bytes.")
    panels: list[Chart] = []
    for field, bound, unit, title, name in COSTS:
        rows = _cost_rows(methods, field, bound, unit)
        if rows:
            panels.append(_cost_panel(rows, methods, title, name, first=not panels))
    if not panels:
        raise NotInRun("The run measured no times and no KV bytes.")
    chart = alt.hconcat(*panels, spacing=22)
    batches = sorted({t.batch for m in methods for t in m.time.values() if t.batch})
    batch = f"Batch {', '.join(map(str, batches))}, " if batches else ""
    return finish(
        chart,
        run,
        "Memory and time of attention",
        f"{batch}black tick: the bound",
    )


def _cost_rows(methods: list[Method], field: str, bound: str, unit: float) -> list[dict[str, Any]]:
    rows = []
    for method in methods:
        for length, timing in sorted(method.time.items()):
            value, least = getattr(timing, field), getattr(timing, bound)
            total = getattr(timing, TOTALS[field]) if field in TOTALS else None
            if value is None:
                continue
            rows.append(
                {
                    "method": method.label,
                    "length": f"{length:,} tokens",
                    "order": length,
                    "value": value / unit,
                    "bound": None if least is None else least / unit,
                    "share": least / value if least is not None and value else None,
                    "total": total,
                }
            )
    return rows


def _cost_panel(
    rows: list[dict[str, Any]], methods: list[Method], title: str, unit: str, *, first: bool
) -> Chart:
    labels = alt.Axis(labelLimit=200, ticks=False, domain=False) if first else None
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("length:N"),
        alt.Tooltip("value:Q", title=f"{title} ({unit})", format=",.3~f"),
        alt.Tooltip("bound:Q", title=f"bound ({unit})", format=",.3~f"),
        alt.Tooltip("share:Q", title="share of the bound", format=".0%"),
    ]
    if any(row["total"] is not None for row in rows):
        tip.append(alt.Tooltip("total:Q", title=f"whole model ({unit})", format=",.3~f"))
    order = [method.label for method in methods]
    base = alt.Chart().encode(y=alt.Y("method:N", sort=order, title=None, axis=labels), tooltip=tip)
    bars = base.mark_bar(height={"band": 0.72}).encode(
        x=alt.X("value:Q", title=unit, axis=alt.Axis(tickCount=4, domain=False)),
        color=color(methods, legend=None),
    )
    ticks = base.mark_tick(color="#000000", stroke="#ffffff", strokeWidth=0.8, thickness=3.5, size=21).encode(
        x="bound:Q"
    )
    layer = (bars + ticks + _shares(base, title)).properties(width=235, height=26 * len(order))
    lengths = [row["length"] for row in sorted(rows, key=lambda row: row["order"])]
    if len(set(lengths)) == 1:
        return layer.properties(data=data(rows), title=f"{title}, {lengths[0]}")
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start")
    facet = alt.Row("length:N", sort=list(dict.fromkeys(lengths)), header=header)
    return layer.facet(row=facet, data=data(rows), title=title, spacing=8)


def _shares(base: alt.Chart, title: str) -> alt.Chart:
    """The share of the bound behind each bar of a time; memory either meets its bound or is wrong."""
    text = base.mark_text(align="left", dx=6, fontSize=11, color="#78828c")
    shown = alt.Text("share:Q", format=".0%") if title != COSTS[0][3] else alt.value("")
    return text.encode(x="value:Q", text=shown)


def budgets(run: Run) -> Chart:
    """Answer cross-entropy and exact match against the KV share kept, one panel per length."""
    shown = [m for m in run.methods if m.kind in ("plan", "uniform") and m.quality]
    if len({m.budget for m in shown}) < 2:
        raise NotInRun("The run evaluated a single budget.")
    dense = run.method("dense")
    lines = [m for name in ("plan", "uniform") if (m := run.method(name))]
    name = {m.kind: m.label for m in lines}
    panels = []
    for field, title, _, digits in (MEASURES[2], MEASURES[1], MEASURES[0]):
        for length in run.quality_lengths:
            rows = [
                {"method": name.get(m.kind, m.label), "kept": kept, "value": value}
                for m in shown
                if (kept := m.density_at(length)) is not None
                and (q := m.quality.get(length)) is not None
                and (value := getattr(q, field)) is not None
            ]
            level = getattr(dense.quality.get(length), field, None) if dense else None
            panels.append(_budget_panel(rows, level, lines, f"{title} at {length:,} tokens", digits))
    chart = alt.concat(*panels, columns=len(run.quality_lengths), spacing=24)
    chart = chart.resolve_scale(color="shared", shape="shared")
    return finish(chart, run, "Quality at smaller budgets", "Grey dashes: the dense model")


def _budget_panel(
    rows: list[dict[str, Any]], level: float | None, methods: list[Method], title: str, digits: str
) -> Chart:
    exact = title.startswith("Exact")
    scale = alt.Scale(domain=[0, 1]) if exact else alt.Scale(zero=False, nice=True)
    kept = alt.X(
        "kept:Q",
        title="KV kept",
        axis=alt.Axis(format=".0%", tickCount=5, grid=False),
        scale=alt.Scale(zero=False, padding=12),
    )
    base = alt.Chart(data(rows)).encode(
        x=kept,
        y=alt.Y("value:Q", scale=scale, axis=top_axis(title, ".0%" if exact else "~g")),
        color=color(methods),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("kept:Q", title="KV kept", format=".1%"),
            alt.Tooltip("value:Q", title=title, format=digits),
        ],
    )
    layers: list[Any] = []
    if level is not None:
        rule = alt.Chart(data([{"level": level}])).mark_rule(
            strokeDash=[5, 4], color="#767676", strokeWidth=1.5
        )
        tip = alt.Tooltip("level:Q", title=f"dense: {title}", format=digits)
        layers.append(rule.encode(y="level:Q", tooltip=tip))
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(shape=shape(methods))
    return alt.layer(*layers, base.mark_line(strokeWidth=2), dots).properties(width=255, height=150)
