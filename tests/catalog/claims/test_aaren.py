"""Aaren's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import aaren as claims


def run_with(changes=None):
    values = {}
    for task in claims.TASKS:
        values |= {f"accuracy on {task}, Aaren": 0.88, f"accuracy on {task}, Transformer": 0.9}
    for place in claims.PLACES:
        values |= {f"bytes at {place}, Aaren": 288.0, f"bytes at {place}, Transformer": 512.0 * place}
        values |= {f"microseconds at {place}, {name}": 400.0 for name in claims.MIXERS}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "Aaren 288 bytes and 400 us at 1250"),
        ({"accuracy on text, Aaren": 0.7}, "does not hold", "Not met: mean accuracy at most 0.03 below"),
        ({"bytes at 5000, Aaren": 300.0}, "does not hold", "Not met: a state of one size."),
        ({"bytes at 20000, Transformer": 1.0}, "does not hold", "Not met: the Transformer's state in"),
        ({"microseconds at 20000, Aaren": 700.0}, "does not hold", "at most 1.5 times that at 1250."),
        ({"accuracy on text, Transformer": 0.6}, "not shown at this scale", "does not learn text."),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny = {"STEPS": 2, "BATCH": 4, "TEXT_TEST": 4, "PLACES": (6, 12), "PIECE": 3, "TIMED": 1, "REPEATS": 1}
    for name, value in tiny.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert values["bytes at 6, Aaren"] == values["bytes at 12, Aaren"] == 4 * (16 + 2) * 4
    assert values["bytes at 12, Transformer"] == 2 * values["bytes at 6, Transformer"] == 12 * 2 * 64 * 4
    assert any("Transformer, text: step 2 of 2" in line for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
