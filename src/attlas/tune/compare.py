"""The chosen plan against the dense model and the baselines: quality, time, and smaller budgets."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from attlas._common.errors import UsageError
from attlas.pattern import Plan, uniform_plan
from attlas.tasks import LongItem, build_items
from attlas.tune.baselines import mean_attention, per_layer, shuffled, uniform
from attlas.tune.choice import Choice
from attlas.tune.evaluate import Evaluation, evaluate
from attlas.tune.plans import search_plans
from attlas.tune.profile import Influence
from attlas.tune.results import Method
from attlas.tune.rules import RuleSet
from attlas.tune.select import spread
from attlas.tune.timing import measure, measure_rates

if TYPE_CHECKING:
    from attlas.tune.study import Study

__all__ = ["Comparison"]

# Dense attention by Attlas's own kernels: what of a time is due to the kernel, and what to the plan.
OWN = "dense_attlas"
MAIN = ("dense", "plan", "uniform", "per_layer", "shuffled", "mean_attention")
EXTENDED = ("dense", "plan", "uniform")
LABELS = {
    "dense": "dense",
    OWN: "dense, by Attlas",
    "plan": "plan",
    "uniform": "uniform window",
    "per_layer": "one rule per layer",
    "shuffled": "plan shuffled",
    "mean_attention": "profiled by mean attention",
}


class Comparison:
    """The methods of a run, filled stage by stage; each result is a file of the run's folder."""

    def __init__(
        self, study: "Study", choice: Choice, plan: Plan, influence: Influence, rules: RuleSet
    ) -> None:
        self.study, self.settings, self.choice, self.plan = study, study.settings, choice, plan
        self.influence, self.rules = influence, rules
        self.methods: dict[str, Method] = {}

    def run(self) -> None:
        """All stages."""
        self._add("dense", None, None)
        self._add("plan", self.settings.budget, self.plan)
        self._baselines()
        self._evaluate(MAIN, self.settings.lengths, self.settings.needles)
        if self.settings.extension is not None:
            self._evaluate(EXTENDED, (self.settings.extension,), self.settings.needles)
        if self.settings.multi_key_needles:
            self._multi_key(self.settings.lengths[0])
        if self.settings.timing:
            self._add(OWN, None, uniform_plan(self.study.shape, density=1.0))
            for length in self.settings.all_lengths:
                self._time((*MAIN, OWN) if length == self.settings.all_lengths[-1] else EXTENDED, length)
        if self.settings.extra_needles:
            for budget in self.settings.extra_budgets:
                if budget < self.settings.budget:
                    self._extra(budget)

    def quality(self, name: str) -> dict[str, Any]:
        """Quality of a method by length."""
        found = self.methods[name].evaluations
        return {str(length): evaluation.quality for length, evaluation in found.items()}

    def _add(self, name: str, budget: float | None, plan: Plan | None) -> None:
        kind, _, at = name.partition("@")
        label = f"{LABELS[kind]} at {at}" if at else LABELS[kind]
        self.methods[name] = Method(name, label, budget, plan)

    def _baselines(self) -> None:
        """Uniform window, one rule per layer, mean attention, shuffled; searched ones are validated."""
        budget, most = self.settings.budget, self.settings.baseline_candidates
        self._add("uniform", budget, uniform(self.plan))
        for name, make in (("per_layer", per_layer), ("mean_attention", mean_attention)):
            run = partial(make, self.plan, self.influence, self.rules, mix=self.choice.mix)
            try:
                front = self.choice.search(name, LABELS[name], run)
            except UsageError as error:  # no plan of this kind at the plan's density
                self.study.notes.append(f"{LABELS[name]} is left out: {error}")
                continue
            self._add(name, budget, self._selected(LABELS[name], front.plans, most))
        self.study.notes.append(
            f"searched baselines use the plan's own mix of calibration items and at most {most} candidates "
            f"each; the plan was chosen among up to {self.settings.candidates} of all mixes"
        )
        self._add("shuffled", budget, shuffled(self.plan, seed=self.settings.seed))

    def _selected(self, shown: str, plans: Sequence[Plan], most: int) -> Plan:
        tried = spread(plans, most)
        if len(tried) == 1:
            return tried[0]
        return tried[self.choice.select(f"select {shown}", tried).best]

    def _evaluate(self, names: Sequence[str], lengths: Sequence[int], needles: int) -> None:
        for length in lengths:
            items = self._items(length, needles, self.settings.per_item, "needle")
            for method in self._known(names):
                method.evaluations[length] = self._evaluated(method, f"{length}", items)

    def _multi_key(self, length: int) -> None:
        """Two facts of one kind in a context, told apart only by their owner."""
        items = self._items(length, self.settings.multi_key_needles, 2, "multi_key")
        for method in self._known(EXTENDED):
            method.multi_key[length] = self._evaluated(method, f"{length}-multi-key", items)

    def _items(self, length: int, needles: int, per_item: int, task: str) -> list[LongItem]:
        study, seed = self.study, self.settings.seed
        passages = study.splits["test"]
        return build_items(
            study.tokenizer, passages, length, needles, per_item=per_item, task=task, seed=seed
        )

    def _known(self, names: Sequence[str]) -> list[Method]:
        return [self.methods[name] for name in names if name in self.methods]

    def _evaluated(self, method: Method, name: str, items: Sequence[LongItem]) -> Evaluation:
        progress = self.study.progress
        progress.stage(f"evaluate {method.label} at {name}", len(items))

        def compute() -> dict[str, Any]:
            return evaluate(self.study.model, items, method.plan, progress=progress.advance).to_dict()

        with self.study.store.stage("evaluate"):
            return Evaluation.from_dict(self.study.store.get(f"scores-{method.name}-{name}", compute))

    def _time(self, names: Sequence[str], length: int) -> None:
        """The methods at one length, one after the other in one process with the rates for the bounds."""
        methods = self._known(names)

        def compute() -> dict[str, Any]:
            self.study.progress.stage(f"time at {length}", len(methods))
            rates = measure_rates(next(self.study.model.parameters()).dtype)
            found = {}
            for method in methods:
                found[method.name] = measure(self.study.model, method.plan, length, rates)
                self.study.progress.advance()
            return found

        with self.study.store.stage("time"):
            for name, entry in self.study.counted(f"time-{length}", compute).items():
                self.methods[name].time[length] = entry

    def _extra(self, budget: float) -> None:
        """A smaller budget with the same profile and mix: its plan and its uniform window."""
        run = partial(search_plans, self.influence, self.rules, budget, mix=self.choice.mix)
        try:
            front = self.choice.search(f"plan@{budget:g}", "search", run)
        except UsageError as error:
            self.study.notes.append(f"budget {budget:g} is left out: {error}")
            return
        plan = self._selected(f"at {budget:g}", front.plans, self.settings.extra_candidates)
        names = (f"plan@{budget:g}", f"uniform@{budget:g}")
        for name, one in zip(names, (plan, uniform(plan)), strict=True):
            self._add(name, budget, one)
        self._evaluate(names, self.settings.lengths, self.settings.extra_needles)
