"""The report of a tune run: the terminal table, the verdict, the pictures and the page."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Charts cost a second to import: the table alone must not pay it.
_HOME = {
    "run": "Run",
    "reading": "load_run",
    "table": "print_results results_tables",
    "static_tables": "StaticTable load_patterns print_patterns static_tables",
    "static_page": "write_patterns",
    "dsf_tables": "load_dsf print_dsf",
    "dsf_page": "write_dsf",
    "mixer_tables": "load_mixers mixer_tables print_mixers",
    "mixer_page": "write_mixers",
    "graph_tables": "graph_run_tables print_graph_run print_summary summary_tables",
    "graph_page": "write_graph_run",
    "extrapolation_tables": "extrapolation_tables load_extrapolation print_extrapolation",
    "extrapolation_page": "write_extrapolation",
    "page": "ReportFiles write_report",
    "figures": "FIGURES Figure NotInRun budgets cost needles pareto pattern_pictures png quality "
    "span_map times",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "FIGURES",
    "Figure",
    "NotInRun",
    "ReportFiles",
    "Run",
    "StaticTable",
    "budgets",
    "cost",
    "extrapolation_tables",
    "graph_run_tables",
    "load_dsf",
    "load_extrapolation",
    "load_mixers",
    "load_patterns",
    "load_run",
    "mixer_tables",
    "needles",
    "pareto",
    "pattern_pictures",
    "png",
    "print_dsf",
    "print_extrapolation",
    "print_graph_run",
    "print_mixers",
    "print_patterns",
    "print_results",
    "print_summary",
    "quality",
    "results_tables",
    "span_map",
    "static_tables",
    "summary_tables",
    "times",
    "write_dsf",
    "write_extrapolation",
    "write_graph_run",
    "write_mixers",
    "write_patterns",
    "write_report",
]

if TYPE_CHECKING:
    from attlas.report.dsf_page import write_dsf as write_dsf
    from attlas.report.dsf_tables import print_dsf as print_dsf
    from attlas.report.extrapolation_page import write_extrapolation as write_extrapolation
    from attlas.report.extrapolation_tables import print_extrapolation as print_extrapolation
    from attlas.report.graph_page import write_graph_run as write_graph_run
    from attlas.report.graph_tables import print_graph_run as print_graph_run
    from attlas.report.graph_tables import print_summary as print_summary
    from attlas.report.mixer_page import write_mixers as write_mixers
    from attlas.report.mixer_tables import print_mixers as print_mixers
    from attlas.report.page import write_report as write_report
    from attlas.report.reading import load_run as load_run
    from attlas.report.static_page import write_patterns as write_patterns
    from attlas.report.static_tables import print_patterns as print_patterns
    from attlas.report.table import print_results as print_results


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"attlas.report.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'attlas.report' has no attribute {name!r}")
