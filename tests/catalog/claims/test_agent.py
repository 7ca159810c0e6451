"""Agent Attention's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import agent as claims

GOOD = {"softmax": 0.93, "agent": 0.935, "linear": 0.92, "agent without convolution": 0.94}


def run_with(ratio=8.0, **changed):
    values = {f"accuracy, {arm}": value for arm, value in (GOOD | changed).items()}
    return values | {"time of softmax over agent": ratio}


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "agent 0.935 ± 0.000, linear 0.920"),
        ({"softmax": 0.8}, "not shown at this scale", "Softmax attention does not learn the digits"),
        ({"agent": 0.9}, "does not hold", "Not met: agent at most 0.02 below softmax; agent above linear."),
        ({"linear": 0.94}, "does not hold", "Not met: agent above linear."),
        ({"ratio": 3.0}, "does not hold", "Not met: softmax at least 5 times slower."),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([run_with(**changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "TRAIN": 4, "TEST": 3, "TOKENS": 64}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("agent: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


def test_nets_differ_in_their_mixers_alone():
    nets = [claims.network(arm, 0) for arm in claims.ARMS]
    images = torch.rand(2, 1, 8, 8)
    assert all(net(images).shape == (2, 10) for net in nets)
    others = [{name: p for name, p in net.named_parameters() if ".mixer." not in name} for net in nets]
    assert all(
        {n: p.shape for n, p in one.items()} == {n: p.shape for n, p in others[0].items()} for one in others
    )
    assert others[0]["embedding.3.places"].std() > 0.9
