"""TransNormerLLM's claim: its rule, equal parameters, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import transnormerllm as claims

BITS = {"softmax": 3.0, "transnormer": 3.05, "no decay": 3.2, "no gate": 3.1, "no norm": 3.3}
DECODING = {
    "tokens until not finite, robust": 512.0,
    "tokens until not finite, origin": 340.0,
    "difference, robust": 1e-5,
    "88 / slope": 354.9,
}


def run_with(changes=None, bits=None):
    values = {f"bits per byte, {arm}": found for arm, found in (BITS | (bits or {})).items()}
    return values | {f"parameters, {arm}": 1e5 for arm in BITS} | DECODING | (changes or {})


@pytest.mark.parametrize(
    ("changes", "bits", "outcome", "text"),
    [
        ({}, {}, "holds", "transnormer 3.050 ± 0.000"),
        ({}, {"softmax": 2.94}, "does not hold", "Not met: within 0.1 bits of softmax."),
        ({}, {"no gate": 3.04}, "does not hold", "Not met: not better with no gate."),
        ({}, {"no gate": 3.05}, "not shown at this scale", "Within the spread of the seeds: no gate."),
        (
            {"tokens until not finite, robust": 99.0},
            {},
            "does not hold",
            "Not met: robust decoding is finite",
        ),
        ({"difference, robust": 2e-3}, {}, "does not hold", "is the parallel form to 0.001."),
        ({"tokens until not finite, origin": 512.0}, {}, "does not hold", "origin overflows about where"),
        ({"tokens until not finite, origin": 260.0}, {}, "does not hold", "origin overflows about where"),
    ],
)
def test_each_part_of_the_rule_decides(changes, bits, outcome, text):
    verdict = claims.judge([run_with(changes, bits)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_nets_have_equal_parameters():
    counts = {arm: sum(p.numel() for p in claims.network(arm, 0).parameters()) for arm in claims.ARMS}
    assert max(counts.values()) <= 1.005 * min(counts.values()), counts


def test_arms_differ_as_they_are_called():
    ungated, plain = claims.network("no gate", 0), claims.network("transnormer", 0)
    assert not hasattr(ungated.blocks[0].mixer, "gate") and hasattr(plain.blocks[0].mixer, "gate")
    assert claims.network("no decay", 0).blocks[0].mixer.slopes == (0.0,) * 4
    assert not isinstance(claims.network("no norm", 0).blocks[1].mixer.norm, type(plain.norm))
    assert [block.mixer.theta is None for block in plain.blocks] == [False, True]


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "WINDOWS": 2, "DECODED": 24}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert values["tokens until not finite, robust"] == 24 and values["difference, robust"] < 1e-4
    assert any(line.startswith("no norm: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


def test_a_net_that_diverges_counts_as_uniform(tmp_path, monkeypatch):
    def broken(*given, **named):
        raise ValueError("the loss of step 1 is nan: training went wrong")

    monkeypatch.setattr(claims, "fit", broken)
    found = claims._one("no norm", 1000, False, claims.byte_text(claims.load_source("python-docs")), print)
    assert found["bits per byte, no norm"] == 8.0
