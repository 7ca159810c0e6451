"""Reading results.json: complete, in part, and damaged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attlas._common.errors import UsageError
from attlas.report.reading import load_run


def test_reads_every_part(results, read_run):
    run = read_run(results)
    assert run.lengths == (1024, 2048) and run.extend == 4096
    assert run.quality_lengths == (1024, 2048, 4096) and run.time_lengths == (1024, 2048, 4096)
    assert [m.name for m in run.main_methods] == [
        "dense", "plan", "uniform", "per_layer", "shuffled", "mean_attention"
    ]  # fmt: skip
    plan = run.method("plan")
    assert plan.quality[1024].by_depth[0].depth == 0.1
    assert plan.time[4096].batch == 8
    assert run.method("plan@0.35").kind == "plan"
    assert [point.id for point in run.pareto if point.chosen] == [3]
    assert run.stages[1].resumed and run.fallbacks[0].count == 2


def test_optional_parts_may_be_missing(results, read_run):
    small = {key: results[key] for key in ("schema", "version")}
    small["methods"] = [{"name": "dense", "quality": {"1024": {"text_nll": 3.0, "exact": None}}}]
    run = read_run(small)
    dense = run.method("dense")
    assert dense.label == "dense" and dense.density_at(1024) == 1.0
    assert dense.quality[1024].exact is None and dense.quality[1024].by_depth == ()
    assert run.pareto == () and run.rules == () and run.stages == () and run.plan_lengths == ()


def test_missing_folder_and_file(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a folder; give the output folder of a tune run"):
        load_run(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"the results of a tune run .*results\.json does not exist"):
        load_run(tmp_path)


def test_damaged_json(write_run):
    with pytest.raises(UsageError, match="damaged, not valid JSON"):
        load_run(write_run('{"schema": "attlas.run", '))


def test_other_and_newer_schema(results, write_run):
    with pytest.raises(UsageError, match=r"not a file of schema 'attlas\.run': found 'attlas\.plan'"):
        load_run(write_run({**results, "schema": "attlas.plan"}))
    with pytest.raises(UsageError, match="newer Attlas"):
        load_run(write_run({**results, "version": 2}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(methods=[]), "methods must be a list with at least one method, got []"),
        (lambda r: r["methods"][1].update(name=None), "methods[1].name must be a name, got None"),
        (
            lambda r: r["methods"][2]["quality"]["1024"].update(exact="many"),
            "methods[2].quality.1024.exact must be a share from 0 to 1 or null, got 'many'",
        ),
        (
            lambda r: r["methods"][0].update(quality={"long": {}}),
            "methods[0].quality must be an object with lengths",
        ),
        (
            lambda r: r["methods"][0].update(quality={"1024": 3}),
            "methods[0].quality.1024 must be an object, got 3",
        ),
        (
            lambda r: r["pareto"]["points"][0].update(losses=[1, None]),
            "pareto.points[0].losses[1] must be a number",
        ),
        (
            lambda r: r["fallbacks"][0].pop("what"),
            "fallbacks[0] must be a complete fallback entry with 'what', got",
        ),
        (lambda r: r["stages"][0].update(resumed="no"), "stages[0].resumed must be true or false, got 'no'"),
        (lambda r: r.update(lengths=1024), "lengths must be a list, got 1024"),
        (lambda r: r.update(lengths=[2048, 1024]), "lengths must be increasing, got [2048, 1024]"),
        (lambda r: r.update(budget=1.5), "budget must be a share above 0, up to 1 or null, got 1.5"),
        (
            lambda r: r["methods"][1]["density"].update({"1024": 1.01}),
            "methods[1].density.1024 must be a share above 0, up to 1, got 1.01",
        ),
        (
            lambda r: r["methods"][1].update(density={"²": 0.5}),
            "methods[1].density must be an object with lengths as keys",
        ),
        (
            lambda r: r["methods"][2]["quality"]["1024"].update(text_nll=-0.1),
            "methods[2].quality.1024.text_nll must be a number from 0 or null, got -0.1",
        ),
        (
            lambda r: r["methods"][1]["time"]["4096"].update(kv_bytes=1.5),
            "methods[1].time.4096.kv_bytes must be a whole number from 0 or null, got 1.5",
        ),
        (
            lambda r: r["methods"][1]["time"]["4096"].update(decode_ms=-3),
            "methods[1].time.4096.decode_ms must be a number from 0 or null, got -3",
        ),
        (
            lambda r: r["methods"][1]["multi_key"]["1024"].update(exact=2),
            "methods[1].multi_key.1024.exact must be a share from 0 to 1 or null, got 2",
        ),
        (
            lambda r: r["methods"][1].update(name="dense"),
            "methods must be a list of different methods, got ['dense', 'dense'",
        ),
        (
            lambda r: r["pareto"]["points"][2].update(losses=[1.0]),
            "pareto.points[2].losses must be a loss per objective, got [1.0]",
        ),
        (lambda r: r["plan"]["rules"][1].clear(), "plan.rules must be a row per layer"),
        (lambda r: r["plan"]["rules"][1].__setitem__(0, 3), "plan.rules[1][0] must be text, got 3"),
        (lambda r: r["model"].update(layers=0), "model.layers must be a whole number from 1 or null, got 0"),
    ],
)
def test_damage_is_named(results, write_run, change, message):
    change(results)
    with pytest.raises(UsageError) as caught:
        load_run(write_run(results))
    assert message in str(caught.value)
    assert "is damaged" in str(caught.value) and "run the tuning again" in str(caught.value)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value that is neither an object nor a list."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*place, key))
    else:
        yield place


@pytest.mark.parametrize("wrong", [-1, "many", [1], {"a": 1}, True, 1e400])
def test_no_wrong_figure_gets_through(results, write_run, wrong):
    results["methods"][1]["time"].pop("2048")
    results["methods"][1]["quality"].pop("2048")
    for key in ("pareto", "plan", "settings"):
        results.pop(key)
    del results["methods"][2:]
    places = [place for place in leaves(results["methods"][1]) if place[-1] not in ("name", "label")]
    assert len(places) > 60
    for place in places:
        damaged = copy.deepcopy(results)
        inside = damaged["methods"][1]
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = wrong
        with pytest.raises(UsageError) as caught:
            load_run(write_run(damaged))
        where = "methods[1]" + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in place)
        assert where in str(caught.value) and "results.json" in str(caught.value)


def test_a_number_that_json_does_not_have_is_named(results, write_run):
    results["methods"][1]["quality"]["1024"]["exact"] = float("nan")
    with pytest.raises(UsageError, match=r"\$\.methods\[1\]\.quality\.1024\.exact: NaN is not a JSON number"):
        load_run(write_run(results))


def test_rounding_is_no_damage(results, read_run):
    results["methods"][0]["density"]["1024"] = 1.0000000000000002
    assert read_run(results).method("dense").density_at(1024) == 1.0


def test_two_keys_are_read(results, read_run):
    plan = read_run(results).method("plan")
    assert plan.multi_key[1024].needles == 16
