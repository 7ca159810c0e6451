"""GMN's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import gmn as claims

FEW = {name: 0.5 for name in (claims.name_of(*net) for net in claims.wanted(False))}
GOOD = FEW | {
    "GIN of depth 2, r = 6": 0.2, "GIN of depth 2, r = 8": 0.2, "GIN of depth 2, r = 10": 0.2,
    "mean over nodes, one source": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "r = 8: GIN of depth 2 0.200 ± 0.000"),
        ({"GMN, r = 8": 0.35}, "does not hold", "Not met: GMN at least 0.2 above chance at r = 8."),
        ({"GIN of depth 2, r = 8": 0.6}, "does not hold", "Not met: GMN above GIN of depth 2 at r = 8."),
        ({"GMN, r = 6": 0.3}, "not shown at this scale", "GMN does not learn rings of 6"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([GOOD | changed] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"RINGS": 4, "TESTED": 2, "BATCH": 2, "EPOCHS": 1, "SIZES": (6,)}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert {claims.name_of(*net) for net in claims.wanted(False)} < set(values)
    assert values["mean over nodes, one source"] == 1.0
    assert any(line.startswith("random order, r = 8: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
