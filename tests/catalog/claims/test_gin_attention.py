"""GIN attention's claim: its rule, equal parameters, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import gin_attention as claims


def run_with(changes=None, tuned=False):
    values = {}
    for name, bits in zip(claims.NAMES, (3.0, 2.9, 3.1), strict=True):
        values |= {f"bits per byte, {name}": bits, f"gap to training text, {name}": bits - 2.8}
        values[f"parameters, {name}"] = 131000.0
    if tuned:
        values |= {"nats per token, sparse GIN": 2.0, "nats per token, LoRA": 2.0}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "GIN's held-out bits lower than standard by 0.100; GIN's gap lower"),
        ({"bits per byte, GIN": 3.1}, "does not hold", "GIN's held-out bits higher than standard by 0.100"),
        ({"bits per byte, GIN": 3.0}, "not shown at this scale", "Not both are beyond the spread"),
        ({"gap to training text, GIN": 0.3}, "does not hold", "GIN's gap higher than standard by 0.100"),
        (
            {"gap to training text, GIN": 3.0 - 2.8},
            "not shown at this scale",
            "Not both are beyond the spread",
        ),
        ({"nats per token, sparse GIN": 2.1}, "does not hold", "Sparse GIN is more than 0.02 above LoRA."),
        ({"nats per token, sparse GIN": 2.01}, "holds", "sparse GIN 2.010 ± 0.000, LoRA 2.000"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    tuned = any("nats" in name for name in changes)
    verdict = claims.judge([run_with(changes, tuned)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_lead_within_the_spread_shows_nothing():
    runs = [run_with({"bits per byte, GIN": bits}) for bits in (2.7, 2.9, 3.1)]
    assert claims.judge(runs).outcome == "not shown at this scale"
    runs = [run_with({"gap to training text, GIN": gap}) for gap in (0.1, 0.3, 0.5)]
    assert claims.judge(runs).outcome == "not shown at this scale"


def test_the_gap_is_told_as_one_between_texts():
    assert "training text (about half of which 150 steps draw)" in claims.judge([run_with()] * 3).measured
    assert "not a measure of overfitting" in claims.CLAIM.rule


def test_nets_have_equal_parameters():
    counts = [sum(weight.numel() for weight in claims.network(name, 0).parameters()) for name in claims.NAMES]
    assert max(counts) - min(counts) < 0.003 * max(counts)


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "LENGTH": 20, "WINDOWS": 4}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any("PNA: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
