"""PLDR-LLM's claim: its rule, equal parameters, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import plga as claims

VALUES = {
    "spread before": 0.2,
    "spread after": 0.05,
    "nats per byte, matrices of each window": 2.100,
    "nats per byte, learned matrix": 2.105,
    "nats per byte, matrix of the prefix": 2.12,
    "nats per byte, dot products": 2.09,
    "difference of the caches": 0.0,
    **{f"bytes per CPU second, {name}": 100.0 for name in claims.CACHES},
}


def run_with(changes=None):
    return VALUES | (changes or {}) | {f"parameters, {arm}": 1e5 for arm in claims.ARMS}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "change the loss by +0.0050 to +0.0050 nats"),
        ({"spread after": 0.11}, "does not hold", "Not met: the spread falls to 0.5 of what it was."),
        ({"nats per byte, learned matrix": 2.111}, "does not hold", "change the loss by less than 0.01"),
        ({"nats per byte, learned matrix": 2.089}, "does not hold", "change the loss by less than 0.01"),
        ({"difference of the caches": 1e-7}, "does not hold", "both caches give the same numbers"),
        ({"nats per byte, dot products": 1.0}, "holds", "dot products 1.000"),
    ],
)
def test_each_part_of_the_rule_decides_in_every_seed(changes, outcome, text):
    verdict = claims.judge([run_with(), run_with(changes), run_with()])
    assert verdict.outcome == outcome
    assert text in claims.judge([run_with(changes)] * 3).measured


def test_nets_have_equal_parameters():
    counts = {arm: sum(p.numel() for p in claims.network(arm, 0).parameters()) for arm in claims.ARMS}
    assert counts["learned matrix"] == counts["matrix of the prefix"]
    assert max(counts.values()) <= 1.002 * min(counts.values()), counts


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    small = {"STEPS": 2, "BATCH": 2, "WINDOWS": 2, "PROMPTS": 2, "LENGTH": 40, "DECODED": 2, "ROUNDS": 1}
    for name, value in small.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert values["difference of the caches"] == 0 and values["spread before"] > 0
    assert any(line.startswith("dot products: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
