"""The verdict follows the numbers, in the plan's favour and against it."""

from __future__ import annotations

import pytest

from attlas.report.verdict import beats, kept_share, verdict


def by_name(results, name):
    return next(method for method in results["methods"] if method["name"] == name)


def finding(run, start):
    return next(found for found in verdict(run).findings if found.text.startswith(start))


def test_in_favour(results, read_run):
    run = read_run(results)
    judged = verdict(run)
    assert judged.headline == (
        "With 50% of the KV memory the plan keeps 89% of the dense model's exact matches; "
        "a uniform window of the same size keeps 45%."
    )
    assert all(found.good for found in judged.findings)
    assert "at 1,024 tokens plan 0.350, dense 0.170, uniform window 1.500 (plan / uniform 0.23)" in (
        finding(run, "Answer cross-entropy").text
    )
    assert finding(run, "Better than “Shuffled plan”").text == (
        "Better than “Shuffled plan”: yes; answer CE 0.350 against 1.800, 0.420 against 2.160; "
        "exact match 85% against 20%, 75% against 11% at 1,024 and 2,048 tokens."
    )
    assert (
        "50.0% of dense's bytes at 4,096 tokens (the plan promises 50.0%)"
        in finding(run, "The KV cache").text
    )
    assert "takes 0.78 × dense's time" in finding(run, "A decoding step").text


def test_against(results, read_run):
    plan, uniform = by_name(results, "plan"), by_name(results, "uniform")
    plan["quality"], uniform["quality"] = uniform["quality"], plan["quality"]
    plan["time"]["4096"]["decode_ms"] = 200.0
    run = read_run(results)
    judged = verdict(run)
    assert judged.headline == (
        "With 50% of the KV memory the plan keeps 45% of the dense model's exact matches, "
        "but a uniform window keeps 89%."
    )
    assert finding(run, "Exact match").good is False
    assert finding(run, "Answer cross-entropy").good is False
    assert finding(run, "Better than “Per-layer plan”: no").good is False
    assert finding(run, "At 4,096 tokens, never profiled").good is False
    assert finding(run, "A decoding step of the whole model takes 2.06 ×").good is False


def test_mixed(results, read_run):
    by_name(results, "shuffled")["quality"]["2048"]["answer_ce"] = 0.1
    run = read_run(results)
    assert finding(run, "Better than “Shuffled plan”: only in part").good is None


def test_a_difference_that_may_be_chance_is_said(results, read_run):
    shuffled = by_name(results, "shuffled")["quality"]["1024"]
    shuffled["exact"] = 0.80
    assert "could be chance" in finding(read_run(results), "Better than “Shuffled plan”").text
    shuffled["needles"] = by_name(results, "plan")["quality"]["1024"]["needles"] = 4000
    assert "could be chance" not in finding(read_run(results), "Better than “Shuffled plan”").text


def test_unequal_memory_is_said(results, read_run):
    by_name(results, "uniform")["density"]["1024"] = 0.56
    text = finding(read_run(results), "Answer cross-entropy").text
    assert text.endswith("Not at equal memory: the plan keeps 50.0%, the other 56.0%.")


@pytest.mark.parametrize("name", ["dense", "plan"])
def test_without_dense_or_plan(results, read_run, name):
    results["methods"] = [method for method in results["methods"] if method["name"] != name]
    assert verdict(read_run(results)).headline.startswith("No verdict")


def test_dense_that_finds_nothing_gives_no_share(results, read_run):
    for quality in by_name(results, "dense")["quality"].values():
        quality["exact"] = 0.0
    run = read_run(results)
    assert kept_share(run, run.method("dense"), run.method("plan"), (1024,)) is None
    assert "no share of the dense model's needles can be given" in verdict(run).headline


def test_beats_needs_every_length_and_no_lost_match(results, read_run):
    run = read_run(results)
    plan, uniform = run.method("plan"), run.method("uniform")
    assert beats(plan, uniform, (1024, 2048)) is True
    assert beats(uniform, plan, (1024, 2048)) is False
    assert beats(plan, uniform, (512,)) is None
    by_name(results, "uniform")["quality"]["1024"]["exact"] = 1.0
    run = read_run(results)
    assert beats(run.method("plan"), run.method("uniform"), (1024, 2048)) is None
