"""Selection by validation, and thinning a front."""

import pytest

from attlas.pattern import ModelShape, Plan, span_rule
from attlas.tune.select import select, spread


def plan(beta: float) -> Plan:
    return Plan(ModelShape("m", "f", 1, 1, 1, 8), ((span_rule(0.0, beta),),))


PLANS = [plan(0.25), plan(0.5), plan(0.75)]


def test_datasets_weigh_the_same_whatever_their_number_of_items() -> None:
    losses = [
        {"needle": [1.0], "text": [3.0, 3.0, 3.0, 3.0]},  # 2.0; over items it would be 2.6
        {"needle": [2.5], "text": [2.0, 2.0, 2.0, 2.0]},  # 2.25; over items 2.1
        {"needle": 4.0, "text": 4.0},
    ]
    steps: list[tuple[int, int]] = []
    result = select(
        PLANS, lambda one: losses[PLANS.index(one)], progress=lambda done, of: steps.append((done, of))
    )
    assert result.best == 0 and result.scores == (2.0, 2.25, 4.0)
    assert result.table[1] == {"needle": 2.5, "text": 2.0}
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_tie_goes_to_the_first() -> None:
    assert select(PLANS, lambda one: {"text": 1.0}).best == 0


def test_limits_come_before_the_mean() -> None:
    losses = [
        {"needle": 0.1, "passage": 2.50},  # the least mean, above the limit
        {"needle": 0.5, "passage": 2.41},
        {"needle": 0.4, "passage": 2.42},
    ]

    def best(limit: float) -> int:
        return select(PLANS, lambda one: losses[PLANS.index(one)], limits={"passage": limit}).best

    assert best(3.0) == 0 and best(2.43) == 2 and best(2.415) == 1
    assert best(2.0) == 1, "all exceed it: the one that exceeds it least"


def test_wrong_validations_are_named() -> None:
    with pytest.raises(ValueError, match="plans must hold at least one plan, got none"):
        select([], lambda one: {"text": 1.0})
    rows = iter([{"text": 1.0}, {"needle": 1.0}])
    with pytest.raises(ValueError, match=r"same datasets for every plan, got \['needle'\] after \['text'\]"):
        select(PLANS, lambda one: next(rows))
    with pytest.raises(ValueError, match="validate must return the same datasets"):
        select(PLANS, lambda one: {})
    with pytest.raises(ValueError, match=r"validate gave \[nan\] for 'text'"):
        select(PLANS, lambda one: {"text": float("nan")})
    with pytest.raises(ValueError, match=r"validate gave \[\] for 'text'"):
        select(PLANS, lambda one: {"text": []})


def test_spread_keeps_both_ends() -> None:
    assert spread(range(9), 3) == (0, 4, 8)
    assert spread(range(10), 4) == (0, 3, 6, 9)
    assert spread(range(3), 5) == (0, 1, 2)
    assert spread(range(9), 1) == (4,)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        spread(range(3), 0)
