"""Pictures of the plan: the map of spans, the front from which it was chosen, its distinct rules drawn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np

from attlas._common.errors import UsageError
from attlas.pattern import Pattern, parse
from attlas.report.run import Run
from attlas.report.theme import SEQUENTIAL, Chart, NotInRun, data, finish

__all__ = ["pareto", "pattern_pictures", "picture_runs", "span_map", "span_tokens"]

SHOWN_RULES = 8
PIXELS = 64


def span_tokens(rule: Pattern, length: int) -> int:
    """Tokens that a head keeps at a length: sink + window, at most the length itself; all for other rules."""
    normal = rule.bind(N=length).sink_window()
    if normal is None or normal[1] is None:
        return length
    sink, window = normal
    return min(int(sink) + int(window), length)  # type: ignore[arg-type]


def span_map(run: Run, length: int | None = None) -> Chart:
    """Layer × KV-head map of the share of the context that a head keeps, length chosen by a radio button.

    `length` is the one shown first (and in the still picture); default: the longest.
    """
    if not run.rules:
        raise NotInRun("The run recorded no rules of the plan.")
    lengths = list(run.plan_lengths)
    if not lengths:
        raise NotInRun("The run names no length at which spans could be shown.")
    start = lengths[-1] if length is None else length
    if start not in lengths:
        raise ValueError(f"length must be one of {lengths}, got {start!r}")
    rows = _span_rows(run, lengths)
    heads, layers = max(len(row) for row in run.rules), len(run.rules)
    choice = alt.param(
        name="tokens",
        value=start,
        bind=alt.binding_radio(options=lengths, labels=[f"{n:,}" for n in lengths], name="Length in tokens "),
    )
    legend = alt.Legend(title=["share of tokens", "kept"], format=".0%", gradientLength=90)
    scale = alt.Scale(scheme=SEQUENTIAL, domain=[0, 1])
    cell = min(44, max(12, 870 // layers))
    width, height = max(cell * layers, 240), max(min(cell, 32, 560 // heads) * heads, 60)
    chart = (
        alt.Chart(data(rows))
        .mark_rect(stroke="#ffffff", strokeWidth=1)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, domain=False, labelOverlap=True)),
            y=alt.Y("head:O", title="KV head", axis=alt.Axis(domain=False, labelOverlap=True)),
            color=alt.Color("density:Q", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("head:O", title="KV head"),
                alt.Tooltip("rule:N"),
                alt.Tooltip("alpha:Q", format=","),
                alt.Tooltip("beta:Q", format=".3~f"),
                alt.Tooltip("span:Q", title="span in tokens", format=",d"),
                alt.Tooltip("density:Q", title="share kept", format=".1%"),
            ],
        )
        .add_params(choice)
        .transform_filter("datum.length == tokens")
        .properties(width=width, height=height)
    )
    return finish(
        chart, run, "Span of every layer and KV head", f"Share of the context kept, at {start:,} tokens"
    )


def _span_rows(run: Run, lengths: list[int]) -> list[dict[str, Any]]:
    patterns = _patterns(run)
    rows = []
    for layer, rules in enumerate(run.rules):
        for head, text in enumerate(rules):
            for length in lengths:
                span = span_tokens(patterns[text], length)
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "rule": text,
                        "alpha": _at(run.alphas, layer, head),
                        "beta": _at(run.betas, layer, head),
                        "length": length,
                        "span": span,
                        "density": span / length,
                    }
                )
    return rows


def _patterns(run: Run) -> dict[str, Pattern]:
    """Every distinct rule of the plan by its text."""
    found: dict[str, Pattern] = {}
    for layer, rules in enumerate(run.rules):
        for head, text in enumerate(rules):
            try:
                found[text] = found.get(text) or parse(text)
            except (TypeError, ValueError) as error:
                where = f"{run.folder / 'results.json'} is damaged: plan.rules[{layer}][{head}]"
                raise UsageError(f"{where} is not a pattern ({error}); run the tuning again") from error
    return found


def _at(grid: tuple[tuple[Any, ...], ...], layer: int, head: int) -> Any:
    return grid[layer][head] if layer < len(grid) and head < len(grid[layer]) else None


def pareto(run: Run) -> Chart:
    """Plans found by the search in the plane of the first two objectives; colour is the validation loss."""
    points = [point for point in run.pareto if point.losses]
    if not points:
        raise NotInRun("The run recorded no Pareto front.")
    tried = any(point.validation is not None for point in points)
    names = [f"{int(o):,}" if o.isdigit() else o for o in run.objectives] or ["1"]
    rows = [
        {
            "id": point.id,
            **{f"loss {i}": loss for i, loss in enumerate(point.losses)},
            "validation": point.validation,
            "plan": "chosen" if point.chosen else "other",
            **{f"density {n}": share for n, share in point.density.items()},
        }
        for point in points
    ]
    second = "loss 1:Q" if len(points[0].losses) > 1 else "validation:Q"
    y_title = (
        f"influence lost at {names[1]} tokens"
        if len(points[0].losses) > 1 and len(names) > 1
        else "validation loss"
    )
    tip = [alt.Tooltip("id:N", title="plan"), alt.Tooltip("plan:N", title="status")]
    tip += [
        alt.Tooltip(f"loss {i}:Q", title=f"influence lost at {name}", format=".4g")
        for i, name in enumerate(names[: len(points[0].losses)])
    ]
    tip += [alt.Tooltip("validation:Q", title="validation loss", format=".4f")] if tried else []
    tip += [alt.Tooltip(f"density {n}:Q", title=f"KV kept at {n:,}", format=".1%") for n in points[0].density]
    loose = alt.Scale(zero=False, padding=14, nice=False)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("loss 0:Q", title=f"influence lost at {names[0]} tokens", scale=loose),
        y=alt.Y(second, title=y_title, scale=loose),
        tooltip=tip,
    )
    fill: Any = alt.value("#56B4E9")
    if tried:
        legend = alt.Legend(title=["validation loss", "(low is good)"], format=".3f", gradientLength=160)
        fill = alt.Color(
            "validation:Q", scale=alt.Scale(scheme=SEQUENTIAL, reverse=True, zero=False), legend=legend
        )
    dots = base.mark_circle(size=130, opacity=1, stroke="#ffffff", strokeWidth=0.8).encode(color=fill)
    chosen = base.transform_filter("datum.plan == 'chosen'")
    ring = chosen.mark_point(
        shape="circle", size=420, strokeWidth=2.5, color="#D55E00", filled=False, opacity=1
    )
    label = chosen.mark_text(dx=16, dy=-14, align="left", fontWeight=600, color="#D55E00").encode(
        text=alt.value("chosen")
    )
    chart = (dots + ring + label).properties(width=560, height=340)
    return finish(chart, run, "Plans on the Pareto front", f"{len(rows)} plans, ringed: the one in use")


def pattern_pictures(run: Run) -> Chart:
    """Who attends to whom for the rules used most, small multiples at the longest profiled length."""
    if not run.rules or not run.plan_lengths:
        raise NotInRun("The run recorded no rules of the plan.")
    length = max(run.lengths or run.plan_lengths)
    used = Counter(text for row in run.rules for text in row)
    total = sum(used.values())
    patterns = _patterns(run)
    by_picture: dict[bytes, list[str]] = {}
    pictures: dict[bytes, np.ndarray] = {}
    for text, _ in used.most_common():
        picture = patterns[text].bind(N=length).draw(length, pixels=PIXELS)
        by_picture.setdefault(picture.tobytes(), []).append(text)
        pictures[picture.tobytes()] = picture
    groups = sorted(by_picture, key=lambda key: -sum(used[text] for text in by_picture[key]))
    panels = []
    for key in groups[:SHOWN_RULES]:
        texts = by_picture[key]
        count = sum(used[text] for text in texts)
        span = span_tokens(patterns[texts[0]], length)
        panels.append(
            _picture_panel(pictures[key], length, f"span {span:,}", f"{count} of {total} heads", texts)
        )
    chart = alt.concat(*panels, columns=4, spacing=18)
    left = len(groups) - len(panels)
    rest = f", {left} rarer not shown" if left else ""
    subtitle = f"At {length:,} tokens: rows are queries, columns keys, filled is seen; most used first{rest}"
    return finish(chart, run, "The rules drawn", subtitle)


def _picture_panel(picture: np.ndarray, length: int, span: str, count: str, texts: list[str]) -> alt.Chart:
    cell = length / len(picture)
    rows: list[dict[str, Any]] = [
        {**run, "rule": " or ".join(texts), "heads": count} for run in picture_runs(picture, cell)
    ]
    for row in rows:
        # Full cells reach a little under their neighbours below: else a hairline shows between two rows.
        row["edge"] = min(row["q1"] + 0.3 * cell, length) if row["share"] == 1 else row["q1"]
    side = alt.Scale(domain=[0, length], nice=False)
    axis = alt.Axis(values=[0, length], format=",d", grid=False, tickSize=3)
    title = alt.TitleParams(text=span, subtitle=count, fontSize=12, subtitleFontSize=11, offset=6)
    return (
        alt.Chart(data(rows), title=title)
        .mark_rect(color="#0072B2", strokeWidth=0)
        .encode(
            x=alt.X("k0:Q", scale=side, axis=axis, title="key"),
            x2="k1:Q",
            y=alt.Y("q0:Q", scale=alt.Scale(domain=[length, 0], nice=False), axis=axis, title="query"),
            y2="edge:Q",
            opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
            tooltip=[
                alt.Tooltip("rule:N"),
                alt.Tooltip("heads:N", title="used by"),
                alt.Tooltip("q0:Q", title="query from", format=",d"),
                alt.Tooltip("k0:Q", title="keys from", format=",d"),
                alt.Tooltip("k1:Q", title="keys to", format=",d"),
            ],
        )
        .properties(width=180, height=180)
    )


def picture_runs(picture: np.ndarray, cell: float) -> list[dict[str, float]]:
    """A picture (uint8, 255 = all pairs) as rectangles of equal filling, in tokens; empty ones left out.

    Equal neighbours are joined along a row and equal rows downwards: a drawing of a few hundred marks.
    """
    done: list[dict[str, float]] = []
    growing: dict[tuple[int, int, int], int] = {}
    for row in range(len(picture) + 1):
        runs = set(_row_runs(picture[row])) if row < len(picture) else set()
        for key in [key for key in growing if key not in runs]:
            first, last, level = key
            top = growing.pop(key)
            done.append(
                {
                    "q0": top * cell,
                    "q1": row * cell,
                    "k0": first * cell,
                    "k1": last * cell,
                    "share": level / 255,
                }
            )
        for key in runs:
            growing.setdefault(key, row)
    return sorted(done, key=lambda mark: (mark["q0"], mark["k0"]))


def _row_runs(row: np.ndarray) -> list[tuple[int, int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(row.astype(int))) + 1).tolist(), len(row)]
    return [(a, b, int(row[a])) for a, b in pairwise(edges) if b > a and row[a]]
