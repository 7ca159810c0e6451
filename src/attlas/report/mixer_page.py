"""Pictures and a page of the comparison of token mixers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attlas._common.files import writable_folder, write_atomic
from attlas.report.figures import png
from attlas.report.mixer_figures import frontier_figure, length_figure, loss_figure
from attlas.report.mixer_tables import NAME, load_mixers, mixer_tables
from attlas.report.page import ReportFiles
from attlas.report.static_page import comparison_page
from attlas.report.theme import Chart
from attlas.tune.progress import Progress, Silent

__all__ = ["write_mixers"]


def write_mixers(folder: str | Path, *, progress: Progress | None = None) -> ReportFiles:
    """Write `folder`/mixers/*.png and index.html from `folder`/mixers.json, atomically.

    Per task the result against the state and the loss against FLOPs, and time and memory against length;
    pictures of what is no longer in the result are removed. UsageError: the result is missing or damaged.
    """
    result = load_mixers(folder)
    target = writable_folder(Path(folder) / NAME)
    progress, figures = progress or Silent(), _figures(result)
    progress.stage("pictures", len(figures))
    written = {}
    for name, (label, draw) in figures.items():
        written[label] = write_atomic(target / f"{name}.png", png(draw(), scale=1.5))
        progress.advance()
    for old in set(target.glob("*.png")) - set(written.values()):
        old.unlink()
    page = comparison_page(result, mixer_tables(result), list(written.items()))
    return ReportFiles(write_atomic(target / "index.html", page), tuple(written.values()))


def _figures(result: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[], Chart]]]:
    """File name: (what the picture shows, its drawing), of all that was measured."""
    found: dict[str, tuple[str, Callable[[], Chart]]] = {}
    for task in result["tasks"]:
        name = task["name"]
        there = [row for row in task["rows"] if row.get("mean") is not None]
        if any(row["state_bytes"] for row in there):
            found[f"frontier-{name}"] = (
                f"{name}: result against state",
                partial(frontier_figure, result, task),
            )
        if any(row["width"] == max(result["settings"]["widths"]) for row in there):
            found[f"loss-{name}"] = (f"{name}: loss against FLOPs", partial(loss_figure, result, task))
    if result["speed"] is not None and any(any(row["forward_ms"]) for row in result["speed"]["rows"]):
        found["length"] = ("Time and memory against length", partial(length_figure, result))
    return found
