"""The figures of a report: one function each, run -> chart; the chart is the page's figure and the PNG's.

Every function raises `NotInRun`, with the sentence to show instead, where the run lacks what it draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import vl_convert

from attlas.report.cost_figures import cost, times
from attlas.report.plan_figures import pareto, pattern_pictures, span_map
from attlas.report.result_figures import budgets, needles, quality
from attlas.report.run import Run
from attlas.report.theme import Chart, NotInRun

__all__ = [
    "FIGURES",
    "Figure",
    "NotInRun",
    "budgets",
    "cost",
    "needles",
    "pareto",
    "pattern_pictures",
    "png",
    "quality",
    "span_map",
    "times",
]


@dataclass(frozen=True)
class Figure:
    """A figure of the report: file name, heading, one sentence on how to read it, and its function."""

    name: str
    heading: str
    caption: str
    draw: Callable[[Run], Chart]
    subtitle: bool = True  # whether the page shows the subtitle: not where a control changes what it says


FIGURES: tuple[Figure, ...] = (
    Figure(
        "spans",
        "The plan: how far every head looks back",
        "Each cell is one KV head of one layer, light cells keep more of the context; point at a cell to "
        "read its rule, and choose another length below the map.",
        span_map,
        subtitle=False,
    ),
    Figure(
        "needles",
        "Needles by depth and length",
        "Each cell is the share of hidden facts that the model answers exactly; a plan that works looks like "
        "dense, a window alone goes dark where the needle lies outside it.",
        needles,
    ),
    Figure(
        "quality",
        "Quality against length",
        "One line per method, the nearer to dense the better; point at a mark to see how much KV memory the "
        "method keeps, and click on a legend entry to pick out a method.",
        quality,
    ),
    Figure(
        "cost",
        "Memory and time",
        "Bars are measured, black ticks are the least that the method could need, and the figure beside "
        "a bar is tick / bar; the shorter the bar the cheaper the method, the nearer to 100% the less is "
        "wasted.",
        cost,
    ),
    Figure(
        "times",
        "Time against length",
        "One line per method, the lower the faster; a faint line of the same colour is the least time that "
        "the method's attention could take, and a method timed at a single length is a point.",
        times,
    ),
    Figure(
        "budgets",
        "Smaller budgets",
        "From right to left less of the KV cache is kept; the steeper a line leaves the dashed level of the "
        "dense model, the more that saving costs.",
        budgets,
    ),
    Figure(
        "pareto",
        "What the search chose from",
        "Each point is a plan that no other beats at every profiled length; where plans were validated, "
        "lighter points did better, and the ringed plan is the one in use.",
        pareto,
    ),
    Figure(
        "patterns",
        "The rules drawn",
        "Each square shows who attends to whom: a row is a query, a column a key, the left edge is the sink "
        "and the diagonal band the window.",
        pattern_pictures,
    ),
)


def png(chart: Chart, *, scale: float = 2.0) -> bytes:
    """The chart as a PNG picture on white, `scale` pixels per unit."""
    spec = chart.to_dict()
    spec["config"] = {**spec.get("config", {}), "background": "#ffffff", "padding": 16}
    return vl_convert.vegalite_to_png(spec, scale=scale)
