"""RFA's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import rfa as claims

AVERAGE = {"attention": 0.08, "biased": 0.1, "biased 4x": 0.36, "perceptron": 1.0}
CORRELATION = {"attention": 0.6, "biased": 0.5, "biased 4x": 0.4, "perceptron": 0.8}


def run_with(average=None, correlation=None, samples=claims.SAMPLES):
    values = {}
    for target, base, change in (
        (claims.AVERAGE, AVERAGE, average),
        (claims.CORRELATION, CORRELATION, correlation),
    ):
        for name, error in (base | (change or {})).items():
            values |= {f"error on {target}, {name}, {n} samples": error for n in samples}
    return values


@pytest.mark.parametrize(
    ("average", "correlation", "outcome", "text"),
    [
        ({}, {}, "holds", "attention 0.08/0.08/0.08/0.08"),
        ({"attention": 0.11}, {}, "does not hold", "Gap on the average: 9.1 times. Not met: at 2000 samples"),
        ({"attention": 1.1}, {}, "does not hold", "attention below the net on the average at every"),
        ({}, {"biased 4x": 0.55}, "does not hold", "Not met: on the correlation a stronger bias"),
        ({}, {"attention": 0.85}, "does not hold", "Not met: on the correlation a stronger bias"),
    ],
)
def test_each_part_of_the_rule_decides(average, correlation, outcome, text):
    verdict = claims.judge([run_with(average, correlation)] * 5)
    assert verdict.outcome == outcome and text in verdict.measured


def test_one_number_of_samples_out_of_order_decides():
    run = run_with()
    run["error on correlation, biased, 500 samples"] = 0.7
    assert claims.judge([run] * 5).outcome == "does not hold"


def test_the_long_form_is_judged_at_its_largest_size():
    run = run_with(samples=claims.LONG_SAMPLES)
    assert "at 250/500/1000/2000/4000 samples" in claims.judge([run] * 5).measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    sizes = {"SAMPLES": (20, 40), "HEADS": 4, "HELD": 10, "TESTED": 10, "SCALED": 50}
    for name, value in sizes.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with(samples=(20, 40)))
    assert "biased 4x: 40 samples" in said
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is fitted already is not fitted again"


def test_every_arm_has_as_many_parameters(monkeypatch):
    monkeypatch.setattr(claims, "HEADS", 3)
    query, keys = claims.points(5, 0)
    for name in claims.NAMES:
        assert claims.features(name, query, keys, 0).shape == (5, 3 * 13), name


def test_targets_are_their_formulas():
    query, keys = claims.points(3, 0)
    direction = torch.eye(12, dtype=torch.float64)[2]
    expected = [
        [
            sum(key[2].item() ** 2 for key in seen) / 12,
            sum((first @ key).item() ** 3 * key[2].item() for key in seen) / 12,
        ]
        for first, seen in zip(query, keys, strict=True)
    ]
    torch.testing.assert_close(
        claims.targets(query, keys, direction), torch.tensor(expected, dtype=torch.float64)
    )
