"""Pictures and a page of a run on a user's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from attlas._common.files import writable_folder, write_atomic
from attlas.report.figures import png
from attlas.report.graph_figures import (
    confusion_figure,
    curve_figure,
    degree_figure,
    drawing_figure,
    target_figure,
)
from attlas.report.graph_tables import graph_run_tables, headline
from attlas.report.page import ReportFiles, template
from attlas.report.static_page import inline_picture
from attlas.report.theme import Chart
from attlas.train.node_run import load_node_run

__all__ = ["write_graph_run"]


def write_graph_run(folder: str | Path) -> ReportFiles:
    """Write `folder`/report.html and pictures/*.png from `folder`/graph_run.json, atomically.

    UsageError: the run is missing, not finished or damaged.
    """
    record = load_node_run(folder)
    target = writable_folder(Path(folder) / "pictures")
    written = [
        (label, write_atomic(target / f"{name}.png", png(draw(), scale=1.5)))
        for name, label, draw in _figures(record)
    ]
    page = write_atomic(Path(folder) / "report.html", _page(record, written))
    return ReportFiles(page, tuple(path for _, path in written))


def _page(record: Mapping[str, Any], pictures: Sequence[tuple[str, Path]]) -> str:
    """The page: it fetches nothing and runs no script."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template("graph.html.jinja")).render(
        title=record["title"],
        headline=headline(record),
        tables=graph_run_tables(record),
        pictures=[{"label": label, "source": inline_picture(path)} for label, path in pictures],
        command=record["command"],
        machine=record["machine"],
        versions=record["versions"],
        style=Markup(template("report.css")),
    )


def _figures(record: Mapping[str, Any]) -> list[tuple[str, str, Callable[[], Chart]]]:
    """File name, what the picture shows, its drawing."""
    mistakes = confusion_figure if record["classes"] else target_figure
    return [
        ("drawing", "The graph, coloured by prediction", partial(drawing_figure, record)),
        ("mistakes", "Test nodes: what they are and what was told", partial(mistakes, record)),
        ("training", "Loss against steps", partial(curve_figure, record)),
        ("degrees", "Nodes by their number of edges", partial(degree_figure, record["summary"])),
    ]
