"""The comparison of token mixers shown: tables, pictures, and a page that fetches nothing."""

import copy
import io

import pytest
from rich.console import Console

from attlas._common.errors import UsageError
from attlas._common.files import write_json
from attlas.catalog.pattern_results import mixers_section
from attlas.report.mixer_figures import frontier_figure, length_figure, loss_figure
from attlas.report.mixer_page import write_mixers
from attlas.report.mixer_tables import labels, load_mixers, mixer_tables, print_mixers

CURVE = [[1e12, 3.0], [2e12, 1.0]]
SOFTMAX = {
    "mixer": "softmax",
    "width": 64,
    "heads": 2,
    "inner": 256,
    "parameters": 65_000,
    "budget": 65_000,
    "flops": 10_000_000,
    "steps": 600,
    "flops_budget": 6_000_000_000,
    "uncounted": [],
    "state_bytes": 32_768,
    "rate": 0.003,
    "sweep": [],
    "runs": [{"curve": CURVE}, {"curve": [[1e12, 5.0], [2e12, 2.0]]}],
    "diverged": 0,
    "mean": 0.9876,
    "sd": 0.01234,
}
MINE = SOFTMAX | {
    "mixer": "my | pack:Mine",
    "inner": 300,
    "parameters": 64_350,
    "steps": 606,
    "state_bytes": None,
    "mean": 0.5,
    "uncounted": ["mine::kernel"],
    "runs": [{"diverged": "the loss of step 3 is nan"}, {"curve": CURVE}],
    "diverged": 1,
}
TASK = {
    "name": "mqar",
    "says": "associative recall",
    "metric": "accuracy",
    "higher_is_better": True,
    "form": "CS",
    "layers": ["base_conv", "the mixer under test"],
    "length": 64,
    "batch": 64,
    "steps": 600,
    "rows": [SOFTMAX, MINE, {"mixer": "x", "width": 64, "absent": "x has no CS form"}],
}
RESULT = {
    "schema": "attlas.mixers",
    "version": 1,
    "name": "mixers",
    "title": "Token mixers at equal parameters and FLOPs",
    "command": "attlas bench mixers",
    "settings": {
        "mixers": ["softmax", "my | pack:Mine", "x"],
        "seeds": 2,
        "rates": [0.001, 0.003],
        "widths": [64],
        "reference": "softmax",
        "ratio": 4,
        "tolerance": 0.02,
    },
    "tasks": [TASK],
    "speed": {
        "width": 256,
        "heads": 4,
        "lengths": [256, 512, 1024],
        "slow": 10.0,
        "rows": [
            {
                "mixer": "softmax",
                "forward_ms": [1.0, 2.0, 4.0],
                "train_ms": [3.0, 6.0, 125.4],
                "train_bytes": [2**20, 2**21, 2**22],
                "decode_us": [50.0, 60.0, None],
                "state_bytes": [1024, 2048, 4096],
            },
            {
                "mixer": "my | pack:Mine",
                "forward_ms": [2.0, 3.0, None],
                "train_ms": [3.0, 11_000.0, None],
                "train_bytes": [2**20, 2**20, None],
                "decode_us": [None, None, None],
                "state_bytes": [None, None, None],
            },
        ],
        "efficiency": {
            "my | pack:Mine": {
                "forward_ms": {"length": 700.4},
                "train_ms": {"absent": "the fits do not cross", "cheaper": "never"},
                "train_bytes": {"length": 5000.0},
            }
        },
    },
    "machine": {"processor": "abacus", "cores": 2},
    "versions": {"python": "3.11"},
}


def test_tables_hold_what_was_measured():
    recall, speed = mixer_tables(RESULT)
    assert recall.columns[:4] == ("mixer", "accuracy", "rate", "params")
    assert recall.rows[0] == (
        *("softmax", "0.988 ±0.012", "0.003", "65,000", "100.0", "10", "600", "100.0"),
        "32",
    )
    assert (
        recall.rows[1][0] == "Mine"
        and recall.rows[1][4] == "99.0"
        and recall.rows[1][-2:] == ("101.0", "none")
    )
    assert recall.notes[0].startswith("Accuracy on held-out data, higher is better: mean and standard dev")
    assert recall.notes[-4:] == (
        "FLOPs of Mine lack mine::kernel.",
        "Mine: 1 of 2 seeds diverged and are left out of the mean.",
        "FLOPs are those of torch's operations: what Mine may compute in numpy, numba or other code outside "
        "of torch is not counted, and buys steps that the others do not get.",
        "Left out: x has no CS form.",
    )
    assert speed.title == "Time and memory of one layer at 1,024 tokens"
    assert speed.rows[0] == ("softmax", "4", "125", "4", "none", "4", "", "", "")
    assert speed.rows[1] == ("Mine", "", "", "", "", "", "700", "never", "(5,000)")
    assert speed.notes[-1] == (
        "Mine was not measured beyond 512 tokens: a training call took more than 10 s."
    )


def test_flops_far_from_the_budget_are_told():
    task = TASK | {"rows": [SOFTMAX | {"steps": 3, "flops_budget": 40_000_000}]}
    (table,) = mixer_tables(RESULT | {"tasks": [task], "speed": None})
    assert not any("numpy" in note for note in table.notes)  # a mixer of ours alone
    assert table.notes[-1] == (
        "Of the FLOPs softmax at width 64 75.0%: whole steps come no nearer, train for more of them."
    )


