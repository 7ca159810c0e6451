"""Pictures and a page of mixers as dynamical systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt

from attlas._common.files import writable_folder, write_atomic
from attlas.report.dsf_tables import NAME, dsf_tables, load_dsf
from attlas.report.figures import png
from attlas.report.page import ReportFiles
from attlas.report.static_page import comparison_page
from attlas.report.theme import Chart, data, titled

__all__ = ["kernel_figure", "state_figure", "write_dsf"]

MEASURED, HELD = "Jacobian", "gates held"
BLUE, ORANGE = "#0072B2", "#D55E00"
COLUMNS, LEAST = 4, 1e-6


def write_dsf(folder: str | Path) -> ReportFiles:
    """Write `folder`/dsf/*.png and index.html from `folder`/dsf.json, atomically.

    The memory kernels and the states, where some mixer has them; pictures of what is no longer in the result
    are removed. UsageError: the result is missing or damaged.
    """
    result = load_dsf(folder)
    target = writable_folder(Path(folder) / NAME)
    written = [
        (label, write_atomic(target / f"{name}.png", png(draw(), scale=1.5)))
        for name, label, draw in _figures(result)
    ]
    for old in set(target.glob("*.png")) - {path for _, path in written}:
        old.unlink()
    page = write_atomic(target / "index.html", comparison_page(result, dsf_tables(result), written))
    return ReportFiles(page, tuple(path for _, path in written))


def _figures(result: Mapping[str, Any]) -> list[tuple[str, str, Callable[[], Chart]]]:
    """File name, what the picture shows, its drawing."""
    found: list[tuple[str, str, Callable[[], Chart]]] = []
    if any(row["jacobian"] for row in result["mixers"]):
        found.append(("kernels", "Memory kernels", partial(kernel_figure, result)))
    if any(row["state"] for row in result["mixers"]):
        found.append(("states", "State sizes", partial(state_figure, result)))
    return found


def kernel_figure(result: Mapping[str, Any]) -> Chart:
    """A panel per mixer: norm by lag over that of lag 0, of the Jacobian and with the gates held."""
    panels = [_panel(row) for row in result["mixers"] if row["jacobian"]]
    rows = [alt.hconcat(*panels[at : at + COLUMNS], spacing=18) for at in range(0, len(panels), COLUMNS)]
    lines = (
        f"{result['settings']['length']} tokens, norm over that of lag 0; blue: Jacobian of the module, "
        "orange: transfer matrix with the gates held"
    )
    return titled(alt.vconcat(*rows, spacing=14), "What a mixer remembers, by lag", lines)


def _panel(row: Mapping[str, Any]) -> alt.Chart:
    kernels: list[tuple[str, Sequence[float]]] = [(MEASURED, row["jacobian"])]
    if row["frozen"] is not None:
        kernels.append((HELD, row["frozen"]))
    points = [
        {"kernel": name, "lag": lag, "norm": value / kernel[0]}
        for name, kernel in kernels
        for lag, value in enumerate(kernel)
        # A logarithmic axis has no 0: what is not seen leaves a gap.
        if kernel[0] and value / kernel[0] >= LEAST
    ]
    colours = alt.Scale(domain=[MEASURED, HELD], range=[BLUE, ORANGE])
    dashes = alt.Scale(domain=[MEASURED, HELD], range=[[1, 0], [5, 3]])
    return (
        alt.Chart(data(points), title=alt.TitleParams(text=row["name"], fontSize=11, offset=4))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X(
                "lag:Q",
                title="lag",
                scale=alt.Scale(domain=[0, len(row["jacobian"]) - 1], nice=False),
                axis=alt.Axis(grid=False, tickCount=4, format="d"),
            ),
            y=alt.Y(
                "norm:Q",
                title=None,
                scale=alt.Scale(type="log", domain=[LEAST, 10], clamp=True),
                axis=alt.Axis(values=[1e-6, 1e-4, 1e-2, 1], format=".0e"),
            ),
            color=alt.Color("kernel:N", scale=colours, legend=None),
            strokeDash=alt.StrokeDash("kernel:N", scale=dashes, legend=None),
        )
        .properties(width=190, height=120)
    )


def state_figure(result: Mapping[str, Any]) -> Chart:
    """Bytes of the state at the shortest and the longest length, joined: a point is a constant state."""
    there = [row for row in result["mixers"] if row["state"]]
    there.sort(key=lambda row: row["state"]["bytes"][-1])
    names = [row["name"] for row in there]
    spans = [
        {"mixer": row["name"], "least": max(1, row["state"]["bytes"][0]), "most": row["state"]["bytes"][-1]}
        for row in there
    ]
    lengths = there[0]["state"]["lengths"]
    ends = [
        {"mixer": span["mixer"], "bytes": span[end], "tokens": f"{length:,} tokens"}
        for span in spans
        for end, length in (("least", lengths[0]), ("most", lengths[-1]))
    ]
    tokens = [f"{lengths[0]:,} tokens", f"{lengths[-1]:,} tokens"]
    side = alt.Y("mixer:N", sort=names, title=None, axis=alt.Axis(labelLimit=200))
    scale = alt.Scale(type="log")
    powers = alt.Axis(values=[10**power for power in range(1, 10)], format="~s")
    bars = (
        alt.Chart(data(spans))
        .mark_rule(strokeWidth=3, color="#b8c0c8")
        .encode(y=side, x=alt.X("least:Q", scale=scale, axis=powers, title="bytes of the state"), x2="most:Q")
    )
    legend = alt.Legend(title=None, orient="bottom")
    points = (
        alt.Chart(data(ends))
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            y=side,
            x=alt.X("bytes:Q", scale=scale, axis=powers, title="bytes of the state"),
            color=alt.Color("tokens:N", scale=alt.Scale(domain=tokens, range=[BLUE, ORANGE]), legend=legend),
            shape=alt.Shape(
                "tokens:N", scale=alt.Scale(domain=tokens, range=["circle", "diamond"]), legend=legend
            ),
        )
    )
    settings = result["settings"]
    lines = f"one sequence, width {settings['width']}, {settings['heads']} heads, float32"
    chart = (bars + points).properties(width=460, height=22 * len(names))
    return titled(chart, "How much a mixer keeps", lines)
