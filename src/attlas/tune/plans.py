"""From an influence profile to plans: losses of all rules, the search, and candidates as `Plan`s."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from attlas.pattern import ModelShape, Plan
from attlas.tune.profile import Influence, Source
from attlas.tune.rules import RuleSet
from attlas.tune.search import Candidate, Front, search

__all__ = ["Per", "search_plans", "tables", "to_plan"]

Per = Literal["kv_head", "head"]


def tables(
    influence: Influence,
    rules: RuleSet,
    *,
    extend: int | None = None,
    mix: Mapping[str, float] | None = None,
    of: Source = "influence",
    per: Per = "kv_head",
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """(losses, costs) for `search`: (L, G, C) for every profiled length, (C,) for these and `extend`.

    `mix`, `of`: see `Influence.mean`. `per` "kv_head": one rule per KV head, by the influence summed over its
    query heads, so that the cache really shrinks; "head": one rule per query head (with fewer KV heads each
    of them must then keep the longest span of its group, and the deployed density exceeds the one searched).
    Departures: the released code expands such models to one KV head per query head, or takes the maximum over
    heads that it groups by stride; here consecutive heads are summed, since losses of heads add up.
    """
    if rules.block != influence.block or rules.causal != influence.causal:
        raise ValueError(
            f"rules (block {rules.block}, causal {rules.causal}) do not fit the profile (block "
            f"{influence.block}, "
            f"causal {influence.causal}); build the grid with the profile's settings"
        )
    blocks = influence.per_kv_head if per == "kv_head" else influence.mean
    losses = {
        length: rules.losses(blocks(length, mix, of=of), length).numpy() for length in influence.lengths
    }
    lengths = sorted({*influence.lengths, *([] if extend is None else [extend])})
    return losses, {length: rules.density(length) for length in lengths}


def search_plans(
    influence: Influence,
    rules: RuleSet,
    budget: float | Mapping[int, float],
    *,
    extend: int | None = None,
    mix: Mapping[str, float] | None = None,
    of: Source = "influence",
    per: Per = "kv_head",
    **options: Any,
) -> tuple[Front, tuple[Plan, ...]]:
    """Search: the Pareto front and its candidates as plans, in the same order.

    `budget`: mean density (`rules.charge`) at every profiled length and at `extend`, or one per length.
    `options` go to `search`. Raises UsageError where no plan fits the budget.
    """
    losses, costs = tables(influence, rules, extend=extend, mix=mix, of=of, per=per)
    front = search(losses, costs, budget, **options)
    provenance = {
        "origin": "search_plans",
        "source": of,
        "mix": None if mix is None else dict(mix),
        "charge": rules.charge,
        "lower_bound_dropped": front.lower is None and options.get("lower", 0.9) is not None,
    }
    plans = [to_plan(one, rules, influence.model, per=per, provenance=provenance) for one in front.candidates]
    return front, tuple(plans)


def to_plan(
    candidate: Candidate | Sequence[Sequence[int]],
    rules: RuleSet,
    model: ModelShape,
    *,
    per: Per = "kv_head",
    provenance: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a candidate (or of rule indices per layer and head); its losses become metrics."""
    choice = candidate.choice if isinstance(candidate, Candidate) else candidate
    table = [rules.pattern(index) for index in range(len(rules))]
    metrics: dict[str, Any] = {}
    if isinstance(candidate, Candidate):
        metrics["missed_influence"] = {str(length): loss for length, loss in candidate.losses.items()}
    return Plan(
        model,
        tuple(tuple(table[index] for index in layer) for layer in choice),
        per=per,
        provenance=dict(provenance or {}),
        metrics=metrics,
    )
