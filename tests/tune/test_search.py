"""The integer programme against brute force, and the sweep over trade-offs."""

import itertools

import numpy as np
import pytest

from attlas._common.errors import UsageError
from attlas.tune import programme
from attlas.tune.programme import Programme
from attlas.tune.search import Front, non_dominated, search

LENGTHS = (64, 128)


def problem(
    seed: int, layers: int, heads: int, rules: int, lengths: tuple[int, ...] = LENGTHS
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    draw = np.random.default_rng(seed)
    costs = {length: np.append(0.1, draw.uniform(0.1, 1, rules - 1)) for length in (*lengths, 256)}
    losses = {length: draw.exponential(1, (layers, heads, rules)) for length in lengths}
    return losses, costs


def feasible(
    losses: dict[int, np.ndarray],
    costs: dict[int, np.ndarray],
    budget: float,
    lower: float,
    most: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """All choices within the constraints, with their losses per length, by trying every one."""
    layers, heads, rules = next(iter(losses.values())).shape
    found = []
    for flat in itertools.product(range(rules), repeat=layers * heads):
        choice = np.array(flat).reshape(layers, heads)
        density = [cost[choice].mean() for cost in costs.values()]
        if any(not lower * budget - 1e-9 <= value <= budget + 1e-9 for value in density):
            continue
        if any(len(set(layer)) > most for layer in choice.tolist()):
            continue
        index = np.indices(choice.shape)
        found.append((choice, np.array([loss[index[0], index[1], choice].sum() for loss in losses.values()])))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers, heads, most", [(2, 2, 2), (1, 4, 2), (2, 2, 1), (1, 3, 1)])
def test_programmes_are_solved_exactly(seed: int, layers: int, heads: int, most: int) -> None:
    losses, costs = problem(seed, layers, heads, 4)
    every = feasible(losses, costs, 0.6, 0.0, most)
    front = search(losses, costs, 0.6, lower=None, rules_per_layer=most, gap=0.0)
    best = np.min([values for _, values in every], axis=0)
    np.testing.assert_allclose(np.diag(front.payoff), best, rtol=1e-7)
    points = np.array([values for _, values in every])
    for candidate in front.candidates:
        choice = np.array(candidate.choice)
        assert any((choice == other).all() for other, _ in every)
        values = np.array(list(candidate.losses.values()))
        assert not (np.all(points <= values + 1e-9, axis=1) & np.any(points < values - 1e-6, axis=1)).any()


@pytest.mark.parametrize("seed", range(6))
def test_a_cell_of_the_sweep_is_solved_exactly(seed: int) -> None:
    losses, costs = problem(seed, 2, 2, 4)
    every = feasible(losses, costs, 0.6, 0.0, 2)
    second = sorted(values[1] for _, values in every)
    low, high = second[len(second) // 3], second[2 * len(second) // 3]
    inside = [values[0] for _, values in every if low - 1e-9 <= values[1] <= high + 1e-9]
    exact = Programme(
        np.stack(list(losses.values())), np.stack(list(costs.values())), np.full(3, 0.6), gap=0.0
    )
    solution = exact.minimise(0, {1: (low, high)})
    assert solution.choice is not None
    np.testing.assert_allclose(exact.losses_of(solution.choice)[0], min(inside), rtol=1e-7)


def test_three_lengths_take_51_programmes_and_3_for_ties_and_find_the_whole_range() -> None:
    losses, costs = problem(1, 2, 2, 4, (64, 128, 192))
    steps: list[tuple[int, int]] = []
    front = search(
        losses, costs, 0.6, lower=None, gap=0.0, progress=lambda done, of: steps.append((done, of))
    )
    assert front.solved == 3 + 3 * 4**2 + 3 == steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps) and steps[0] == (0, 54)
    for index, length in enumerate((64, 128, 192)):
        assert min(one.losses[length] for one in front.candidates) == pytest.approx(
            front.payoff[index][index]
        )


def test_two_lengths_take_10_programmes_and_2_for_ties_and_empty_cells_are_skipped() -> None:
    losses, costs = problem(3, 1, 2, 3)
    front = search(losses, costs, 0.7, lower=None, gap=0.0)
    assert front.solved == 2 + 2 * 4 + 2
    assert front.empty_cells > 0 and len(front.candidates) >= 1


def test_rules_that_tie_at_one_length_do_not_widen_the_range() -> None:
    """Rules 1 and 2 miss the same at 64 tokens, as spans that differ in beta only; rule 2 is bad at 128."""
    losses, costs = problem(7, 2, 2, 4)
    losses[64][..., 2], losses[128][..., 2] = losses[64][..., 1], losses[128].max() + 1.0
    for cost in costs.values():
        cost[2] = cost[1]
    front = search(losses, costs, 0.7, lower=None, rules_per_layer=None, gap=0.0)
    plans = [
        [losses[n][np.repeat([0, 1], 2), np.tile([0, 1], 2), list(choice)].sum() for n in (64, 128)]
        for choice in itertools.product(range(4), repeat=4)
        if all(np.mean([cost[rule] for rule in choice]) <= 0.7 + 1e-9 for cost in costs.values())
    ]
    least = min(first for first, _ in plans)
    best = min(second for first, second in plans if first <= least + 1e-9)
    assert front.payoff[0] == pytest.approx((least, best))
    assert max(one.losses[128] for one in front.candidates) <= best + 1e-9


def test_one_length_is_one_programme() -> None:
    losses, costs = problem(0, 2, 2, 4, (64,))
    front = search(losses, costs, 0.6, lower=None)
    assert front.solved == 1 and len(front.candidates) == 1


def test_candidates_keep_every_bound_and_do_not_dominate_each_other() -> None:
    losses, costs = problem(5, 3, 3, 5)
    front = search(losses, costs, 0.5, lower=0.7)
    assert front.lower == {64: 0.35, 128: 0.35, 256: 0.35} and len(front.candidates) > 1
    for one in front.candidates:
        assert all(0.35 - 1e-6 <= value <= 0.5 + 1e-6 for value in one.density.values())
        assert all(len(set(layer)) <= 2 for layer in one.choice)
        for length, loss in one.losses.items():
            rows, heads = np.indices((3, 3))
            assert loss == pytest.approx(losses[length][rows, heads, np.array(one.choice)].sum())
        for length, density in one.density.items():
            assert density == pytest.approx(
                np.mean([costs[length][c] for layer in one.choice for c in layer])
            )
    values = np.array([list(one.losses.values()) for one in front.candidates])
    assert non_dominated(values).all() and (np.diff(values[:, 0]) > 0).all()


def test_non_dominated_keeps_equal_points_and_drops_the_rest() -> None:
    points = np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [2.0, 3.0], [3.0, 1.0]])
    assert non_dominated(points).tolist() == [True, True, True, False, True]


