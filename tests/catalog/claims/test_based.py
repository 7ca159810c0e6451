"""BASED's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import based as claims

ACCURACY = {
    "small window": 0.4, "large window": 0.6, "Taylor 2": 0.6, "Taylor 4": 0.9, "Taylor 8": 1.0,
    "Taylor 2 and small window": 0.95, "attention": 1.0,
}  # fmt: skip
STATE = {
    "small window": 1152, "large window": 2176, "Taylor 2": 518, "Taylor 4": 1103, "Taylor 8": 3053,
    "Taylor 2 and small window": 1542, "attention": 4224,
}  # fmt: skip


def run_with(changes):
    values = {f"accuracy, {arm}": one for arm, one in (ACCURACY | changes).items()}
    return values | {f"state, {arm}": float(one) for arm, one in STATE.items()}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "Taylor 2 0.600 ± 0.000 with 518, Taylor 4 0.900"),
        ({"large window": 0.37}, "does not hold", "Not met: more state, more recall among windows."),
        ({"Taylor 4": 0.5}, "does not hold", "more recall among Taylor layers"),
        (
            {"Taylor 2 and small window": 0.5},
            "does not hold",
            "Not met: both together on or above either family at their state.",
        ),
        ({"small window": 0.9, "large window": 0.95}, "does not hold", "recalls more than small window."),
        ({"attention": 0.9}, "not shown at this scale", "Full attention does not learn the task"),
        (dict.fromkeys(ACCURACY, 0.99), "not shown at this scale", "Every state is large enough"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "TRAIN": 4, "TEST": 4}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with({}))
    # Two inputs of the convolution; keys and values of a window; (width + 1) features of Taylor layers.
    assert {arm: values[f"state, {arm}"] for arm in STATE} == STATE
    assert any(line.startswith("Taylor 8: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
