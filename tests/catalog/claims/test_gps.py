"""GPS's claim: its rule, and one seed at a tiny size."""

import pytest

from attlas import tasks
from attlas.catalog.claims import gps as claims
from skips import needs

ERRORS = {"messages": 1.0, "linear attention": 1.1, "both": 0.9}
PATHS = {"messages": 0.25, "messages and softmax": 1.0, "both": 0.99}


def run_with(errors=None, paths=None, **more):
    values = {f"MAE, {name}": one for name, one in (ERRORS | (errors or {})).items()}
    values |= {f"path accuracy, {name}": one for name, one in (PATHS | (paths or {})).items()}
    values |= {f"steps to 90 %, {name}": 100.0 for name in PATHS}
    for kind, power in (("softmax", 1.9), ("linear", 1.1)):
        values |= {f"seconds, {kind}, {size}": 1e-5 * size**power for size in claims.SIZES}
        values[f"exponent, {kind}"] = more.get(kind, power)
    return values


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "both 0.900 ± 0.000"),
        ({"errors": {"both": 1.05}}, "does not hold", "Not met: not worse than a part alone."),
        ({"errors": {"both": 1.0}}, "not shown at this scale", "Within the spread: messages."),
        ({"paths": {"both": 0.8}}, "does not hold", "Not met: accuracy of 90% on paths."),
        ({"paths": {"messages": 0.9}}, "not shown at this scale", "The control is not at chance"),
        ({"linear": 1.5}, "does not hold", "Not met: time growing with an exponent of at most 1.3."),
        ({"softmax": 1.2}, "does not hold", "Not met: softmax growing faster."),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([run_with(**changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@needs("datamol")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    small = {"EPOCHS": 1, "MOLECULES": 8, "PATH_STEPS": 1, "PATHS": 2, "TESTED": 4, "CHECKED": 4}
    for name, value in (small | {"SIZES": (8, 16, 32, 64), "REPEATS": 1}).items():
        monkeypatch.setattr(claims, name, value)
    few = tuple(part[:9] for part in tasks.solubility())
    monkeypatch.setattr(tasks, "solubility", lambda: few)
    values = claims.measure(1000, long=False, folder=tmp_path, step=lambda text: None)
    monkeypatch.undo()
    tiny = {name for name in values if not name.startswith("seconds")}
    assert tiny == {name for name in run_with() if not name.startswith("seconds")}
    said: list[str] = []
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
