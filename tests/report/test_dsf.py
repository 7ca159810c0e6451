"""Mixers as dynamical systems shown: tables, pictures, and a page that fetches nothing."""

import copy
import io

import pytest
from rich.console import Console

from attlas._common.errors import UsageError
from attlas._common.files import write_json
from attlas.report.dsf_page import kernel_figure, state_figure, write_dsf
from attlas.report.dsf_tables import dsf_tables, half_within, load_dsf, print_dsf

STATE = {"lengths": [4, 16, 64], "numbers": [10, 10, 10], "bytes": [40, 40, 40], "constant": True}
SMALL = {"numbers": [1, 2, 8], "bytes": [1024, 4096, 16384], "constant": False}
ROW = {
    "name": "linear",
    "absent": "",
    "parameters": 4321,
    "state": STATE,
    "jacobian": [2.0, 1.0, 0.5] + [0.01] * 13,
    "frozen": [1.0, 0.25] + [0.125] * 14,
    "error": 2e-15,
}
GROWS = {**ROW, "name": "soft", "state": STATE | SMALL, "frozen": None, "error": None}
WINDOW = {**GROWS, "name": "window", "state": None, "jacobian": [1.0, 1.0] + [0.0] * 14}
RESULT = {
    "schema": "attlas.dsf",
    "version": 1,
    "name": "dsf",
    "title": "Token mixers as dynamical systems",
    "command": "attlas inspect dsf",
    "settings": {"length": 16, "width": 32, "heads": 2, "probes": 8, "seed": 0},
    "mixers": [ROW, GROWS, WINDOW, {**WINDOW, "name": "both", "absent": "sees all & sundry", "jacobian": []}],
    "consequences": [{"name": "coupled", "says": "One sequence.", "values": {"error": 1e-15}, "holds": True}],
    "machine": {"processor": "abacus", "cores": 2},
    "versions": {"python": "3.11"},
}


def test_tables():
    states, memory, absent, consequences = dsf_tables(RESULT)
    assert states.rows[0] == ("linear", "10", "40", "40", "40", "constant", "4,321")
    assert states.rows[1][1:] == ("2", "1,024", "4,096", "16,384", "grows", "4,321")
    assert states.rows[2] == ("window", *"–––––", "4,321")
    assert memory.rows[0] == ("linear", "5.0e-01", "2.5e-01", "5.0e-03", "1", "1.2e-01", "2e-15")
    assert memory.rows[1][-2:] == ("–", "–") and memory.rows[2][1:4] == ("1.0e+00", "0.0e+00", "0.0e+00")
    assert absent.rows == (("both", "sees all & sundry"),)
    assert consequences.rows == (("coupled", "error: 1e-15", "yes"),)


def test_half_of_the_memory():
    assert half_within([5.0, 1.0, 1.0, 1.0, 1.0]) == 2
    assert half_within([5.0, 0.0, 0.0]) == 0


def test_printed():
    text = io.StringIO()
    print_dsf(RESULT, Console(file=text, width=110))
    assert "State of one sequence, width 32, 2 heads" in text.getvalue() and "constant" in text.getvalue()


def values_of(spec, panel):
    """The rows of a panel: a chart of several parts keeps them in one place."""
    found = panel["data"]
    return found["values"] if "values" in found else spec["datasets"][found["name"]]


def test_pictures_are_of_what_was_measured():
    kernels = kernel_figure(RESULT).to_dict()
    panels = [panel for row in kernels["vconcat"] for panel in row["hconcat"]]
    assert [panel["title"]["text"] for panel in panels] == ["linear", "soft", "window"]
    points = [values_of(kernels, panel) for panel in panels]
    assert {point["kernel"] for point in points[0]} == {"Jacobian", "gates held"}
    assert [point["norm"] for point in points[2]] == [1.0, 1.0], "what is not seen is a gap"
    states = state_figure(RESULT).to_dict()
    spans = values_of(states, states["layer"][0])
    assert spans == [
        {"mixer": "linear", "least": 40, "most": 40},
        {"mixer": "soft", "least": 1024, "most": 16384},
    ]


def test_page(tmp_path):
    write_json(tmp_path / "dsf.json", RESULT)
    (tmp_path / "dsf").mkdir()
    (tmp_path / "dsf" / "old.png").write_bytes(b"")
    files = write_dsf(tmp_path)
    text = files.page.read_text()
    assert "Memory kernels" in text and "sees all &amp; sundry" in text
    assert text.count("data:image/png;base64") == 2 and "http" not in text.replace("http-equiv", "")
    assert sorted(path.name for path in (tmp_path / "dsf").glob("*.png")) == ["kernels.png", "states.png"]


def test_mixers_without_a_system_alone(tmp_path):
    result = copy.deepcopy(RESULT)
    result["mixers"] = result["mixers"][-1:]
    write_json(tmp_path / "dsf.json", result)
    assert write_dsf(tmp_path).pictures == ()
    assert [table.key for table in dsf_tables(result)] == ["absent", "consequences"]


def test_errors(tmp_path):
    with pytest.raises(UsageError, match="result .*dsf.json does not exist"):
        load_dsf(tmp_path)
