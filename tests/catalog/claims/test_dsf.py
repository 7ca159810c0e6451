"""DSF's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import dsf as claims

GOOD = {"linear 8": 0.25, "linear 32": 0.64, "normalised 8": 0.9, "normalised 32": 0.95, "softmax": 1.0}


def run_with(error=1e-14, **changed):
    arms = GOOD | {name.replace("_", " "): value for name, value in changed.items()}
    errors = {f"error of {name} as a system": error for name in claims.CONVERTED}
    return errors | {f"accuracy, {name}": value for name, value in arms.items()}


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "linear 8 0.250 ± 0.000"),
        ({}, "holds", "Largest error of a mixer as a system: 1e-14."),
        ({"softmax": 0.8}, "not shown at this scale", "Softmax attention does not learn"),
        ({"error": 1e-6}, "does not hold", "Not met: errors of the conversions below 1e-10."),
        ({"linear_32": 0.3}, "does not hold", "Not met: linear attention gains at least 0.1"),
        ({"normalised_8": 0.2}, "does not hold", "Not met: normalised attention at least linear attention"),
        ({"softmax": 0.95, "linear_32": 0.96, "normalised_32": 0.97}, "does not hold", "stays below softmax"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([run_with(**changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_the_long_form_has_a_width_between():
    verdict = claims.judge([run_with(linear_16=0.5, normalised_16=0.92)] * 3)
    assert verdict.outcome == "holds" and "linear 16 0.500" in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny = {"STEPS": 2, "BATCH": 2, "EXAMPLES": 4, "TESTED": 3, "WIDTH": 8, "VOCABULARY": 80}
    for name, value in (tiny | {"LENGTH": 32}).items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert all(values[name] < 1e-10 for name in values if name.startswith("error"))
    assert any(line.startswith("normalised 32: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


def test_both_mixers_have_the_same_state():
    linear, normalised = (
        claims.network(name, 8, 0).mixers[1].start(1)["sum"].shape
        for name in (claims.LINEAR, claims.NORMALISED)
    )
    assert linear == normalised == (1, 1, 8, 64)
