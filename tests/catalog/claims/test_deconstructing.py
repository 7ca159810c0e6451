"""Deconstructing attention's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import deconstructing as claims

PERPLEXITY = {
    "standard": 8.0,
    "uniform mlp": 12.0,
    "uniform non_approximate": 11.0,
    "uniform static": 9.0,
    "hybrid non_approximate": 8.2,
    "hybrid static": 8.1,
    "hybrid non_approximate, skipped": 40.0,
    "hybrid static, skipped": 50.0,
    "bigrams": 11.8,
}


def run_with(**changed):
    named = {
        name.replace("_", " ").replace("non approximate", "non_approximate"): v for name, v in changed.items()
    }
    values = {f"perplexity, {name}": value for name, value in (PERPLEXITY | named).items()}
    return values | {f"parameters, {name}": 263_000.0 for name in claims.arms(long=False)}


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "hybrid static 8.10 ± 0.00 (skipped 50.0); bigrams 11.80"),
        ({"uniform_mlp": 8.7}, "does not hold", "Not met: uniform MLP at least 1.1 of standard; uniform MLP"),
        ({"uniform_mlp": 11.4}, "does not hold", "Not met: uniform MLP at least 0.97 of the bigrams."),
        ({"uniform_mlp": 11.5}, "holds", "uniform mlp 11.50"),
        ({"hybrid_static": 9.9}, "does not hold", "Not met: every hybrid at most 1.2 of standard; every"),
        ({"uniform_static": 8.0}, "does not hold", "Not met: every hybrid below its uniform net in every"),
        ({"uniform_static": 11.0}, "does not hold", "Not met: Non-approximate gains most from the hybrid"),
        (
            {"hybrid_static,_skipped": 16.0},
            "does not hold",
            "Not met: a hybrid without its replaced blocks at least 2 times.",
        ),
        ({"bigrams": 8.1}, "not shown at this scale", "Attention does no better than bigrams: Perplexity"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge(
        [run_with(), run_with(), run_with(**changed)] if not changed else [run_with(**changed)] * 3
    )
    assert verdict.outcome == outcome and text in verdict.measured


def test_one_seed_is_enough_to_lose_an_order():
    verdict = claims.judge([run_with(), run_with(), run_with(uniform_static=8.0)])
    assert "Not met: every hybrid below its uniform net in every seed." in verdict.measured


def test_arms_are_those_of_the_paper():
    assert list(claims.arms(long=False)) == [
        name for name in PERPLEXITY if name[0] in "suh" and "," not in name
    ]
    every = claims.arms(long=True)
    assert len(every) == 13 and every["hybrid mlp"] == ("mlp", "standard", "mlp", "standard")


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 1, "BATCH": 1, "WINDOWS": 2}.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert 8 < values["perplexity, bigrams"] < 20
    assert any(line.startswith("hybrid static: step 1 of 1") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


def test_unequal_parameters_are_refused(tmp_path, monkeypatch):
    def sized(name, *given):
        return {f"perplexity, {name}": 9.0, f"parameters, {name}": 100.0 + 2 * (name == "uniform mlp")}

    monkeypatch.setattr(claims, "trained", sized)
    with pytest.raises(ValueError, match=r"parameters differ by 2.0%, more than 1%: .*uniform mlp"):
        claims.measure(0, long=False, folder=tmp_path, step=print)
