"""Reading results.json: complete, in part, and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from attlas._common.errors import UsageError
from attlas.report.run import load_run


def test_reads_every_part(results, read_run):
    run = read_run(results)
    assert run.lengths == (1024, 2048) and run.extend == 4096
    assert run.quality_lengths == (1024, 2048, 4096) and run.time_lengths == (4096,)
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
            "methods[2].quality.1024.exact must be a number or null, got 'many'",
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
        (lambda r: r["fallbacks"][0].pop("what"), "fallbacks[0] must be a complete fallback entry"),
        (lambda r: r["stages"][0].update(resumed="no"), "stages[0].resumed must be true or false, got 'no'"),
        (lambda r: r.update(lengths=1024), "lengths must be a list, got 1024"),
    ],
)
def test_damage_is_named(results, write_run, change, message):
    change(results)
    with pytest.raises(UsageError) as caught:
        load_run(write_run(results))
    assert message in str(caught.value)
    assert "is damaged" in str(caught.value) and "run the tuning again" in str(caught.value)
