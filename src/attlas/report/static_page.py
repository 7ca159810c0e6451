"""Pictures and a page of the comparison of static patterns."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from attlas._common.files import writable_folder, write_atomic
from attlas.pattern import Tokens
from attlas.report.figures import png
from attlas.report.page import ReportFiles, template
from attlas.report.static_figures import growth_figure, pattern_figure, quality_figure
from attlas.report.static_tables import NAME, StaticTable, load_patterns, static_tables
from attlas.report.theme import Chart
from attlas.tune.progress import Progress, Silent

__all__ = ["comparison_page", "inline_picture", "write_patterns"]

WIDE = ("reach", "quality")


def write_patterns(folder: str | Path, *, progress: Progress | None = None) -> ReportFiles:
    """Write `folder`/static_patterns/*.png and index.html from `folder`/static_patterns.json, atomically.

    One picture per pattern, one of reach against layers, one of quality where it was measured; pictures of
    patterns that are no longer in the result are removed. UsageError: the result is missing or damaged.
    """
    result = load_patterns(folder)
    target = writable_folder(Path(folder) / NAME)
    figures, written = _figures(result), {}
    progress = progress or Silent()
    progress.stage("pictures", len(figures))
    for name, draw in figures.items():
        written[name] = write_atomic(target / f"{name}.png", png(draw(), scale=1.5 if name in WIDE else 1.0))
        progress.advance()
    for old in set(target.glob("*.png")) - set(written.values()):
        old.unlink()
    labels = _labels(result)
    shown = [(labels[name], path) for name, path in written.items()]
    page = write_atomic(target / "index.html", comparison_page(result, static_tables(result), shown))
    return ReportFiles(page, tuple(written.values()))


def _figures(result: Mapping[str, Any]) -> dict[str, Callable[[], Chart]]:
    settings = result["settings"]
    spaces = {"sequence": Tokens(settings["length"], total=settings["length"])}
    if settings["grid"]:
        spaces["grid"] = Tokens.grid(**dict(zip("FHW", settings["grid"], strict=True)))
    found: dict[str, Callable[[], Chart]] = {"reach": lambda: growth_figure(result)}
    if result["zero_shot"]:
        found["quality"] = lambda: quality_figure(result)
    for stage, space in spaces.items():
        for row in result[stage]:
            if "absent" not in row:
                found[f"{stage}-{row['name']}"] = lambda row=row, at=space: pattern_figure(row, at)  # type: ignore[misc]
    return found


def _labels(result: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{stage}-{row['name']}": row["label"] for stage in ("sequence", "grid") for row in result[stage]
    } | {"reach": "How far information travels", "quality": "Quality on the pretrained model"}


def comparison_page(
    result: Mapping[str, Any], tables: Sequence[StaticTable], pictures: Sequence[tuple[str, Path]]
) -> str:
    """The page of a comparison: tables, pictures with what each shows, command, machine and versions."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template("patterns.html.jinja")).render(
        title=result["title"],
        tables=tables,
        pictures=[{"label": label, "source": inline_picture(path)} for label, path in pictures],
        command=result["command"],
        machine=result["machine"],
        versions=result["versions"],
        style=Markup(template("report.css")),
    )


def inline_picture(path: Path) -> str:
    """A PNG as the source of an image element."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
