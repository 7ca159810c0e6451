"""The integer programme of a search, solved with HiGHS: one rule per bag, few rules per layer, a budget."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import block_array, csr_array, eye_array, kron

__all__ = ["Programme", "Solution"]


@contextmanager
def _silent_output() -> Iterator[None]:
    """HiGHS prints debugging lines to the process's standard output from C++, whatever `disp` says."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Solution:
    """A choice of rules (L, G), or None with the reason: no such plan (`empty`) or no time (`timed_out`)."""

    def __init__(self, choice: np.ndarray | None, *, timed_out: bool = False) -> None:
        self.choice = choice
        self.timed_out = timed_out

    @property
    def empty(self) -> bool:
        """It is proved that no plan meets the constraints."""
        return self.choice is None and not self.timed_out


class Programme:
    """Binary x[l, g, c] (rule c for bag g of layer l) and y[l, c] (layer l uses rule c):

        sum_c x[l, g, c] = 1,   x[l, g, c] <= y[l, c],   sum_c y[l, c] <= rules_per_layer,
        lower_M <= mean over (l, g) of cost[M, c] x[l, g, c] <= upper_M,
        low_j <= F_j <= high_j for the objectives held in an interval.

    losses (K, L, G, C), costs (M, C), upper (M,). Every F_k is scaled to about one per bag inside, because
    the solver's tolerances are absolute; results are in the caller's unit.
    """

    def __init__(
        self,
        losses: np.ndarray,
        costs: np.ndarray,
        upper: np.ndarray,
        *,
        rules_per_layer: int | None = 2,
        gap: float = 1e-3,
        time_limit: float | None = None,
    ) -> None:
        self.objectives, self.layers, self.bags, self.rules = losses.shape
        if rules_per_layer is not None and rules_per_layer < 1:
            raise ValueError(f"rules_per_layer must be at least 1 or None, got {rules_per_layer}")
        self.losses, self.costs, self.upper = losses, costs, upper
        self.lower: np.ndarray | None = None
        # A layer with no more bags than allowed rules needs no limit.
        self.limit = rules_per_layer if rules_per_layer is not None and rules_per_layer < self.bags else None
        self.options = {"mip_rel_gap": gap} | ({"time_limit": time_limit} if time_limit is not None else {})
        self._binaries = self.layers * self.bags * self.rules
        self._columns = self._binaries + (self.layers * self.rules if self.limit is not None else 0)
        largest = losses.max(-1).sum((1, 2)) / (self.layers * self.bags)
        self._unit = np.where(largest > 0, largest, 1.0)
        self._objective = self._wide(losses.reshape(self.objectives, -1) / self._unit[:, None])
        self._density = self._wide(np.tile(costs, (1, self.layers * self.bags)) / (self.layers * self.bags))
        self._structure = self._constraints()

    def minimise(self, primary: int, cell: Mapping[int, tuple[float, float]] | None = None) -> Solution:
        """The plan of least F_primary among those whose other objectives lie in the intervals of `cell`."""
        return self._minimise(self._objective[primary], cell or {})

    def settle(self, primary: int, found: Solution) -> Solution:
        """Among the plans as good as `found` in F_primary, within the solver's gap, the one best in the rest.

        Rules with one span at a length tie there, and a minimum of one objective leaves the others arbitrary.
        """
        if found.choice is None or self.objectives == 1:
            return found
        most = float(self.losses_of(found.choice)[primary]) * (1 + self.options["mip_rel_gap"])
        others = np.delete(self._objective, primary, axis=0).sum(0)
        settled = self._minimise(others, {primary: (0.0, most)})
        return found if settled.choice is None else settled

    def _minimise(self, objective: np.ndarray, cell: Mapping[int, tuple[float, float]]) -> Solution:
        lower = self.lower if self.lower is not None else np.full(len(self.upper), -np.inf)
        # 1e-9: a bound that a plan meets exactly must not be lost to the rounding of a mean of many costs.
        constraints = [*self._structure, LinearConstraint(self._density, lower - 1e-9, self.upper + 1e-9)]
        for held, (low, high) in cell.items():
            slack = 1e-7
            row = self._objective[held : held + 1]
            bounds = np.array([low, high]) / self._unit[held]
            constraints.append(LinearConstraint(row, bounds[0] - slack, bounds[1] + slack))
        return self._solution(self._solve(objective, constraints))

    def losses_of(self, choice: np.ndarray) -> np.ndarray:
        """F_k of a choice (L, G), in the caller's unit."""
        picked = np.take_along_axis(
            self.losses, np.broadcast_to(choice[None, ..., None], (*self.losses.shape[:3], 1)), -1
        )
        return picked.sum((1, 2, 3))

    def smallest_budget(self) -> float:
        """The least t such that some plan has a mean density of at most t at every length."""
        rules = self.costs.max(0)
        mixed = milp(
            np.append(np.zeros(self.rules), 1.0),
            constraints=[
                LinearConstraint(np.append(np.ones(self.rules), 0.0)[None], 1, 1),
                LinearConstraint(np.hstack([self.costs, -np.ones((len(self.costs), 1))]), -np.inf, 0),
            ],
            bounds=Bounds(0, 1),
        )
        return float(mixed.fun) if mixed.x is not None else float(rules.min())

    def _wide(self, rows: np.ndarray) -> np.ndarray:
        """Rows over x, extended by zeros over y."""
        return np.pad(rows, ((0, 0), (0, self._columns - rows.shape[1])))

    def _constraints(self) -> list[LinearConstraint]:
        bags, layers, rules = self.layers * self.bags, self.layers, self.rules
        one = kron(eye_array(bags), np.ones((1, rules)), format="csr")
        if self.limit is None:
            return [LinearConstraint(one, 1, 1)]
        none = csr_array((bags, layers * rules))
        of_layer = kron(eye_array(layers), kron(np.ones((self.bags, 1)), eye_array(rules)), format="csr")
        used = block_array([[eye_array(self._binaries), -of_layer]], format="csr")
        few = block_array(
            [[csr_array((layers, self._binaries)), kron(eye_array(layers), np.ones((1, rules)))]],
            format="csr",
        )
        return [
            LinearConstraint(block_array([[one, none]], format="csr"), 1, 1),
            LinearConstraint(used, -np.inf, 0),
            LinearConstraint(few, -np.inf, self.limit),
        ]

    def _solve(self, objective: np.ndarray, constraints: list[LinearConstraint]) -> OptimizeResult:
        def run(options: Mapping[str, object]) -> OptimizeResult:
            with _silent_output():
                return milp(
                    objective,
                    integrality=np.ones(self._columns),
                    bounds=Bounds(0, 1),
                    constraints=constraints,
                    options=options,
                )

        result = run(self.options)
        if result.x is None and result.status == 4:
            # HiGHS now and then fails numerically (seen on tiny problems); without presolve it did not.
            return run(self.options | {"presolve": False})
        return result

    def _solution(self, result: OptimizeResult) -> Solution:
        if result.x is not None:
            x = result.x[: self._binaries].reshape(self.layers, self.bags, self.rules)
            return Solution(x.argmax(-1), timed_out=result.status == 1)
        if result.status == 2:
            return Solution(None)
        if result.status == 1:
            return Solution(None, timed_out=True)
        raise RuntimeError(f"the solver failed on a plan of {self._binaries} choices: {result.message}")
