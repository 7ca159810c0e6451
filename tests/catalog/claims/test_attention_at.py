"""Attention AT's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import attention_at as claims
from skips import needs


def run_with(changes=None):
    values = {}
    for arm in claims.ARMS:
        values |= {f"macro F1, {arm}": 0.7, f"pearson, {arm}": 0.6, f"kendall, {arm}": 0.4}
    values |= {"pearson, AT": 0.8, "pearson, iAT": 0.78, "pearson, random": 0.62}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "Correlation with the gradient: vanilla 0.600 ± 0.000, AT 0.800 ± 0.000,"),
        ({"pearson, AT": 0.64}, "does not hold", "Not met: correlation of AT above vanilla by more than"),
        ({"pearson, iAT": 0.6}, "does not hold", "Not met: correlation of iAT above vanilla by more than"),
        ({"macro F1, iAT": 0.68}, "does not hold", "Not met: macro F1 of AT and iAT at most 0.01 below"),
        ({"pearson, random": 0.75}, "does not hold", "Not met: random directions gain less than 0.5"),
        ({"macro F1, vanilla": 0.3}, "not shown at this scale", "The vanilla classifier learns too little"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_gain_within_the_spread_does_not_count():
    runs = [run_with({"pearson, AT": value}) for value in (0.5, 0.8, 1.0)]
    assert "correlation of AT above vanilla" in claims.judge(runs).measured


def test_other_sizes_of_the_perturbation_are_told():
    more = {"macro F1, AT eps 0.1": 0.71, "pearson, AT eps 0.1": 0.7}
    more |= {"macro F1, AT eps 5": 0.69, "pearson, AT eps 5": 0.9}
    verdict = claims.judge([run_with(more), run_with(), run_with()])
    assert "at eps 1: 0.700 and 0.800, 0.1: 0.710 and 0.700, 5: 0.690 and 0.900." in verdict.measured


@needs("wordnet")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "TRAIN": 40, "TEST": 12, "EMBEDDING": 4, "HIDDEN": 3}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert all(-1 <= value <= 1 for value in values.values())
    assert any("iAT: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
    first = claims.measure(0, long=False, folder=tmp_path / "0", step=said.append)
    assert set(first) - set(values) >= {"macro F1, AT eps 0.1", "pearson, AT eps 5"}
