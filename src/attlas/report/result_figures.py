"""Pictures of quality: needles by depth, quality against length, other budgets."""

from __future__ import annotations

from typing import Any

import altair as alt

from attlas.report.columns import other_items
from attlas.report.run import Method, Run
from attlas.report.theme import SEQUENTIAL, Chart, NotInRun, color, data, finish, length_axis, shape, top_axis

__all__ = ["budgets", "needles", "quality"]

MEASURES = (
    ("text_nll", "Text NLL", "nats per token, low is good", ".3f"),
    ("answer_ce", "Answer cross-entropy", "nats, low is good", ".3f"),
    ("exact", "Exact match", "share of needles, high is good", ".2f"),
)


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
        axis = top_axis(f"{title} ({unit})", ".0%" if field == "exact" else "~r")
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


def budgets(run: Run) -> Chart:
    """Answer cross-entropy and exact match against the KV share kept, one panel per length."""
    shown = [m for m in run.methods if m.kind in ("plan", "uniform") and m.quality]
    if len({m.budget for m in shown}) < 2:
        raise NotInRun("The run evaluated a single budget.")
    dense = run.method("dense")
    lines = [m for name in ("plan", "uniform") if (m := run.method(name))]
    name = {m.kind: m.label for m in lines}
    panels = []
    lengths = sorted({length for m in shown if not m.main for length in m.quality})
    # Where the other budgets had other items, their text is another one and its NLL compares with no level.
    measures = (MEASURES[2], MEASURES[1]) if other_items(run) else (MEASURES[2], MEASURES[1], MEASURES[0])
    for field, title, _, digits in measures:
        for length in lengths:
            rows = [
                {"method": name.get(m.kind, m.label), "kept": kept, "value": value}
                for m in shown
                if (kept := m.density_at(length)) is not None
                and (q := m.quality.get(length)) is not None
                and (value := getattr(q, field)) is not None
            ]
            level = getattr(dense.quality.get(length), field, None) if dense else None
            panels.append(_budget_panel(rows, level, lines, f"{title} at {length:,} tokens", digits))
    chart = alt.concat(*panels, columns=len(lengths), spacing=24)
    chart = chart.resolve_scale(color="shared", shape="shared")
    items = ", asked the main comparison's needles" if other_items(run) else ""
    return finish(chart, run, "Quality at smaller budgets", f"Grey dashes: the dense model{items}")


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
        y=alt.Y("value:Q", scale=scale, axis=top_axis(title, ".0%" if exact else "~r")),
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
