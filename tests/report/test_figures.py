"""The figures: the data that they carry, what they share, and what they say when data are missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attlas._common.errors import UsageError
from attlas.pattern import causal, elastic, opaque, sink, window
from attlas.report.figures import (
    FIGURES,
    budgets,
    cost,
    needles,
    pareto,
    pattern_pictures,
    png,
    quality,
    span_map,
    times,
)
from attlas.report.plan_figures import picture_runs, span_tokens
from attlas.report.theme import NotInRun


def values(spec) -> list[dict]:
    """All data rows anywhere in a chart."""
    if isinstance(spec, dict):
        own = spec["values"] if isinstance(spec.get("values"), list) and spec["values"] else []
        own = own if own and isinstance(own[0], dict) else []
        return own + [row for child in spec.values() for row in values(child)]
    return [row for child in spec for row in values(child)] if isinstance(spec, list) else []


def rows(chart) -> list[dict]:
    spec = chart.to_dict()
    return [row for data in spec.get("datasets", {}).values() for row in data] or values(spec)


def test_span_map_is_the_deployed_span(results, read_run):
    found = rows(span_map(read_run(results)))
    assert len(found) == 6 * 3 * 3
    for row in found:
        alpha = results["plan"]["alphas"][row["layer"]][row["head"]]
        beta = results["plan"]["betas"][row["layer"]][row["head"]]
        # MoA, arXiv 2406.14909, as released: c = 64 ceil(max(min(int(alpha + beta N), N), 128) / 64)
        capped = min(int(alpha + beta * row["length"]), row["length"])
        assert row["span"] == min(64 * math.ceil(max(capped, 128) / 64), row["length"])
        assert row["density"] == row["span"] / row["length"]
        assert (row["alpha"], row["beta"]) == (alpha, beta)
        assert row["rule"] == results["plan"]["rules"][row["layer"]][row["head"]]


def test_span_map_starts_at_the_asked_length(results, read_run):
    run = read_run(results)
    params = {p["name"]: p["value"] for p in span_map(run, 1024).to_dict()["params"]}
    assert params == {"tokens": 1024}
    with pytest.raises(ValueError, match=r"length must be one of \[1024, 2048, 4096\], got 512"):
        span_map(run, 512)


@pytest.mark.parametrize(
    ("rule", "span"),
    [
        (causal() & (window(256) | sink(4)), 260),
        (causal() & window(256), 256),
        (causal() & (window(5000) | sink(64)), 1024),
        (causal(), 1024),
        (causal() & (window(elastic(0, 0.5)) | sink(64)), 576),
        (causal() & opaque(lambda i, j: (i - j) % 2 == 0, "even"), 1024),
    ],
)
def test_span_of_any_rule(rule, span):
    assert span_tokens(rule, 1024) == span


def test_unreadable_rule_is_a_usage_error(results, read_run):
    results["plan"]["rules"][1][2] = "causal & wndow(3)"
    run = read_run(results)
    for figure in (span_map, pattern_pictures):
        with pytest.raises(UsageError, match=r"plan\.rules\[1\]\[2\] is not a pattern"):
            figure(run)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_picture_runs_cover_the_picture_exactly(size, seed):
    picture = np.random.default_rng(seed).choice(np.array([0, 0, 128, 255], dtype=np.uint8), (size, size))
    again = np.zeros((size, size))
    for run in picture_runs(picture, 2.0):
        q0, q1, k0, k1 = (int(run[side] / 2) for side in ("q0", "q1", "k0", "k1"))
        assert not again[q0:q1, k0:k1].any()
        again[q0:q1, k0:k1] = run["share"]
    assert np.array_equal(again, picture / 255)


def test_rules_that_look_the_same_share_a_picture(results, read_run):
    results["plan"]["rules"] = [
        [str(causal() & (window(64) | sink(64))), str(causal() & (sink(64) | window(64)))]
    ]
    (heads,) = {row["heads"] for row in rows(pattern_pictures(read_run(results)))}
    assert heads == "2 of 2 heads"


def test_quality_and_needles_carry_the_measured_figures(results, read_run):
    run = read_run(results)
    plan = {row["length"]: row["value"] for row in rows(quality(run)) if row["method"] == "Plan"}
    assert plan[1024] in {
        results["methods"][1]["quality"]["1024"][k] for k in ("text_nll", "answer_ce", "exact")
    }
    found = [
        r for r in rows(needles(run)) if r["method"] == "Plan" and r["order"] == 2048 and r["depth"] == 0.1
    ]
    assert found[0]["exact"] == results["methods"][1]["quality"]["2048"]["by_depth"][0]["exact"]


def test_a_method_has_one_colour_and_shape_in_all_figures(results, read_run):
    run = read_run(results)

    def scales(spec, channel):
        if isinstance(spec, dict):
            own = spec.get(channel) if isinstance(spec.get(channel), dict) else None
            if own and own.get("field") == "method":
                yield from zip(own["scale"]["domain"], own["scale"]["range"], strict=True)
            for child in spec.values():
                yield from scales(child, channel)
        elif isinstance(spec, list):
            for child in spec:
                yield from scales(child, channel)

    for channel, expected in (("color", 6), ("shape", 6)):
        pairs = {
            pair
            for figure in (quality, cost, times, budgets)
            for pair in scales(figure(run).to_dict(), channel)
        }
        assert len(pairs) == expected == len({look for _, look in pairs})


def test_cost_is_of_the_length_where_most_methods_were_timed(results, read_run):
    found = rows(cost(read_run(results)))
    assert {row["length"] for row in found} == {4096} and len({row["method"] for row in found}) == 6
    for method in results["methods"][1:]:
        method["time"].pop("4096", None)
    assert {row["length"] for row in rows(cost(read_run(results)))} == {2048}


@pytest.mark.parametrize("lengths", [("4096",), ("1024", "4096")])
def test_times_carry_every_length_with_its_bound(results, read_run, lengths):
    for method in results["methods"]:
        method["time"] = {n: entry for n, entry in method["time"].items() if n in lengths}
    chart = times(read_run(results))
    found = rows(chart)
    plan = results["methods"][1]["time"]
    for field, bound in (("prefill_attention_seconds", "prefill_bound_seconds"), ("decode_ms", None)):
        for n in lengths:
            wanted = (int(n), plan[n][field], plan[n].get(bound))
            assert wanted in {(r["length"], r["value"], r["bound"]) for r in found if r["method"] == "Plan"}
    assert {row["length"] for row in found} == set(map(int, lengths))
    assert {row["method"] for row in found if row["length"] == 4096} == {
        method["label"] for method in results["methods"] if "@" not in method["name"]
    }
    assert len(chart.to_dict()["concat"]) == 4
    assert png(chart, scale=0.5).startswith(b"\x89PNG")


def test_text_of_other_items_is_compared_with_no_level(results, read_run):
    titles = [
        panel["layer"][1]["encoding"]["y"]["axis"]["title"]
        for panel in budgets(read_run(results)).to_dict()["concat"]
    ]
    assert sum(title.startswith("Text NLL") for title in titles) == 3
    for method in results["methods"]:
        for quality_at in method["quality"].values():
            quality_at["needles"] = 20 if "@" in method["name"] else 40
    chart = budgets(read_run(results)).to_dict()
    titles = [panel["layer"][1]["encoding"]["y"]["axis"]["title"] for panel in chart["concat"]]
    assert titles and not any(title.startswith("Text NLL") for title in titles)
    assert chart["title"]["subtitle"][0].startswith(
        "Grey dashes: the dense model, asked the main comparison's"
    )


@pytest.mark.parametrize("objectives", [["1024"], ["1024", "2048", "4096"]])
def test_pareto_of_other_numbers_of_objectives(results, read_run, objectives):
    results["pareto"]["objectives"] = objectives
    for point in results["pareto"]["points"]:
        point["losses"] = [1.0 + point["id"]] * len(objectives)
    spec = pareto(read_run(results)).to_dict()
    tooltips = {tip["title"] for tip in spec["layer"][0]["encoding"]["tooltip"]}
    assert {f"influence lost at {int(o):,}" for o in objectives} <= tooltips
    assert spec["layer"][0]["encoding"]["y"]["field"] == ("validation" if len(objectives) == 1 else "loss 1")


@pytest.mark.parametrize(
    ("figure", "damage", "sentence"),
    [
        (span_map, lambda r: r.pop("plan"), "The run recorded no rules of the plan."),
        (pattern_pictures, lambda r: r.pop("plan"), "The run recorded no rules of the plan."),
        (pareto, lambda r: r.pop("pareto"), "The run recorded no Pareto front."),
        (cost, lambda r: [m.pop("time") for m in r["methods"]], "The run measured no times and no KV bytes."),
        (times, lambda r: [m.pop("time") for m in r["methods"]], "The run measured no times."),
        (quality, lambda r: [m.pop("quality") for m in r["methods"]], "The run recorded no quality figures."),
        (
            needles,
            lambda r: [q.pop("by_depth") for m in r["methods"] for q in m["quality"].values()],
            "The run recorded no needle results by depth.",
        ),
        (
            budgets,
            lambda r: r.update(methods=[m for m in r["methods"] if "@" not in m["name"]]),
            "The run evaluated a single budget.",
        ),
    ],
)
def test_missing_data_give_a_sentence(results, read_run, figure, damage, sentence):
    damage(results)
    with pytest.raises(NotInRun) as caught:
        figure(read_run(results))
    assert str(caught.value) == sentence


def test_registry_is_complete():
    assert [figure.name for figure in FIGURES] == [
        "spans", "needles", "quality", "cost", "times", "budgets", "pareto", "patterns"
    ]  # fmt: skip
    for figure in FIGURES:
        assert figure.caption.endswith(".") and figure.caption.count(". ") == 0
