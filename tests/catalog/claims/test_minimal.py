"""The minimal transformer's claim: its rule, and one seed in few steps."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import minimal as claims


def run_with(changes=None):
    values = {}
    for index, name in enumerate(claims.ARMS):
        values |= {
            f"validation accuracy, {name}": 0.95 - 0.003 * (index > 0),
            f"training accuracy, {name}": 1.0,
        }
        values |= {f"training loss, {name}": 0.001 + 0.01 * index, f"validation loss, {name}": 0.2}
        values |= {f"parameters, {name}": 3000.0 if index == 0 else 900.0}
        values |= {f"all parameters, {name}": 4000.0, f"Qd, {name}": 0.5}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "full 0.950 ± 0.000 (loss 0.001 in training, 0.200 in validation; 3000 parameters, Qd"),
        (
            {"validation accuracy, noMLP": 0.92},
            "does not hold",
            "Not met: noMLP, noMLP+symmetric, noMLP+Wqk at most 0.02 less accurate",
        ),
        (
            {"validation accuracy, noMLP+Wqk+noVO": 0.89},
            "does not hold",
            "Not met: the smallest at most 0.05",
        ),
        ({"training loss, noMLP": 0.0}, "does not hold", "Not met: the lowest training loss with the full"),
        ({"validation loss, noMLP": 0.1}, "does not hold", "Not met: a gap between validation and training"),
        ({"validation accuracy, noMLP+symmetric": 0.935}, "does not hold", "Not met: symmetric not below"),
        ({"validation accuracy, full": 0.8}, "not shown at this scale", "The full net does not learn"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EPOCHS", 1)
    monkeypatch.setattr(claims, "BATCH", 16)
    monkeypatch.setattr(claims, "TRAIN", 32)
    monkeypatch.setattr(claims, "TEST", 20)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    sizes = [values[f"parameters, {name}"] for name in claims.ARMS]
    assert max(sizes[1:]) <= sizes[0] / 3  # what the rule calls given
    assert values["parameters, full"] == 4 * 12448 and values["parameters, noMLP+Wqk+noVO"] == 4 * 1024
    assert any("noMLP: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
