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
        ({"gate, G1 elementwise": 0.6}, "does not hold", "Not met: a mean gate of G1 elementwise below its"),
        ({"first token, G1 elementwise": 0.3}, "does not hold", "at most 0.5 of the baseline's"),
        ({"first token, baseline": 0.1}, "not shown at this scale", "the baseline has no sink to lose"),
        ({"gate, G1 elementwise": 0.5}, "does not hold", "below its start of 0.5"),
        ({"loss, baseline": 2.0}, "not shown at this scale", "the gain in loss over baseline is within the"),
        (
            {"loss, G1 headwise": 2.0},
            "not shown at this scale",
            "the gain in loss over G1 headwise is within",
        ),
        (
            {"loss, G2 elementwise": 2.0},
            "not shown at this scale",
            "over G2 elementwise is within the spread",
        ),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@pytest.mark.parametrize(
    ("arm", "change", "outcome", "text"),
    [
        ("G1 elementwise", 0.05, "holds", "G1 elementwise 2.000 ± 0.050"),
        ("baseline", 0.05, "holds", "baseline 2.100 ± 0.050"),
        # The larger spread of two arms counts, whichever arm has it.
        ("G1 elementwise", 0.15, "not shown at this scale", "the gain in loss over baseline is within"),
        ("baseline", 0.15, "not shown at this scale", "Not shown: the gain in loss over baseline is within"),
        ("G1 headwise", 0.15, "not shown at this scale", "Not shown: the gain in loss over G1 headwise is"),
        (
            "G2 elementwise",
            0.15,
            "not shown at this scale",
            "Not shown: the gain in loss over G2 elementwise",
        ),
    ],
)
def test_a_gain_counts_beyond_the_spread_of_the_seeds(arm, change, outcome, text):
    at = run_with()[f"loss, {arm}"]
    verdict = claims.judge([run_with({f"loss, {arm}": at + one}) for one in (-change, 0.0, change)])
    assert verdict.outcome == outcome and text in verdict.measured


@pytest.mark.parametrize("arm", ["baseline", "G1 headwise", "G2 elementwise"])
def test_a_loss_above_another_arm_counts_beyond_the_spread_of_the_seeds(arm):
    def ran(above):
        changes = [{f"loss, {arm}": 2.0 - above + one} for one in (-0.1, 0.0, 0.1)]
        return claims.judge([run_with(change) for change in changes]).outcome

    assert ran(0.05) == "not shown at this scale" and ran(0.15) == "does not hold"


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
