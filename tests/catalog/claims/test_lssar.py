"""LSSAR's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import lssar as claims

FLAT = {length: 2.0 for length in claims.LENGTHS}


def run_with(softmax=0.0, lssar=0.0):
    """softmax and LSSAR 15 rise by so much at 1024 and 2048."""
    values = {f"nats at {n}, {arm}": loss for arm in claims.ARMS for n, loss in FLAT.items()}
    for length in claims.FAR:
        values[f"nats at {length}, softmax"] += softmax
        values[f"nats at {length}, LSSAR 15"] += lssar
    return values


@pytest.mark.parametrize(
    ("softmax", "lssar", "outcome", "text"),
    [
        (0.3, 0.01, "holds", "LSSAR 15 lies below softmax by +0.290 ± 0.000 at 1024, +0.290 ± 0.000 at 2048"),
        (0.3, 0.06, "does not hold", "Not met: LSSAR 15 rises by at most 0.05"),
        (-0.1, 0.0, "does not hold", "Not met: LSSAR 15 not above softmax at 1024; LSSAR 15 not above"),
        (0.0, 0.0, "not shown at this scale", "within the spread of the seeds"),
    ],
)
def test_each_part_of_the_rule_decides(softmax, lssar, outcome, text):
    verdict = claims.judge([run_with(softmax, lssar)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_gap_within_the_spread_shows_nothing():
    verdict = claims.judge([run_with(0.01 + change) for change in (-0.1, 0.0, 0.1)])
    assert verdict.outcome == "not shown at this scale"
    assert "softmax 2.000 / 2.000 / 2.000 / 2.010 / 2.010" in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "WINDOWS": 1, "LENGTHS": (128, 256), "FAR": (256,)}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == {f"nats at {n}, {arm}" for n in (128, 256) for arm in claims.ARMS}
    assert any(line.startswith("LSSAR 15: step 2 of 2") for line in said)
    assert claims.judge([values] * 3).measured.startswith("Nats per byte at 128 / 256 bytes: softmax ")
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said


def test_arms_start_from_the_same_weights():
    nets = [claims.network(arm, 3).state_dict() for arm in claims.ARMS]
    for other in nets[1:]:
        assert all(torch.equal(one, two) for one, two in zip(nets[0].values(), other.values(), strict=True))
