"""The verdict follows the numbers, in the plan's favour and against it."""

from __future__ import annotations

import pytest

from attlas.report.compare import beats, kept_share, outcome
from attlas.report.run import Quality
from attlas.report.verdict import verdict


def by_name(results, name):
    return next(method for method in results["methods"] if method["name"] == name)


def finding(run, start):
    return next(found for found in verdict(run).findings if found.text.startswith(start))


def starts(run):
    return [found.text for found in verdict(run).findings]


def test_in_favour(results, read_run):
    run = read_run(results)
    judged = verdict(run)
    assert judged.headline == (
        "With 50% of the KV memory the plan keeps 89% of the dense model's exact matches; "
        "a uniform window of the same size keeps 45%."
    )
    assert all(found.good for found in judged.findings)
    assert finding(run, "Exact match").text == (
        "Exact match of the needle: at 1,024 tokens plan 85% of 40 needles (0.90 × dense), dense 94%, "
        "uniform window 45%; at 2,048 tokens plan 75% of 40 needles (0.88 × dense), dense 85%, uniform "
        "window 35%. Asked: at least 0.65 × dense; met at 1,024 and 2,048 tokens."
    )
    answers = finding(run, "Answer cross-entropy").text
    assert "at 1,024 tokens plan 0.350, dense 0.170, uniform window 1.500 (plan / uniform 0.23)" in answers
    assert answers.endswith("Asked: at most 0.5 × the uniform window's; met at 1,024 and 2,048 tokens.")
    assert finding(run, "Better than “Shuffled plan”").text == (
        "Better than “Shuffled plan”: yes; at 1,024 tokens better (answer CE 0.350 against 1.800, exact "
        "match 85% against 20%, text NLL +0.000); at 2,048 tokens better (answer CE 0.420 against 2.160, "
        "exact match 75% against 11%, text NLL +0.000)."
    )


def test_costs_are_given_at_every_length(results, read_run):
    run = read_run(results)
    assert finding(run, "KV cache").text == (
        "KV cache: 50.0% of dense's bytes at 1,024 tokens (+0.4% off the bytes that the plan promises), "
        "50.0% at 2,048 (+0.4% off), 50.0% at 4,096 (+0.4% off). Asked: within 5% of the promise; met at "
        "1,024, 2,048 and 4,096 tokens."
    )
    decode = finding(run, "A decoding step of the whole model, batch 8:").text
    assert "0.92 × dense's time at 1,024 tokens (uniform window 0.92 ×)" in decode
    assert decode.endswith("attention alone 0.54 × at 4,096 tokens, 69% of its bound.")
    # One prompt is read at a time: the batch of decoding must not be said of prefill.
    assert finding(run, "Prefill of the whole model, batch 1:").good is True


def test_against(results, read_run):
    plan, uniform = by_name(results, "plan"), by_name(results, "uniform")
    plan["quality"], uniform["quality"] = uniform["quality"], plan["quality"]
    plan["multi_key"], uniform["multi_key"] = uniform["multi_key"], plan["multi_key"]
    for length in ("1024", "2048", "4096"):
        plan["time"][length]["decode_ms"] = 200.0
    plan["time"]["2048"]["kv_bytes"] = plan["time"]["2048"]["kv_bytes_bound"] * 107 // 100
    run = read_run(results)
    assert verdict(run).headline == (
        "With 50% of the KV memory the plan keeps 45% of the dense model's exact matches, "
        "but a uniform window of the same size keeps 89%."
    )
    exact = finding(run, "Exact match")
    assert exact.good is False and exact.text.endswith("0.65 × dense; missed at 1,024 and 2,048 tokens.")
    answers = finding(run, "Answer cross-entropy")
    assert answers.good is False and "(plan / uniform 4.29)" in answers.text
    worse = finding(run, "Better than “Uniform window + sink”: no")
    assert worse.good is False and "at 2,048 tokens worse (answer CE 1.800 against 0.420" in worse.text
    assert finding(run, "Better than “Per-layer plan”: no").good is False
    assert finding(run, "At 4,096 tokens, never profiled").good is False
    assert finding(run, "Two facts of one kind").good is False
    assert finding(run, "A decoding step of the whole model, batch 8: 3.05 ×").good is False
    memory = finding(run, "KV cache")
    assert memory.good is None
    assert memory.text.endswith("met at 1,024 and 4,096 tokens, missed at 2,048 tokens.")


def test_text_is_judged_against_dense(results, read_run):
    dense = by_name(results, "dense")["quality"]
    by_name(results, "plan")["quality"]["2048"]["text_nll"] = dense["2048"]["text_nll"] + 0.031
    text = finding(read_run(results), "Text NLL")
    assert text.good is None and "at 2,048 tokens plan +0.031, uniform window +0.015" in text.text
    assert text.text.endswith("Asked: at most +0.030; met at 1,024 tokens, missed at 2,048 tokens.")


def test_mixed(results, read_run):
    by_name(results, "shuffled")["quality"]["2048"]["answer_ce"] = 0.1
    mixed = finding(read_run(results), "Better than “Shuffled plan”: only in part")
    assert mixed.good is None
    assert "at 1,024 tokens better" in mixed.text and "at 2,048 tokens mixed (answer CE 0.420" in mixed.text


@pytest.mark.parametrize("needles", [8, 1])
def test_few_needles_are_said(results, read_run, needles):
    for method in results["methods"]:
        for quality in method["quality"].values():
            quality["needles"] = needles
    run = read_run(results)
    assert verdict(run).headline.endswith(
        f"keeps 45%, on only {needles} needle{'s' * (needles > 1)} per length."
    )
    few = finding(run, "Shares rest on")
    assert few.good is None
    assert few.text.startswith(
        {
            8: "Shares rest on only 8 needles per length: one needle more or less is 12.5% of them.",
            1: "Shares rest on a single needle per length: one needle more or less is 100.0% of them.",
        }[needles]
    )


