"""Zoology's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import zoology as claims

GOOD = {
    "convolution": 0.14,
    "convolution and attention": 1.0,
    "chosen rows": 0.98,
    "random rows": 0.3,
}


def run_with(**changed):
    named = {name.replace("_", " "): value for name, value in changed.items()}
    return {f"accuracy, {name}": value for name, value in (GOOD | named).items()}


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "chosen rows 0.980 ± 0.000"),
        ({}, "holds", "Chosen rows close 98% of the gap"),
        ({"convolution and attention": 0.8}, "not shown at this scale", "Attention does not learn the task"),
        ({"convolution": 0.6}, "does not hold", "Not met: convolution below 0.5."),
        ({"chosen rows": 0.7}, "does not hold", "Not met: chosen rows close at least 80% of the gap."),
        ({"random rows": 0.9}, "does not hold", "Not met: chosen rows at least 0.2 above random rows."),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    changed = {name.replace(" ", "_"): value for name, value in changed.items()}
    verdict = claims.judge([run_with(**changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@pytest.mark.parametrize("long", [False, True])
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch, long):
    tiny = {
        "STEPS": 2,
        "LONG_STEPS": 2,
        "BATCH": 2,
        "LONG_BATCH": 2,
        "EXAMPLES": 4,
        "TESTED": 3,
        "WIDTH": 8,
        "WIDER": (12,),
    }
    tiny |= {"VOCABULARY": 80}
    for name, value in tiny.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=long, folder=tmp_path, step=said.append)
    extra = (
        {"accuracy, attention", "accuracy, convolution, width 12", "accuracy, 8 chosen rows"}
        if long
        else set()
    )
    assert set(values) == set(run_with()) | extra
    assert any(line.startswith("chosen rows: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=long, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
    assert "width 12" in claims.judge([values]).measured if long else True
