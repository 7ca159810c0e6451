"""TANGNN's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import tangnn as claims

GOOD = {
    "hubs, messages": 0.26, "hubs, top": 0.95, "hubs, random": 0.35, "hubs, full": 0.96,
    "digits, messages": 0.85, "digits, top": 0.86, "digits, random": 0.85,
    "ms at m = 64": 1.0, "ms at m = 256": 4.0, "ms at m = 1024": 16.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "top 0.950 ± 0.000"),
        ({"hubs, full": 0.4}, "holds", "full 0.400"),
        ({"hubs, top": 0.9}, "does not hold", "Not met: top-m within 0.05 of full attention."),
        ({"hubs, random": 0.95}, "does not hold", "Not met: top-m above random-m."),
        ({"digits, top": 0.8}, "does not hold", "Not met: digits: top-m not below messages."),
        ({"hubs, full": 0.4, "hubs, top": 0.5}, "not shown at this scale", "No attention learns the hubs"),
        ({"hubs, messages": 0.6}, "not shown at this scale", "not far enough for messages"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([GOOD | changed] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny = {"HUB_STEPS": 2, "HUB_GRAPHS": 2, "HUB_TESTED": 2, "DIGIT_STEPS": 1, "DIGIT_DRAWS": 1, "TIMES": 1}
    for name, value in tiny.items():
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(claims, "TIMED_NODES", 64)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(GOOD) and any(line.startswith("random: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said


def test_arms_differ_in_what_is_picked():
    import torch

    from attlas.tasks import distant_hubs

    task = distant_hubs(2, seed=0)
    picked = {}
    for arm in ("top", "random", "full"):
        net = claims.network(arm, task.x.shape[1], 4, 8, 0).eval()
        layer = net.layers[0].attention
        x = net.layers[0].into(task.x)
        nodes, pointer = layer.pick(layer.scores(x), x, task.graph)
        again, _ = layer.pick(layer.scores(x), x, task.graph)
        assert torch.equal(nodes, again)
        picked[arm] = set(nodes.tolist()), pointer.tolist()
    assert picked["full"][1] == [0, 100, 200] and picked["top"][1] == picked["random"][1] == [0, 8, 16]
    assert picked["top"][0] != picked["random"][0]
