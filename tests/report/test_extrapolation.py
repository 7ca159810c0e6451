"""Length extrapolation shown: the table, pictures, and a page that fetches nothing."""

from __future__ import annotations

import copy
import io

import pytest
from rich.console import Console

from attlas._common.errors import UsageError
from attlas._common.files import write_json
from attlas.catalog.results import results_page
from attlas.report.extrapolation_page import loss_by_length, sink_figure, write_extrapolation
from attlas.report.extrapolation_tables import (
    extrapolation_tables,
    load_extrapolation,
    print_extrapolation,
    uniform,
)


def told(mean, sd=0.01):
    return {"mean": mean, "sd": sd}


SINKS = [
    {"first_share": told(0.25), "strength": told(0.5)},
    {"first_share": told(0.125), "strength": told(0.0)},
]
SOFTMAX = {
    "mixer": "softmax",
    "says": "softmax",
    "runs": [{"parameters": 16384}, {"parameters": 16384}],
    "diverged": 0,
    "losses": [told(2.0), told(2.5)],
    "rise": told(0.5),
    "sinks": SINKS,
}
MINE = SOFTMAX | {"mixer": "my | pack:Mine", "says": "my | pack:Mine", "sinks": None, "diverged": 1}
LSSA = SOFTMAX | {"mixer": "lssa", "says": "LSSA", "losses": [told(2.1, None), told(2.0, None)]}
RESULT = {
    "schema": "attlas.extrapolation",
    "version": 1,
    "name": "extrapolation",
    "title": "Length extrapolation and attention sinks",
    "command": "attlas bench extrapolation",
    "settings": {
        "mixers": ["softmax", "my | pack:Mine", "lssa", "x"],
        "seeds": 2,
        "steps": 300,
        "lengths": [128, 2048],
        "windows": 16,
        "text": "python-docs",
        "width": 64,
        "heads": 4,
        "layers": 2,
        "batch": 16,
        "threshold": 0.3,
    },
    "rows": [SOFTMAX, MINE, LSSA, {"mixer": "x", "says": "x", "absent": "x has no CS form"}],
    "machine": {"processor": "abacus", "cores": 2},
    "versions": {"python": "3.11"},
}


def test_one_table_holds_loss_and_sinks():
    (table,) = extrapolation_tables(RESULT)
    assert table.columns == (
        *("mixer", "128", "2,048", "rise"),
        *("first token 128", "first token 2,048", "Sink 128", "Sink 2,048", "parameters"),
    )
    assert table.rows[0] == (
        *("softmax", "2.000 ±0.010", "2.500 ±0.010", "0.500 ±0.010"),
        *("0.250 ±0.010", "0.125 ±0.010", "0.500 ±0.010", "0.000 ±0.010", "16,384"),
    )
    assert table.rows[1][0] == "Mine" and table.rows[1][-5:-1] == ("-",) * 4
    assert table.rows[2][1] == "2.100"
    notes = " ".join(table.notes)
    assert "last 128 bytes of 16 held-out windows" in notes and "Mean and standard deviation of 2" in notes
    assert "0.042 at 128 and 0.0040 at 2,048" in notes and "lssa: LSSA." in notes
    assert "Mine: 1 of 2 seeds diverged and are left out of the mean." in notes
    assert "Left out: x: x has no CS form." in notes


def test_uniform_is_the_harmonic_number_over_the_tokens():
    assert uniform(1) == 1.0 and uniform(4) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_terminal_and_results_show_every_row():
    console = Console(width=160, record=True, file=io.StringIO())
    print_extrapolation(RESULT, console)
    text = console.export_text()
    for words in ("Trained at 128 bytes, tested up to 2,048 (16x)", "softmax", "Mine", "2.500"):
        assert words in text
    page = results_page({"extrapolation": RESULT})
    assert "## Length extrapolation and attention sinks" in page
    assert "| softmax | 2.000 ±0.010 | 2.500 ±0.010 |" in page


def rows_of(spec):
    (own,) = spec["datasets"].values() if "datasets" in spec else (spec["data"]["values"],)
    return own


def test_pictures_hold_the_figures():
    loss = loss_by_length(RESULT).to_dict()
    points = (
        next(iter(loss["datasets"].values())) if "datasets" in loss else loss["layer"][0]["data"]["values"]
    )
    assert points[1] == {"mixer": "softmax", "length": 2048, "value": 2.5, "low": 2.49, "high": 2.51}
    assert [row["mixer"] for row in points] == ["softmax", "softmax", "Mine", "Mine", "lssa", "lssa"]
    text = str(sink_figure(RESULT).to_dict())
    assert "'value': 0.125" in text and "Mine" not in text.split("datasets")[0].split("values")[-1][:200]


def test_page_and_pictures_are_written_and_old_ones_removed(tmp_path):
    write_json(tmp_path / "extrapolation.json", RESULT)
    (tmp_path / "extrapolation").mkdir()
    (tmp_path / "extrapolation" / "gone.png").write_bytes(b"old")
    found = write_extrapolation(tmp_path)
    names = sorted(path.name for path in (tmp_path / "extrapolation").iterdir())
    assert names == ["index.html", "loss.png", "sinks.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.pictures)
    page = found.page.read_text()
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "http" not in page.replace("http-equiv", "") and "abacus, 2 cores" in page


def test_nothing_is_drawn_of_what_is_not_there(tmp_path):
    bare = copy.deepcopy(RESULT)
    bare["rows"] = [MINE | {"losses": [told(None)] * 2, "rise": told(None)}, RESULT["rows"][3]]
    write_json(tmp_path / "extrapolation.json", bare)
    assert write_extrapolation(tmp_path).pictures == ()
    assert extrapolation_tables(bare)[0].rows[0][1] == "diverged"
    bare["rows"] = [MINE]
    write_json(tmp_path / "extrapolation.json", bare)
    assert [path.name for path in write_extrapolation(tmp_path).pictures] == ["loss.png"]


def test_a_missing_or_newer_result_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"extrapolation.json does not exist; check the path"):
        load_extrapolation(tmp_path)
    write_json(tmp_path / "extrapolation.json", RESULT | {"version": 2})
    with pytest.raises(UsageError, match="was written by a newer Attlas"):
        load_extrapolation(tmp_path)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_column_is_lost_in_a_narrow_terminal(width):
    lengths = [128, 256, 512, 1024, 2048]
    row = SOFTMAX | {"mixer": "sigmoid_bare", "losses": [told(2.0 + 0.01 * at) for at in range(5)]}
    wide = RESULT | {"rows": [row], "settings": RESULT["settings"] | {"lengths": lengths}}
    console = Console(width=width, record=True, file=io.StringIO())
    print_extrapolation(wide, console)
    text = console.export_text()
    assert all(f"{2.0 + 0.01 * at:.3f}" in text for at in range(5))
    assert text.count("±0.010") == 10 and text.count("Loss in nats") == 1
