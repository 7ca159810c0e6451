"""CMR's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attlas.catalog.claims import cmr as claims

GOOD = {"full": 1.0, "window": 0.13, "reweaving": 0.8, "random items": 0.4, "one layer": 0.75}


def run_with(changed=None):
    values = GOOD | (changed or {})
    return {f"{what}, {arm}": value for what in ("recall", "far recall") for arm, value in values.items()}


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "reweaving 0.800 ± 0.000 (far ones 0.800)"),
        ({"full": 0.8}, "not shown at this scale", "Full attention does not learn the task"),
        ({"window": 0.7}, "does not hold", "Not met: reweaving at least 0.2 above the window."),
        ({"random items": 0.75}, "does not hold", "Not met: reweaving at least 0.1 above random items."),
        ({"one layer": 0.9}, "does not hold", "Not met: two layers at most 0.02 below one."),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([run_with(changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@pytest.mark.parametrize("long", [False, True])
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch, long):
    for name, value in {"EXAMPLES": 4, "TESTED": 3, "WIDTH": 8}.items():
        monkeypatch.setattr(claims, name, value)
    for name in ("SHORT", "LONG"):
        monkeypatch.setattr(claims, name, replace(getattr(claims, name), steps=2, batch=2))
    said: list[str] = []
    values = claims.measure(1000, long=long, folder=tmp_path, step=said.append)
    more = (
        {f"{arm}, half the items": 0.0 for arm in ("reweaving", "random items", "one layer")} if long else {}
    )
    assert set(values) == set(run_with(more))
    assert any(line.startswith("reweaving: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=long, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


@pytest.mark.parametrize(("size", "reach"), [("SHORT", 9), ("LONG", 13)])
def test_the_window_reaches_no_key(monkeypatch, size, reach):
    monkeypatch.setattr(claims, "EXAMPLES", 50)
    chosen = getattr(claims, size)
    net = claims.network("window", 0, chosen, 4)
    x = torch.randn(1, 40, claims.WIDTH, requires_grad=True)
    y = x
    for index in range(claims.LAYERS):
        y = net.layer(index, y)
    first = torch.autograd.grad(y[0, -1].sum(), x)[0][0].abs().sum(-1).nonzero().min()
    _, test = claims.data(0, chosen)
    # The value stands one token after the key.
    assert 39 - first == reach and test.distance[test.distance > 0].min() - 1 > reach
    assert (test.distance > chosen.far).any() and (test.distance[test.distance > 0] <= chosen.far).any()
