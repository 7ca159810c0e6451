"""Plans from a profile, and baselines at the same deployed density."""

from collections import Counter

import pytest
import torch

from attlas.pattern import ModelShape, Plan
from attlas.tune.baselines import mean_attention, per_layer, shuffled, uniform
from attlas.tune.plans import search_plans, tables, to_plan
from attlas.tune.profile import Influence
from attlas.tune.rules import RuleSet, rule_grid

LENGTHS, EXTEND = (1024, 2048), 4096
SHAPE = ModelShape("model", "llama", 5, 4, 2, 8, "abc")


def made_influence(seed: int = 0) -> Influence:
    """Heads of two kinds, local and far-looking, whose attention says nothing about their influence."""
    draw = torch.Generator().manual_seed(seed)
    influence = Influence(SHAPE)
    for length in LENGTHS:
        blocks = length // 64
        apart = torch.arange(blocks)[:, None] - torch.arange(blocks)
        reach = torch.where(torch.rand(5, 4, 1, 1, generator=draw) < 0.4, 40.0, 1.0)
        noise = torch.rand(5, 4, blocks, blocks, generator=draw)
        effect = (torch.exp(-apart / reach) * (1 + noise)).tril()
        influence.add(length, "needle", effect, torch.rand(5, 4, blocks, blocks, generator=draw).tril())
        influence.add(length, "text", 0.1 * effect, effect.flip(1))
    return influence


@pytest.fixture(scope="module")
def grid() -> RuleSet:
    return rule_grid(LENGTHS, EXTEND)


@pytest.fixture(scope="module")
def chosen(grid: RuleSet) -> Plan:
    front, plans = search_plans(made_influence(), grid, 0.5, extend=EXTEND)
    assert len(plans) == len(front.candidates)
    for candidate, plan in zip(front.candidates, plans, strict=True):
        # What the search charges is what is deployed.
        assert all(plan.density(at) == pytest.approx(density) for at, density in candidate.density.items())
        assert set(candidate.density) == {1024, 2048, 4096} and plan.model == SHAPE
        assert plan.metrics["missed_influence"] == {str(at): loss for at, loss in candidate.losses.items()}
    return plans[0]


def test_a_plan_keeps_its_budget_at_every_length(chosen: Plan) -> None:
    assert all(0.45 - 1e-6 <= chosen.density(at) <= 0.5 + 1e-6 for at in (1024, 2048, 4096))
    assert len({rule for rules in chosen.layers for rule in rules}) > 2
    assert Plan.from_dict(chosen.to_dict()) == chosen


def test_losses_of_a_kv_head_are_the_sum_over_its_query_heads(grid: RuleSet) -> None:
    influence = made_influence()
    grouped, costs = tables(influence, grid, extend=EXTEND)
    single, _ = tables(influence, grid, extend=EXTEND, per="head")
    assert sorted(costs) == [1024, 2048, 4096] and sorted(grouped) == [1024, 2048]
    for length in LENGTHS:
        assert grouped[length].shape == (5, 2, len(grid)) and single[length].shape == (5, 4, len(grid))
        expected = single[length].reshape(5, 2, 2, -1).sum(2)
        assert grouped[length] == pytest.approx(expected)


def test_a_plan_per_query_head(grid: RuleSet) -> None:
    _, plans = search_plans(made_influence(), grid, 0.5, per="head", lower=None, gap=1e-2)
    assert all(plan.per == "head" and len(plan.layers[0]) == 4 for plan in plans)


def test_the_mix_decides_what_counts(grid: RuleSet) -> None:
    losses = [
        tables(made_influence(), grid, mix=mix)[0][1024].sum()
        for mix in ({"needle": 1.0}, {"text": 1.0}, {"needle": 1.0, "text": 1.0})
    ]
    assert losses[1] == pytest.approx(0.1 * losses[0]) and losses[2] == pytest.approx(0.55 * losses[0])


@pytest.mark.parametrize("within_layers", [False, True])
def test_shuffled_deals_out_the_same_rules(chosen: Plan, within_layers: bool) -> None:
    got = shuffled(chosen, seed=3, within_layers=within_layers)
    everywhere = [Counter(rule for rules in plan.layers for rule in rules) for plan in (chosen, got)]
    assert everywhere[0] == everywhere[1] and got.layers != chosen.layers
    assert all(got.density(at) == pytest.approx(chosen.density(at)) for at in (1024, 2048, 4096))
    assert shuffled(chosen, seed=3, within_layers=within_layers).layers == got.layers
    assert shuffled(chosen, seed=4, within_layers=within_layers).layers != got.layers
    per_row = [[Counter(rules) for rules in plan.layers] for plan in (chosen, got)]
    assert (per_row[0] == per_row[1]) == within_layers
    assert got.provenance["of"] == chosen.provenance and not got.metrics


def test_uniform_has_one_rule_at_the_plans_density(chosen: Plan) -> None:
    got = uniform(chosen)
    assert len({rule for rules in got.layers for rule in rules}) == 1
    for length in (1024, 2048, 4096):
        assert abs(got.density(length) - chosen.density(length)) <= 32 / length + 1e-9


def test_per_layer_has_one_rule_in_a_layer_at_the_plans_density(chosen: Plan, grid: RuleSet) -> None:
    front, plans = per_layer(chosen, made_influence(), grid, extend=EXTEND)
    assert plans and all(len(set(rules)) == 1 for plan in plans for rules in plan.layers)
    _within_stated_blocks(plans, chosen)
    # A plan with freedom inside layers is at least as good, by its own measure, at the same density.
    free, _ = search_plans(
        made_influence(),
        grid,
        {at: chosen.density(at) for at in (1024, 2048, 4096)},
        extend=EXTEND,
        lower=None,
    )
    assert front.payoff[0][0] >= free.payoff[0][0] * (1 - 2e-3)


def test_mean_attention_searches_on_the_weights(chosen: Plan, grid: RuleSet) -> None:
    _, plans = mean_attention(chosen, made_influence(), grid, extend=EXTEND)
    _within_stated_blocks(plans, chosen)
    assert all(plan.provenance["source"] == "attention" for plan in plans)
    assert all(plan.layers != chosen.layers for plan in plans)


def _within_stated_blocks(plans: tuple[Plan, ...], chosen: Plan) -> None:
    for plan in plans:
        slack = plan.provenance["density_within_blocks"]
        assert slack is not None and slack <= 1
        for length in (1024, 2048, 4096):
            behind = chosen.density(length) - plan.density(length)
            assert -1e-6 <= behind <= slack * 64 / length + 1e-6


def test_baselines_name_where_they_come_from(chosen: Plan, grid: RuleSet) -> None:
    origins = [
        uniform(chosen).provenance["origin"],
        shuffled(chosen).provenance["origin"],
        per_layer(chosen, made_influence(), grid, extend=EXTEND)[1][0].provenance["origin"],
    ]
    assert origins == ["uniform_plan", "shuffled", "per_layer"]


def test_rules_must_fit_the_profile() -> None:
    with pytest.raises(
        ValueError, match=r"rules \(block 32, causal True\) do not fit the profile \(block 64"
    ):
        tables(made_influence(), rule_grid(LENGTHS, block=32, sink=32, minimum=64))


def test_rule_indices_become_a_plan(grid: RuleSet) -> None:
    choice = [[0, 1]] * 5
    plan = to_plan(choice, grid, SHAPE, provenance={"origin": "hand"})
    assert plan.layers == ((grid.pattern(0), grid.pattern(1)),) * 5
    assert plan.provenance == {"origin": "hand"} and plan.metrics == {}
