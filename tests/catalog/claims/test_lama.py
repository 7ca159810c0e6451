"""LAMA's claim: its rule, and one seed in few steps."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import lama as claims
from skips import needs


def run_with(changes=None):
    values = {}
    for name in claims.ARMS:
        values |= {f"accuracy, {name}": 0.6, f"attention parameters, {name}": 1408.0}
        values |= {f"seconds per epoch, {name}": 4.0}
    values |= {"attention parameters, self-attention": 65_792.0, "seconds per epoch, self-attention": 5.0}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "LAMA 0.600 ± 0.000 (1408 parameters of the pooling, 4.0 CPU seconds an epoch)"),
        ({"accuracy, LAMA": 0.58}, "does not hold", "Not met: accuracy at most 0.01 below self-attention."),
        ({}, "holds", "46.7 times fewer parameters than that of self-attention; with the classes"),
        ({}, "holds", "18,074 against 69,146, 3.8 times fewer."),
        ({"seconds per epoch, LAMA": 5.5}, "does not hold", "Not met: less time per epoch with every seed."),
        ({"accuracy, self-attention": 0.3}, "not shown at this scale", "does not learn the classes"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_one_slow_seed_decides():
    runs = [run_with(), run_with(), run_with({"seconds per epoch, LAMA": 5.5})]
    assert claims.judge(runs).outcome == "does not hold"


@needs("wordnet")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"TRAIN": 64, "TEST": 16, "EPOCHS": 1, "EMBEDDING": 8, "HIDDEN": 8}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert values["attention parameters, LAMA"] == 2 * 16 * 5 + 16
    assert values["attention parameters, self-attention"] == 4 * 16**2 + 2 * 16
    assert any("LAMA+ctx: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
