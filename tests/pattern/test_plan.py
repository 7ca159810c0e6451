"""Plans: sizes, densities, files, and the words of every refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attlas._common.errors import UsageError
from attlas.pattern import (
    ModelShape,
    Pattern,
    Plan,
    PlanMismatch,
    Tokens,
    band_rule,
    causal,
    dense,
    distance,
    elastic,
    load_official,
    sink,
    span_rule,
    uniform_plan,
    window,
)

SHAPE = ModelShape("tiny", "llama", layers=2, heads=4, kv_heads=2, head_width=16, fingerprint="a" * 64)
LAYERS = ((span_rule(0, 0.25), span_rule(0, 1)), (span_rule(-1024, 0.5), span_rule(300, 0)))


def plan_of(layers: tuple[tuple[Pattern, ...], ...] = LAYERS, **changes: Any) -> Plan:
    return Plan(replace(SHAPE, layers=len(layers)), layers, **changes)


def test_sizes_are_those_of_the_deployed_cache() -> None:
    plan = plan_of()
    # c = 64 * ceil(max(min(int(alpha + beta N), N), 128) / 64)
    assert [plan.sizes(layer, 1024) for layer in (0, 1)] == [(256, 1024), (128, 320)]
    assert [plan.sizes(layer, 4000) for layer in (0, 1)] == [(1024, 4032), (1024, 320)]
    assert plan.density(1024) == pytest.approx((256 + 1024 + 128 + 320) / 4096)
    assert plan.density(4000) == pytest.approx((1024 + 4000 + 1024 + 320) / 16000)  # counts min(c, N)
    assert plan.layer_density(0, 1024) == pytest.approx(1280 / 2048)
    assert plan.density(64) == 1


@pytest.mark.parametrize("n", [100, 128, 129, 500, 1024, 1337, 4096])
def test_a_row_sees_exactly_what_the_cache_keeps(n: int) -> None:
    # Step 10: the sink part min(c, 64) and the ring c - sink; the last row sees min(c, N) keys.
    for rule in {rule for rules in LAYERS for rule in rules}:
        form = rule.bind(N=n).sink_window()
        assert form is not None and form[0] == 64
        last = rule.bind(N=n).row_counts(Tokens(1, start=n - 1), Tokens(n))[0]
        kept = plan_of(((rule, rule),)).sizes(0, n)[0]
        assert last == min(kept, n) and kept % 64 == 0 and kept >= 128
        assert form == (64, kept - 64)


def test_other_recipes_are_kept_whole() -> None:
    rules = (causal() & distance(0, 9) | causal() & distance(50, 60), causal() & (window(100) | sink(20)))
    plan = plan_of((rules,))
    assert plan.sizes(0, 1000) == (1000, 120)
    assert plan.density(1000) == pytest.approx((1 + 0.12) / 2)
    assert plan.spans() == ([[None, 120.0]], [[None, 0.0]])


def test_spans() -> None:
    assert plan_of().spans() == ([[0.0, 0.0], [-1024.0, 300.0]], [[0.25, 1.0], [0.5, 0.0]])
    assert plan_of(((causal(), dense()),)).spans() == ([[0.0, 0.0]], [[1.0, 2.0]])
    assert plan_of(((band_rule(100, 0.5), band_rule(0, 1)),)).spans() == ([[100.0, 0.0]], [[0.5, 1.0]])


def test_an_encoder_counts_mean_row_shares() -> None:
    plan = plan_of(((band_rule(0, 0.5), window(10) | sink(3)),))
    assert not plan.is_causal
    # S = 512: |i - j| < (512 - 64) / 2 = 224, or j < 64
    seen = [len({*range(64), *range(max(0, i - 223), min(1024, i + 224))}) for i in range(1024)]
    tiny = [len({*range(3), *range(max(0, i - 9), min(1024, i + 10))}) for i in range(1024)]
    assert plan.density(1024) == pytest.approx((sum(seen) + sum(tiny)) / 2 / 1024**2)
    assert plan.sizes(0, 1024) == (-(-sum(seen) // 1024), -(-sum(tiny) // 1024))


def test_patterns_of_a_layer() -> None:
    assert plan_of().pattern(1).expand(4, 2) == (LAYERS[1][0],) * 2 + (LAYERS[1][1],) * 2
    per_query = plan_of(((*LAYERS[0], *LAYERS[1]),), per="head")
    assert per_query.pattern(0).expand(4, 2) == (*LAYERS[0], *LAYERS[1])
    # A KV head keeps the longest span of its group.
    assert per_query.sizes(0, 1024) == (1024, 320)


def test_files_round_trip(tmp_path: Path) -> None:
    plan = plan_of(provenance={"seed": 3, "budget": 0.5}, metrics={"answer_ce": 0.25})
    plan.save(tmp_path / "new" / "plan.json")
    assert Plan.load(tmp_path / "new" / "plan.json") == plan
    assert Plan.load(tmp_path / "new" / "plan.json", SHAPE) == plan
    text = (tmp_path / "new" / "plan.json").read_text()
    plan.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text
    body = json.loads(text)
    assert (body["schema"], body["version"], len(body["patterns"])) == ("attlas.plan", 1, 4)


def damaged(**changes: Any) -> str:
    body = {**plan_of().to_dict(), **changes}
    return json.dumps({name: value for name, value in body.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "attlas.plan", "ver', r"plan .*plan\.json is damaged, not valid JSON"),
        (
            damaged(version=2),
            r"plan\.json was written by a newer Attlas \(attlas\.plan version 2, .* up to 1\)",
        ),
        (damaged(schema="attlas.run"), r"is not a file of schema 'attlas\.plan': found 'attlas\.run'"),
        (damaged(layers=None), r"plan\.json is damaged: it has no 'layers'"),
        (damaged(layers=[[0, 9], [1, 1]]), r"damaged: layers must hold pattern numbers in 0\.\.3, got 9"),
        (damaged(layers=[[0, 1]]), r"damaged: plan has rules for 1 layers but its model has 2"),
        (damaged(layers=[[0], [1]]), r"damaged: plan layer 0 has 1 rules but the model has 2 KV heads"),
        (damaged(patterns=[{"kind": "windy"}] * 4), r"damaged: unknown pattern kind 'windy'"),
        (damaged(per="token"), r"damaged: plan per must be 'kv_head' or 'head', got 'token'"),
        (
            damaged().replace('"model": {', '"model": null, "was": {'),
            r"plan\.json is damaged: model must be an object with named fields, got None; write",
        ),
        (damaged(metrics=[1]), r"damaged: metrics must be an object with named fields, got \[1\]"),
        (
            damaged(patterns={"kind": "causal"}),
            r"damaged: patterns must hold lists, got \{'kind': 'causal'\}",
        ),
        (damaged(layers=[0, 1]), r"damaged: layers must hold lists, got 0"),
        (damaged(model={"name": "x"}), r"plan\.json is damaged: .*missing"),
        ('{"alphas": [[0, 1]], "betas": [[0]]}', r"betas must hold 1 layers of 2 heads each"),
        ('{"alphas": [[0, "x"]], "betas": [[0, 1]]}', r"alphas of layer 0 holds 'x', expected a number"),
        ('{"alphas": [], "betas": []}', r"alphas must be a list of rows, one per layer"),
        ('{"alphas": [[0]]}', r"betas must be a list of rows, one per layer"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        Plan.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan .*none\.json does not exist"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"is a folder; give the file inside it"):
        Plan.load(tmp_path)


def test_a_plan_for_another_model() -> None:
    plan = plan_of()
    plan.check(replace(SHAPE, name="the same weights elsewhere"))
    plan.check(replace(SHAPE, fingerprint=""))  # not known: nothing to compare
    with pytest.raises(
        PlanMismatch, match=r"made for tiny and does not fit big: layers 2 \(here 8\); heads 4 \("
    ):
        plan.check(replace(SHAPE, name="big", layers=8, heads=8))
    with pytest.raises(
        PlanMismatch, match=r"fingerprint aaaaaaaaaaaa\.\.\. \(here bbbbbbbbbbbb\.\.\.\)\. Tune"
    ):
        plan.check(replace(SHAPE, fingerprint="b" * 64))


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"plan layer 0 has 1 rules but the model has 2 KV heads"):
        plan_of(((causal(),),))
    with pytest.raises(ValueError, match=r"rules may depend on N only, got \['M'\]"):
        plan_of(((window(elastic(0, 1, axis="M")), causal()),))
    with pytest.raises(
        ValueError, match=r"a span rule needs block >= 1 and 0 <= sink < minimum, got block 64, s"
    ):
        span_rule(0, 1, sink=128)
    with pytest.raises(ValueError, match=r"needs both even, got 63 and 64"):
        band_rule(0, 1, block=63)
    with pytest.raises(
        ValueError, match=r"heads a multiple of KV heads >= 1, got 2 layers, 4 heads, 3 KV heads"
    ):
        replace(SHAPE, kv_heads=3)
    with pytest.raises(ValueError, match=r"density needs a length >= 1, got 0"):
        plan_of().density(0)


# A file in the form of thu-nics/MoA. The shipped Vicuna-7B plan has the mean spans 0.5 - 64 / N used below;
# they come out of any mix with mean alpha -64 and mean beta 0.5, such as this one.
MIX = {"alphas": [[-1024, 0, 1024, -256]], "betas": [[0.875, 0.5, 0.125, 0.5]]}


def test_official_files(tmp_path: Path) -> None:
    path = tmp_path / "moa_alpha_beta.json"
    path.write_text(json.dumps(MIX))
    plan = load_official(path)
    assert plan == Plan.load(path)
    assert plan.layers[0][0] == span_rule(-1024, 0.875) and plan.per == "head"
    assert plan.spans() == (MIX["alphas"], MIX["betas"])
    for n, mean in ((2048, 0.4688), (4096, 0.4844), (8192, 0.4922), (16384, 0.4961)):
        # No rounding, cap or floor is at work in this mix, so the deployed density is the mean span.
        assert plan.density(n) == pytest.approx(mean, abs=5e-5)


def test_official_files_on_fewer_kv_heads(tmp_path: Path) -> None:
    path = tmp_path / "moa_alpha_beta.json"
    path.write_text(json.dumps(MIX))
    plan = load_official(path, kv_heads=2)
    # Heads (0, 1) and (2, 3) share a KV head, which keeps the longer span: 768 | 1024, 1280 | 768.
    assert plan.sizes(0, 2048) == (1024, 1280)
    assert plan.density(2048) == pytest.approx((1024 + 1280) / 4096)
    # Each query head keeps its own window as its mask.
    assert plan.pattern(0).expand(4, 2) == plan.layers[0]
    shape = ModelShape("m", "llama", 1, 4, 2, 64, "c" * 64)
    placed = Plan.load(path, shape)
    assert placed.model == shape and placed.sizes(0, 2048) == (1024, 1280)
    with pytest.raises(PlanMismatch, match=r"kv_heads 4 \(here 2\)"):
        load_official(path).check(shape)
    with pytest.raises(PlanMismatch, match=r"heads 4 \(here 8\)"):
        load_official(path).on(replace(shape, heads=8))
    with pytest.raises(UsageError, match=r"has 4 heads per layer, which 3 KV heads cannot share evenly"):
        load_official(path, kv_heads=3)


@pytest.mark.parametrize("n", [512, 1000, 1024, 1536, 2048, 4096, 16384])
def test_uniform_plan_has_the_plans_density_at_every_length(n: int) -> None:
    plan = plan_of()
    uniform = uniform_plan(plan)
    assert len({rule for rules in uniform.layers for rule in rules}) == 1
    assert uniform.model == plan.model and uniform.per == "kv_head"
    assert abs(uniform.density(n) - plan.density(n)) <= 32 / n + 1e-12
    assert abs(uniform_plan(plan, length=n).density(n) - plan.density(n)) <= 32 / n + 1e-12
    assert abs(uniform_plan(uniform).density(n) - plan.density(n)) <= 32 / n + 1e-12


def test_uniform_plan_of_a_density() -> None:
    uniform = uniform_plan(SHAPE, density=0.5)
    assert uniform.layers == ((span_rule(0, 0.5),) * 2,) * 2 and uniform.density(2048) == 0.5
    assert uniform_plan(plan_of(), density=0.25).density(2048) == 0.25
    fixed = uniform_plan(SHAPE, density=0.3, length=1024)
    assert fixed.layers[0][0] == causal() & (window(320 - 64) | sink(64))  # 307.2 keys: 5 blocks is nearest
    with pytest.raises(ValueError, match=r"uniform_plan density must be in \(0, 1\], got 1\.5"):
        uniform_plan(SHAPE, density=1.5)
    with pytest.raises(ValueError, match=r"of a model shape needs density=\.\.\., a share of the cache"):
        uniform_plan(SHAPE)
    with pytest.raises(
        TypeError, match=r"uniform_plan needs a Plan, or a ModelShape with density=\.\.\., got 3"
    ):
        uniform_plan(3)


def test_uniform_plan_of_shared_kv_heads() -> None:
    nested = plan_of(
        ((span_rule(0, 0.25), span_rule(0, 0.5), span_rule(64, 0), span_rule(128, 0)),), per="head"
    )
    assert uniform_plan(nested).density(2048) == pytest.approx(nested.density(2048), abs=32 / 2048)
    crossed = plan_of(
        ((span_rule(0, 0.25), span_rule(512, 0), span_rule(0, 1), span_rule(0, 1)),), per="head"
    )
    with pytest.raises(
        ValueError, match=r"none is the longest at every length: call uniform_plan\(plan, length="
    ):
        uniform_plan(crossed)
    assert uniform_plan(crossed, length=2048).density(2048) == pytest.approx(crossed.density(2048))


def test_uniform_plan_of_an_encoder() -> None:
    plan = plan_of(((band_rule(0, 0.5), band_rule(256, 0)),))
    uniform = uniform_plan(plan, length=512)
    assert not uniform.is_causal
    # One token more of window moves the share of a row by at most 2 / N.
    assert abs(uniform.density(512) - plan.density(512)) <= 2 / 512
    with pytest.raises(ValueError, match=r"of a bidirectional plan needs length=N"):
        uniform_plan(plan)
