"""FlashSigmoid's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import flashsigmoid as claims

NATS = {"softmax": 2.0, "sigmoid, -log n": 2.03, "sigmoid, 0": 2.3}
RATIOS = {"sigmoid, -log n": 1.6, "sigmoid, 0": 50.0}


def run_with(nats=None, ratios=None):
    values = {f"nats, {arm}": one for arm, one in (NATS | (nats or {})).items()}
    return values | {f"output, {arm}": one for arm, one in (RATIOS | (ratios or {})).items()}


@pytest.mark.parametrize(
    ("nats", "ratios", "outcome", "text"),
    [
        ({}, {}, "holds", "1.60 with -log 128, 50.0 with 0 (n/2 is 64)"),
        ({"sigmoid, -log n": 2.07}, {}, "does not hold", "Not met: loss with -log n at most 1.03"),
        ({"sigmoid, 0": 2.01}, {}, "does not hold", "Not met: loss with 0 not below that with -log n"),
        ({}, {"sigmoid, -log n": 2.2}, "does not hold", "Not met: output with -log n within 2 times"),
        ({}, {"sigmoid, -log n": 0.4}, "does not hold", "Not met: output with -log n within 2 times"),
        ({}, {"sigmoid, 0": 20.0}, "does not hold", "Not met: output with 0 at least n/4 = 32 times"),
        ({"sigmoid, 0": 2.03}, {}, "not shown at this scale", "within the spread of the seeds"),
    ],
)
def test_each_part_of_the_rule_decides(nats, ratios, outcome, text):
    verdict = claims.judge([run_with(nats, ratios)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_gap_within_the_spread_shows_nothing():
    runs = [run_with({"sigmoid, 0": 2.04 + change}) for change in (-0.2, 0.0, 0.2)]
    assert claims.judge(runs).outcome == "not shown at this scale"


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "WINDOWS": 2, "PROBED": 2}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("sigmoid, 0: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said


def test_arms_start_from_the_same_weights():
    nets = [claims.network(arm, 3).state_dict() for arm in claims.ARMS]
    for other in nets[1:]:
        assert all(torch.equal(one, two) for one, two in zip(nets[0].values(), other.values(), strict=True))