def test_enough_needles_need_no_word(results, read_run):
    assert not any(text.startswith("Shares rest") for text in starts(read_run(results)))


def test_without_the_uniform_window(results, read_run):
    results["methods"] = [method for method in results["methods"] if method["name"] != "uniform"]
    run = read_run(results)
    assert verdict(run).headline.endswith("exact matches; no uniform window was measured beside it.")
    assert finding(run, "Answer cross-entropy").good is None
    assert "Asked" not in finding(run, "Answer cross-entropy").text
    absent = finding(run, "Not compared with")
    assert absent.good is None
    assert absent.text == "Not compared with the uniform window: this run has no figures of them."


def test_missing_baselines_are_said_and_not_measured_lengths_are_no_win(results, read_run):
    results["methods"] = [m for m in results["methods"] if m["name"] not in ("shuffled", "mean_attention")]
    by_name(results, "per_layer")["quality"].pop("2048")
    run = read_run(results)
    assert finding(run, "Not compared with").text.startswith(
        "Not compared with the shuffled plan, the plan profiled by mean attention:"
    )
    one = finding(run, "Better than “Per-layer plan”: yes")
    assert "2,048" not in one.text.partition(" Not measured")[0]
    assert one.good is None and one.text.endswith("Not measured at 2,048 tokens.")


def test_a_difference_that_may_be_chance_is_said(results, read_run):
    shuffled = by_name(results, "shuffled")["quality"]["1024"]
    shuffled["exact"] = 0.80
    assert "could be chance" in finding(read_run(results), "Better than “Shuffled plan”").text
    shuffled["needles"] = by_name(results, "plan")["quality"]["1024"]["needles"] = 4000
    assert "could be chance" not in finding(read_run(results), "Better than “Shuffled plan”").text


def test_unequal_memory_is_said(results, read_run):
    by_name(results, "uniform")["density"]["1024"] = 0.56
    run = read_run(results)
    for start in ("Answer cross-entropy", "Better than “Uniform"):
        assert finding(run, start).text.endswith(
            "Not at equal memory: the plan keeps 50.0%, the other 56.0%."
        )
    assert verdict(run).headline.endswith("; a uniform window with 56% keeps 45%.")


@pytest.mark.parametrize("name", ["dense", "plan"])
def test_without_dense_or_plan(results, read_run, name):
    results["methods"] = [method for method in results["methods"] if method["name"] != name]
    assert verdict(read_run(results)).headline.startswith("No verdict")


def test_dense_that_finds_nothing_gives_no_share(results, read_run):
    for quality in by_name(results, "dense")["quality"].values():
        quality["exact"] = 0.0
    run = read_run(results)
    assert kept_share(run.method("dense"), run.method("plan"), (1024,)) is None
    assert "no share of the dense model's needles can be given" in verdict(run).headline
    assert finding(run, "Exact match").good is None and "Asked" not in finding(run, "Exact match").text


def test_more_found_than_by_dense(results, read_run):
    for quality in by_name(results, "plan")["quality"].values():
        quality["exact"] = 1.0
    assert "the plan finds more needles than the dense model (112% of its exact matches)" in (
        verdict(read_run(results)).headline
    )


def test_two_keys(results, read_run):
    found = finding(read_run(results), "Two facts of one kind")
    assert found.good is True
    assert found.text == (
        "Two facts of one kind, told apart by owner: at 1,024 tokens exact match plan 62%, dense 69%, "
        "uniform window 31%; answer CE plan 0.700, dense 0.340, uniform window 3.000 (16 needles)."
    )


@pytest.mark.parametrize(
    ("one", "two", "better"),
    [
        ((0.3, 0.8), (0.5, 0.8), True),
        ((0.3, 0.8), (0.5, 0.9), None),
        ((0.5, 0.9), (0.3, 0.8), None),
        ((0.5, 0.8), (0.3, 0.8), False),
        ((0.3, 0.8), (0.3, 0.8), False),
        ((0.3, None), (0.5, 0.9), True),
        ((None, 0.9), (0.5, 0.8), None),
    ],
)
def test_outcome(one, two, better):
    assert outcome(Quality(None, *one), Quality(None, *two)) is better


def test_beats_needs_every_length(results, read_run):
    run = read_run(results)
    plan, uniform = run.method("plan"), run.method("uniform")
    assert beats(plan, uniform, (1024, 2048)) is True
    assert beats(uniform, plan, (1024, 2048)) is False
    assert beats(plan, uniform, (512,)) is None
    by_name(results, "uniform")["quality"]["1024"]["exact"] = 1.0
    run = read_run(results)
    assert beats(run.method("plan"), run.method("uniform"), (1024, 2048)) is None


def test_dense_attention_by_our_kernels_divides_a_gain_and_is_no_baseline(results, read_run):
    dense, plan = by_name(results, "dense"), by_name(results, "plan")
    own = {**dense, "name": "dense_attlas", "label": "dense, by Attlas", "quality": {}, "multi_key": {}}
    length = max(plan["time"], key=int)
    before = dense["time"][length]["decode_attention_ms"]
    own["time"] = {length: {**dense["time"][length], "decode_attention_ms": before / 4}}
    results["methods"].append(own)
    run = read_run(results)
    ratio = plan["time"][length]["decode_attention_ms"] / (before / 4)
    told = finding(run, "A decoding step").text
    assert f"(Attlas's kernels on the dense pattern 0.25 ×, so the plan itself {ratio:.2f} ×)" in told
    assert not any("dense, by Attlas" in text for text in starts(run))
