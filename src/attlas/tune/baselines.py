"""What a plan must beat, each at the plan's own deployed density (MoA, arXiv 2406.14909, ablations)."""

import random
from dataclasses import replace
from typing import Any

from attlas.pattern import Plan, uniform_plan
from attlas.tune.plans import search_plans
from attlas.tune.profile import Influence
from attlas.tune.rules import RuleSet
from attlas.tune.search import Front

__all__ = ["mean_attention", "per_layer", "shuffled", "uniform"]

# Slack of the density match, in blocks of the mean cache size, tried in this order; the first that has a
# plan.
SLACKS = (0.25, 1.0, 2.0, 4.0)


def uniform(plan: Plan) -> Plan:
    """One window + sink for every head; equal deployed density at every N within half a block."""
    return uniform_plan(plan)


def shuffled(plan: Plan, *, seed: int = 0, within_layers: bool = False) -> Plan:
    """The plan's own multiset of rules, dealt out at random over all heads, or only inside each layer.

    The deployed density is the plan's, exactly (for rules per KV head). It shows whether *which* head gets a
    rule matters, or only how many of each rule there are. (The two rules per layer of a plan are not kept.)
    """
    draw = random.Random(f"shuffled-{seed}-{within_layers}")
    if within_layers:
        layers = [draw.sample(rules, len(rules)) for rules in plan.layers]
    else:
        dealt = [rule for rules in plan.layers for rule in rules]
        draw.shuffle(dealt)
        width = len(plan.layers[0])
        layers = [dealt[start : start + width] for start in range(0, len(dealt), width)]
    provenance = {
        "origin": "shuffled",
        "seed": seed,
        "within_layers": within_layers,
        "of": dict(plan.provenance),
    }
    return replace(plan, layers=tuple(tuple(rules) for rules in layers), provenance=provenance, metrics={})


def per_layer(
    plan: Plan, influence: Influence, rules: RuleSet, *, extend: int | None = None, **options: Any
) -> tuple[Front, tuple[Plan, ...]]:
    """One rule per layer for all its heads, by the same search; a Pareto set from which to `select`."""
    return _matched("per_layer", plan, influence, rules, extend, options | {"rules_per_layer": 1})


def mean_attention(
    plan: Plan, influence: Influence, rules: RuleSet, *, extend: int | None = None, **options: Any
) -> tuple[Front, tuple[Plan, ...]]:
    """The same search on mean attention A instead of influence |E|; a Pareto set from which to `select`."""
    return _matched("mean_attention", plan, influence, rules, extend, options | {"of": "attention"})


def _matched(
    name: str, plan: Plan, influence: Influence, rules: RuleSet, extend: int | None, options: dict[str, Any]
) -> tuple[Front, tuple[Plan, ...]]:
    """Search at the deployed density of `plan`: budget = its density at every length, lower = just below.

    The search charges deployed density whatever the plan was searched with. The lower bound is a quarter of a
    block of mean cache size below (block / (4 N)), or wider where no plan is that near (see `SLACKS`); the
    provenance says how near it is. `options` go to `search_plans`.
    """
    deployed = replace(rules, charge="deployed")
    lengths = sorted({*influence.lengths, *([] if extend is None else [extend])})
    budget = {length: min(plan.density(length), 1.0) for length in lengths}
    lower = [
        {length: budget[length] - slack * rules.block / length for length in lengths} for slack in SLACKS
    ]
    front, plans = search_plans(influence, deployed, budget, extend=extend, **{**options, "lower": lower})
    slack = SLACKS[lower.index(front.lower)] if front.lower is not None else None
    note = {"origin": name, "density_within_blocks": slack}
    return front, tuple(replace(one, provenance={**one.provenance, **note}) for one in plans)