def test_one_seed_has_no_deviation():
    lone = SOFTMAX | {"runs": [{"curve": CURVE}], "sd": None}
    result = RESULT | {"tasks": [TASK | {"rows": [lone]}], "speed": None}
    result["settings"] = RESULT["settings"] | {"seeds": 1}
    (table,) = mixer_tables(result)
    assert table.rows[0][1] == "0.988" and "higher is better: one seed, at the" in table.notes[0]
    spec = frontier_figure(result, result["tasks"][0]).to_dict()
    point = rows_of(spec, spec["layer"][-1] if "data" in spec["layer"][-1] else spec)[0]
    assert point["low"] == point["high"] == 0.9876
    assert "one seed at equal parameters and FLOPs" in str(spec["title"])
    assert "associative recall; one seed" in str(loss_figure(result, result["tasks"][0]).to_dict()["title"])


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        ({"absent": "the fits do not cross", "cheaper": "always"}, "always"),
        ({"absent": "the fits do not cross", "cheaper": "partly"}, "partly"),
        ({"absent": "a fit needs 4 lengths, there are 2"}, "too few"),
    ],
)
def test_without_a_length_the_table_says_which_costs_less(found, cell):
    speed = copy.deepcopy(RESULT["speed"])
    speed["efficiency"]["my | pack:Mine"]["forward_ms"] = found
    table = mixer_tables(RESULT | {"speed": speed})[-1]
    assert table.rows[1][6] == cell and "costs less at all, some or none" in table.notes[1]


def test_widths_have_a_column_where_there_are_several():
    several = RESULT | {"settings": RESULT["settings"] | {"widths": [32, 64]}, "speed": None}
    (table,) = mixer_tables(several)
    assert table.columns[:2] == ("mixer", "width") and table.rows[0][:2] == ("softmax", "64")
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_class_is_called_by_its_name_unless_two_are_alike():
    assert labels(["softmax", "a.b:Mine"]) == {"softmax": "softmax", "a.b:Mine": "Mine"}
    assert labels(["a:Mine", "b:Mine"]) == {"a:Mine": "a:Mine", "b:Mine": "b:Mine"}


def test_terminal_and_markdown_show_every_row():
    console = Console(width=140, record=True, file=io.StringIO())
    print_mixers(RESULT, console)
    text = console.export_text()
    for words in ("mqar: associative recall", "softmax", "Mine", "0.988", "Left out: x has no CS form."):
        assert words in text
    page = mixers_section(RESULT, "Command: `attlas bench mixers`.")
    assert page.startswith("## Token mixers at equal parameters and FLOPs\n")
    assert "| softmax | 0.988 ±0.012 | 0.003 |" in page and page.endswith("Command: `attlas bench mixers`.\n")


def rows_of(spec, panel):
    """The rows of a panel, which may stand beside the chart."""
    own = panel["data"]
    return own["values"] if "values" in own else spec["datasets"][own["name"]]


def test_the_frontier_has_a_point_per_mixer_with_a_state():
    spec = frontier_figure(RESULT, TASK).to_dict()
    points = rows_of(spec, spec["layer"][-1] if "data" in spec["layer"][-1] else spec)
    assert points == [
        {"mixer": "softmax", "kib": 32.0, "score": 0.9876, "low": 0.9876 - 0.01234, "high": 0.9876 + 0.01234}
    ]


def test_loss_is_the_mean_of_the_seeds_that_finished():
    spec = loss_figure(RESULT, TASK).to_dict()
    line = rows_of(spec, spec["layer"][0])
    assert line == [
        {"mixer": "softmax", "gflop": 1000.0, "loss": 4.0},
        {"mixer": "softmax", "gflop": 2000.0, "loss": 1.5},
        {"mixer": "Mine", "gflop": 1000.0, "loss": 3.0},
        {"mixer": "Mine", "gflop": 2000.0, "loss": 1.0},
    ]


def test_time_and_memory_leave_out_what_was_not_measured():
    spec = length_figure(RESULT).to_dict()
    panels = [panel for pair in spec["vconcat"] for panel in pair["hconcat"]]
    assert [panel["layer"][0].get("title", panel.get("title")) for panel in panels] == [
        "forward, ms",
        "forward and backward, ms",
        "memory of training, MiB",
        "one more token, microseconds",
    ]
    counts = [len(rows_of(spec, panel if "data" in panel else panel["layer"][0])) for panel in panels]
    assert counts == [5, 5, 5, 2]


def test_page_and_pictures_are_written_and_old_ones_removed(tmp_path):
    write_json(tmp_path / "mixers.json", RESULT)
    (tmp_path / "mixers").mkdir()
    (tmp_path / "mixers" / "loss-gone.png").write_bytes(b"old")
    found = write_mixers(tmp_path)
    names = sorted(path.name for path in (tmp_path / "mixers").iterdir())
    assert names == ["frontier-mqar.png", "index.html", "length.png", "loss-mqar.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.pictures)
    page = found.page.read_text()
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "http" not in page.replace("http-equiv", "")
    assert "65,000" in page and "abacus, 2 cores" in page


def test_nothing_is_drawn_of_what_is_not_there(tmp_path):
    bare = copy.deepcopy(RESULT) | {"speed": None}
    bare["tasks"][0]["rows"] = [TASK["rows"][2]]
    write_json(tmp_path / "mixers.json", bare)
    assert write_mixers(tmp_path).pictures == ()


def test_a_missing_or_newer_result_is_refused(tmp_path):
    with pytest.raises(UsageError, match="mixers.json does not exist; check the path"):
        load_mixers(tmp_path)
    write_json(tmp_path / "mixers.json", RESULT | {"version": 2})
    with pytest.raises(UsageError, match="was written by a newer Attlas"):
        load_mixers(tmp_path)
