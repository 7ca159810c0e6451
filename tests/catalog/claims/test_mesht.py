"""The mesh transformer's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import mesht as claims

ROLLOUT = {
    "1 hop": 0.5,
    "1 and 2 hops": 0.3,
    "1 and 3 hops": 0.32,
    "MeshGraphNet": 0.5,
}


def run_with(rollout=None, single=0.01, ratio=3.0, still=(0.1, 0.9)):
    rolled = ROLLOUT | (rollout or {})
    found = {f"rollout RMSE, {arm}": rolled[arm] for arm in claims.ARMS}
    for arm in claims.ARMS:
        found |= {f"1-step RMSE, {arm}": single if arm == "1 hop" else 0.01, f"steps, {arm}": 4.0}
        found |= {f"milliseconds a step, {arm}": 1.0}
    found |= {
        f"{what} RMSE, nothing changes": one for what, one in zip(("1-step", "rollout"), still, strict=True)
    }
    return found | {"time ratio": ratio}


@pytest.mark.parametrize(
    ("options", "outcome", "text"),
    [
        ({}, "holds", "MeshGraphNet over 1 hop 3.00"),
        ({"ratio": 1.9}, "does not hold", "Not met: a step 2 times as fast."),
        ({"single": 0.02}, "does not hold", "Not met: a 1-step error no larger than MeshGraphNet's."),
        ({"rollout": {"1 and 2 hops": 0.6}}, "does not hold", "a rollout error with 1 and 2 hops no larger"),
        ({"rollout": {"1 and 3 hops": 0.5}}, "not shown at this scale", "spread of 1 hop: 1 and 3 hops."),
        ({"still": (0.01, 0.9)}, "not shown at this scale", "every seed: 1-step RMSE, 1 hop; 1-step"),
        ({"still": (0.1, 0.4), "ratio": 1.9}, "not shown at this scale", "seed: rollout RMSE, 1 hop; roll"),
    ],
)
def test_each_part_of_the_rule_decides(options, outcome, text):
    verdict = claims.judge([run_with(**options)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    small = {"STEPS": 2, "TRAINED": 2, "TESTED": 1, "LENGTH": 2, "NODES": (60, 70), "WIDTH": 8, "TURNS": 1}
    for name, value in small.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("1 and 3 hops: step 2 of 2") for line in said)
    assert values["steps, MeshGraphNet"] == max(1, round(2 / values["time ratio"]))
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert said == ["times of a training step"], "what is trained already is not trained again"