def front_of(lower: object, budget: object = 0.6) -> Front:
    losses, costs = problem(2, 2, 2, 4)
    return search(losses, costs, budget, lower=lower)  # type: ignore[arg-type]


def test_a_lower_bound_that_nothing_meets_is_dropped_and_noted() -> None:
    costs = {64: np.array([0.1, 0.9]), 256: np.array([0.1, 0.9])}
    losses = {64: np.array([[[2.0, 1.0]]])}
    front = search(losses, costs, 0.5)
    assert front.lower is None and front.candidates[0].choice == ((0,),)
    assert front.notes == (
        "no plan with a density of at least 0.45 at 64, 0.45 at 256 exists: that lower bound was dropped",
    )


def test_lower_bounds_are_tried_in_turn() -> None:
    costs = {64: np.array([0.1, 0.9])}
    losses = {64: np.array([[[2.0, 1.0], [2.0, 1.0]]])}
    front = search(losses, costs, 0.6, lower=[{64: 0.59}, {64: 0.5}])
    assert front.lower == {64: 0.5} and "at least 0.59 at 64 exists" in front.notes[0]


def test_the_same_problem_gives_the_same_front() -> None:
    assert front_of(0.5) == front_of(0.5)


def test_nothing_feasible_names_the_smallest_reachable_density() -> None:
    costs = {64: np.array([0.3, 0.8]), 128: np.array([0.6, 0.2])}
    losses = {64: np.ones((2, 2, 2)), 128: np.ones((2, 2, 2))}
    # Mixing p of the first rule: 0.3 p + 0.8 (1 - p) and 0.6 p + 0.2 (1 - p) are equal at p = 2/3: 0.4667.
    with pytest.raises(
        UsageError,
        match=r"at or below 0.4 at 64, 0.4 at 128. One rule alone reaches 0.3 at 64, 0.2 at 128; "
        r"a plan needs at least 0.4667 at every length",
    ):
        search(losses, costs, 0.4)


def test_a_time_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = programme.milp

    def slow(*arguments: object, **options: object) -> object:
        result = real(*arguments, **options)
        result.status = 1
        return result

    monkeypatch.setattr(programme, "milp", slow)
    front = front_of(None)
    assert front.candidates
    assert any("programmes stopped at the time limit of 60.0 s" in note for note in front.notes)

    def nothing(*arguments: object, **options: object) -> object:
        result = slow(*arguments, **options)
        result.x = None  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(programme, "milp", nothing)
    with pytest.raises(UsageError, match="no plan was found within the time limit; raise time_limit or gap"):
        front_of(None)


def test_a_numerical_failure_of_the_solver_is_tried_again_without_presolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, failed = programme.milp, []

    def fragile(*arguments: object, **options: dict[str, object]) -> object:
        result = real(*arguments, **options)
        if options["options"].get("presolve", True):
            failed.append(result)
            return programme.OptimizeResult(x=None, status=4, message="numerical trouble")
        return result

    expected = front_of(None)
    monkeypatch.setattr(programme, "milp", fragile)
    assert front_of(None) == expected and len(failed) == expected.solved


def test_a_failure_that_stays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = programme.OptimizeResult(x=None, status=4, message="numerical trouble")
    monkeypatch.setattr(programme, "milp", lambda *arguments, **options: broken)
    with pytest.raises(RuntimeError, match="the solver failed on a plan of 16 choices: numerical trouble"):
        front_of(None)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(budget=0.0), r"budget must lie in \(0, 1\]"),
        (dict(budget=1.5), r"budget must lie in \(0, 1\]"),
        (dict(budget={64: 0.5}), r"budget must name the lengths of costs \[64, 128, 256\], got \[64\]"),
        (dict(lower=1.5), r"lower must be a share of the budget in \[0, 1\], got 1.5"),
        (dict(rules_per_layer=0), "rules_per_layer must be at least 1 or None, got 0"),
        (dict(losses={}), "losses must hold at least one profiled length"),
        (dict(losses={64: np.full((2, 2, 4), np.nan)}), "losses at length 64 hold NaN or infinity"),
        (dict(costs={64: np.ones(3)}), "costs must give one density for each of the 4 rules"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], text: str) -> None:
    losses, costs = problem(0, 2, 2, 4)
    arguments: dict[str, object] = dict(losses=losses, costs=costs, budget=0.6) | change
    with pytest.raises(ValueError, match=text):
        search(**arguments)  # type: ignore[arg-type]
