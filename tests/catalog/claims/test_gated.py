"""Gated attention's claim: its rule, its networks, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import gated as claims


def run_with(changes=None):
    values = {f"loss, {arm}": 2.1 for arm in claims.ARMS} | {
        f"first token, {arm}": 0.05 for arm in claims.ARMS
    }
    values |= {f"gate, {arm}": 0.3 for arm in claims.GATES}
    values |= {"loss, G1 elementwise": 2.0, "first token, baseline": 0.4}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "Attention to the first token: baseline 0.400"),
        ({"loss, G1 elementwise": 2.2}, "does not hold", "no worse than that of any other arm"),
        ({"loss, G2 elementwise": 1.9}, "does not hold", "no worse than that of any other arm"),
        ({"gate, G1 elementwise": 0.6}, "does not hold", "Not met: a mean gate of G1 elementwise below 0.5"),
        ({"first token, G1 elementwise": 0.3}, "does not hold", "at most 0.5 of the baseline's"),
        ({"first token, baseline": 0.1}, "not shown at this scale", "the baseline has no sink to lose"),
        ({"loss, G1 elementwise": 2.1}, "not shown at this scale", "the gain in loss is within the spread"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_arms_differ_in_their_gates_alone():
    nets = {arm: claims.network(arm, 3) for arm in (*claims.ARMS, *claims.LONG_GATES)}
    base = nets["baseline"].state_dict()
    for arm, net in nets.items():
        state = net.state_dict()
        assert all(torch.equal(base[name], state[name]) for name in base)
        added = {name.split(".gates.")[1] for name in state if name not in base}
        wanted = set() if arm == "baseline" else {"G1.weight.weight"}
        other = {"G2 elementwise": {"G2.weight.weight"}, "G1 input-independent": {"G1.theta"}}
        assert added == other.get(arm, wanted)


def test_the_share_of_the_first_token_is_that_of_the_weights():
    net = claims.network("G1 headwise", 0)
    with torch.no_grad():
        for block in net.blocks:
            block.mixer.key.weight.zero_()
            block.mixer.gates["G1"].weight.weight.zero_()
    found = claims.looked_at(net, torch.randint(0, 256, (2, 12)))
    assert found["first token"] == pytest.approx(sum(1 / i for i in range(1, 13)) / 12)
    assert found["gate"] == 0.5


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "LENGTH": 16, "WINDOWS": 4}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any("G2 elementwise: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
