"""KGAT's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import kgat as claims
from skips import needs

RECALL = {"BPR-MF": 0.10, "KGAT": 0.15, "even weights": 0.12, "no triples": 0.13}


def run_with(recall=None, arms=claims.ARMS):
    values = RECALL | (recall or {})
    found = {f"recall@20, {arm}": values[arm] for arm in arms}
    return found | {f"{name}, {arm}": 0.1 for arm in arms for name in ("NDCG@20", "rate", "epoch")}


@pytest.mark.parametrize(
    ("recall", "outcome", "text"),
    [
        ({}, "holds", "KGAT 0.150 ± 0.000"),
        ({"BPR-MF": 0.16}, "does not hold", "KGAT is below BPR-MF."),
        ({"no triples": 0.151}, "does not hold", "KGAT is below no triples."),
        ({"even weights": 0.15}, "not shown at this scale", "Within the spread of KGAT: even weights."),
    ],
)
def test_each_part_of_the_rule_decides(recall, outcome, text):
    verdict = claims.judge([run_with(recall)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_spread_decides_and_the_full_set_has_two_arms():
    runs = [run_with({"KGAT": 0.15 + shift, "BPR-MF": 0.14}) for shift in (-0.05, 0.0, 0.05)]
    assert "Within the spread of KGAT: BPR-MF" in claims.judge(runs).measured
    two = [run_with(arms=claims.LONG_ARMS)] * 3
    verdict = claims.judge(two)
    assert verdict.outcome == "holds"
    assert verdict.measured.endswith("with BPR-MF was made, not that with: even weights, no triples.")


@needs("recbole")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {
        "EPOCHS": 1,
        "BASE_EPOCHS": 1,
        "BASE_EVERY": 1,
        "RATES": (1e-3,),
        "PER_USER": 3,
    }.items():
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(claims, "WIDTH", 8)
    monkeypatch.setattr(claims, "LAYERS", (4,))
    monkeypatch.setattr(claims, "TRIPLE_BATCH", 100_000)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("even weights at 0.001: epoch 1 of 1, validation") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
