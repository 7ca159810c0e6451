"""Choose one rule per head within a density budget: an integer programme per trade-off, then the Pareto set.

Shapes: L layers, G bags per layer (KV heads, or query heads), C rules, K profiled lengths, M budget lengths.
MoA, arXiv 2406.14909, section 4.3 and appendix. Solver: HiGHS through `scipy.optimize.milp`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from attlas._common.errors import UsageError
from attlas.tune.programme import Programme, Solution

__all__ = ["Candidate", "Front", "non_dominated", "search"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """One solution: `choice[l][g]` is the index of the rule of bag g in layer l."""

    choice: tuple[tuple[int, ...], ...]
    losses: dict[int, float]
    density: dict[int, float]


@dataclass(frozen=True)
class Front:
    """The non-dominated candidates of a search, by ascending loss at the shortest length, and how they arose.

    `payoff[a][b]` is the loss at the b-th length of the plan that is best at the a-th length alone. `notes`
    say everything that a reader of the result must know (a bound dropped, cells without a plan, time limits).
    """

    candidates: tuple[Candidate, ...]
    payoff: tuple[tuple[float, ...], ...]
    lower: dict[int, float] | None
    solved: int
    empty_cells: int
    notes: tuple[str, ...] = field(default=())


def search(
    losses: Mapping[int, np.ndarray],
    costs: Mapping[int, np.ndarray],
    budget: float | Mapping[int, float],
    *,
    lower: float | Sequence[Mapping[int, float]] | None = 0.9,
    rules_per_layer: int | None = 2,
    intervals: int = 4,
    gap: float = 1e-3,
    time_limit: float | None = 60.0,
    progress: Progress | None = None,
) -> Front:
    """All trade-offs between the losses of several lengths that the budget allows.

        minimise F_k = sum_b losses[k][b, x(b)]   s.t.   lower_M <= mean_b costs[M][x(b)] <= budget_M  for all
        M and at most `rules_per_layer` distinct rules in a layer

    `losses[N]` (L, G, C): influence that each rule misses (`RuleSet.losses`) at a profiled length N.
    `costs[N]` (C,): density of each rule (`RuleSet.density`) at every length that has a budget, the extension
    included. `lower`: a share of the budget, or densities per length to try in turn (tightest first);
    dropped, and noted, if no plan meets it.

    Epsilon-constraint sweep: each F_k alone gives the payoff table; the range of every objective is cut into
    `intervals` equal parts; for each primary objective and each combination of intervals of the others one
    programme: K + K * intervals^(K-1) in all (2 lengths: 10, 3 lengths: 51). Departures: the K minima of the
    payoff table are settled in the other objectives by one programme each (12, 54), since rules with equal
    spans at one length tie there and an arbitrary choice would widen the ranges; these K solutions are
    candidates too. Losses of different lengths are compared only as objectives,
    never added, so that no normalisation between lengths is needed (nor is there one in the released code).

    Deterministic unless `time_limit` (seconds per programme) strikes, which is noted. Raises UsageError with
    the smallest reachable density where no plan exists. Cost: 270 bags x 40 rules solve in about 1 s each.
    """
    bounds = _bounds(losses, costs, budget)
    lengths = tuple(sorted(losses))
    programme = Programme(
        np.stack([np.asarray(losses[length], dtype=float) for length in lengths]),
        np.stack([np.asarray(costs[length], dtype=float) for length in bounds]),
        np.array(list(bounds.values())),
        rules_per_layer=rules_per_layer,
        gap=gap,
        time_limit=time_limit,
    )
    notes: list[str] = []
    alone_steps = len(lengths) * (2 if len(lengths) > 1 else 1)
    total = alone_steps + (len(lengths) * intervals ** (len(lengths) - 1) if len(lengths) > 1 else 0)
    report = progress if progress is not None else lambda done, of: None
    report(0, total)
    floor, first = _first(programme, _floors(lower, bounds), notes)
    if first.choice is None:
        raise _unreachable(programme, bounds, costs, first)
    alone = [first, *(programme.minimise(k) for k in range(1, len(lengths)))]
    alone = [programme.settle(k, solution) for k, solution in enumerate(alone)]
    report(alone_steps, total)
    best = [solution.choice for solution in alone if solution.choice is not None]
    if len(best) < len(alone):
        raise UsageError(f"no plan was found within {time_limit} s per programme; raise time_limit or gap")
    payoff = np.array([programme.losses_of(choice) for choice in best])
    solutions, done = list(alone), alone_steps
    for primary, cell in _cells(payoff, intervals):
        solutions.append(programme.minimise(primary, cell))
        done += 1
        report(done, total)
    report(total, total)
    found = _unique(solutions)
    empty = sum(solution.choice is None and not solution.timed_out for solution in solutions)
    late = sum(solution.timed_out for solution in solutions)
    if late:
        notes.append(f"{late} of {len(solutions)} programmes stopped at the time limit of {time_limit} s")
    values = np.array([programme.losses_of(choice) for choice in found])
    kept = sorted(np.flatnonzero(non_dominated(values)), key=lambda index: tuple(values[index]))
    candidates = tuple(
        Candidate(
            tuple(tuple(int(rule) for rule in layer) for layer in found[index]),
            {length: float(value) for length, value in zip(lengths, values[index], strict=True)},
            {length: float(np.asarray(costs[length])[found[index]].mean()) for length in costs},
        )
        for index in kept
    )
    table = tuple(tuple(float(value) for value in row) for row in payoff)
    return Front(candidates, table, floor, total, empty, tuple(notes))


def non_dominated(points: np.ndarray) -> np.ndarray:
    """True for each row of (points, objectives) to which no other is nowhere worse and once better."""
    no_worse = np.all(points[:, None] <= points[None], axis=-1)
    better = np.any(points[:, None] < points[None], axis=-1)
    dominated: np.ndarray = np.any(no_worse & better, axis=0)
    return ~dominated


def _cells(payoff: np.ndarray, intervals: int) -> list[tuple[int, dict[int, tuple[float, float]]]]:
    """(primary, {other objective: (low, high)}) of the sweep; an objective without range has one cell."""
    count = payoff.shape[1]
    if count == 1:
        return []
    parts = []
    for low, high in zip(payoff.min(0), payoff.max(0), strict=True):
        edges = np.linspace(low, high, intervals + 1) if high > low else np.array([low, high])
        parts.append([(float(a), float(b)) for a, b in itertools.pairwise(edges)])
    cells = []
    for primary in range(count):
        others = [k for k in range(count) if k != primary]
        for chosen in itertools.product(*(parts[k] for k in others)):
            cells.append((primary, dict(zip(others, chosen, strict=True))))
    return cells


def _unique(solutions: list[Solution]) -> list[np.ndarray]:
    found: dict[bytes, np.ndarray] = {}
    for solution in solutions:
        if solution.choice is not None:
            found.setdefault(solution.choice.tobytes(), solution.choice)
    return list(found.values())


def _bounds(
    losses: Mapping[int, np.ndarray], costs: Mapping[int, np.ndarray], budget: float | Mapping[int, float]
) -> dict[int, float]:
    """Upper density bound of every length that has costs, in the order of the lengths."""
    if not losses:
        raise ValueError("losses must hold at least one profiled length, got none")
    shapes = {np.shape(value) for value in losses.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"losses must all be (layers, heads, rules) of one shape, got {sorted(shapes)}")
    rules = next(iter(shapes))[2]
    wrong = {length: np.shape(cost) for length, cost in costs.items() if np.shape(cost) != (rules,)}
    if wrong or not costs:
        raise ValueError(
            f"costs must give one density for each of the {rules} rules at a length, got {wrong}"
        )
    bad = [length for length, value in losses.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"losses at length {bad[0]} hold NaN or infinity; profile again")
    given = budget if isinstance(budget, Mapping) else dict.fromkeys(costs, budget)
    if set(given) != set(costs):
        raise ValueError(f"budget must name the lengths of costs {sorted(costs)}, got {sorted(given)}")
    outside = {length: value for length, value in given.items() if not 0 < value <= 1}
    if outside:
        raise UsageError(f"budget must lie in (0, 1], got {outside}")
    return {length: float(given[length]) for length in sorted(costs)}


def _floors(
    lower: float | Sequence[Mapping[int, float]] | None, bounds: dict[int, float]
) -> list[dict[int, float] | None]:
    """Lower density bounds to try in turn; the last is none at all."""
    if lower is None:
        return [None]
    if isinstance(lower, Sequence):
        return [*({length: float(each.get(length, 0.0)) for length in bounds} for each in lower), None]
    if not 0 <= lower <= 1:
        raise ValueError(f"lower must be a share of the budget in [0, 1], got {lower}")
    return [{length: lower * bound for length, bound in bounds.items()}, None]


def _first(
    programme: Programme, floors: list[dict[int, float] | None], notes: list[str]
) -> tuple[dict[int, float] | None, Solution]:
    """The first lower bound that some plan meets, set in the programme, and the best plan for objective 0."""
    for floor in floors:
        programme.lower = None if floor is None else np.array(list(floor.values()))
        first = programme.minimise(0)
        if first.choice is not None or floor is None:
            return floor, first
        why = "was found in time" if first.timed_out else "exists"
        notes.append(
            f"no plan with a density of at least {_densities(floor)} {why}: that lower bound was dropped"
        )
    raise ValueError("floors must end with None")


def _unreachable(
    programme: Programme, bounds: dict[int, float], costs: Mapping[int, np.ndarray], first: Solution
) -> UsageError:
    if first.timed_out:
        return UsageError("no plan was found within the time limit; raise time_limit or gap")
    smallest = {length: float(np.min(costs[length])) for length in bounds}
    return UsageError(
        f"no plan keeps the density at or below {_densities(bounds)}. One rule alone reaches "
        f"{_densities(smallest)}; a plan needs at least {programme.smallest_budget():.4f} at every length. "
        f"Raise "
        "the budget, use longer lengths, or a smaller alpha_step"
    )


def _densities(values: Mapping[int, float]) -> str:
    return ", ".join(f"{value:.4g} at {length}" for length, value in values.items())
