"""Pictures and a page of a run on a user's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attlas._common.files import writable_folder, write_atomic
from attlas.report.figures import png
from attlas.report.graph_figures import (
    confusion_figure,
    curve_figure,
    degree_figure,
    drawing_figure,
    target_figure,
)
from attlas.report.graph_tables import graph_run_tables
from attlas.report.page import ReportFiles
from attlas.report.static_page import comparison_page
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
    page = comparison_page(record, graph_run_tables(record), written)
    return ReportFiles(write_atomic(Path(folder) / "report.html", page), tuple(path for _, path in written))


def _figures(record: Mapping[str, Any]) -> list[tuple[str, str, Callable[[], Chart]]]:
    """File name, what the picture shows, its drawing."""
    mistakes = confusion_figure if record["classes"] else target_figure
    return [
        ("drawing", "The graph, coloured by prediction", partial(drawing_figure, record)),
        ("mistakes", "Test nodes: what they are and what was told", partial(mistakes, record)),
        ("training", "Loss against steps", partial(curve_figure, record)),
        ("degrees", "Nodes by their number of edges", partial(degree_figure, record["summary"])),
    ]
