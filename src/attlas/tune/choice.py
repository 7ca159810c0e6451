"""The choice of a plan: searches with every mix, and validation of what they find (MoA, arXiv 2406.14909).

Departures from the paper's step 9: a context of the validation gives two losses by one forward pass, the
answers to its hidden facts and its own text, in place of a dataset of questions each; and a plan whose text
loss rises more than the settings allow is passed over, because answers alone would pay for themselves with
the loss of plain text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from attlas.pattern import Plan
from attlas.tasks import ItemScore, LongItem, build_items
from attlas.tune.evaluate import Evaluation, evaluate, validation_losses
from attlas.tune.plans import search_plans
from attlas.tune.profile import Influence
from attlas.tune.progress import counted
from attlas.tune.rules import RuleSet
from attlas.tune.search import Front
from attlas.tune.select import Selection, select, spread
from attlas.tune.store import digest

if TYPE_CHECKING:
    from attlas.tune.study import Study

__all__ = ["Choice", "Found"]

Mix = Mapping[str, float] | None


class Choice:
    """Searches and validations of a run; each result is a file of its folder. `mix`: that of the plan."""

    def __init__(self, study: "Study") -> None:
        self.study, self.settings, self.store = study, study.settings, study.store
        self.mix: Mix = None

    def run(self, influence: Influence, rules: RuleSet) -> tuple[Plan, dict[str, Any]]:
        """Search with every mix of calibration tags, validate a spread of each front, take the best.

        Returns the plan and the "pareto" entry of results.json: the front of the chosen mix.
        """
        weights = self.settings.calibration.weights()
        budget = self.settings.budget
        fronts = [
            self.search(f"plan-{number}", "search", partial(search_plans, influence, rules, budget, mix=mix))
            for number, mix in enumerate(weights)
        ]
        share = max(1, self.settings.candidates // len(fronts))
        tried = [
            (mix, index)
            for mix, front in enumerate(fronts)
            for index in spread(range(len(front.plans)), share)
        ]
        chosen = self.select("select", [fronts[mix].plans[index] for mix, index in tried])
        mix, index = tried[chosen.best]
        self.mix, known = weights[mix], dict(zip(tried, chosen.scores, strict=True))
        if len(fronts) > 1:
            least = [min(score for (one, _), score in known.items() if one == m) for m in range(len(fronts))]
            told = ", ".join(f"{_name(one)} {loss:.4f}" for one, loss in zip(weights, least, strict=True))
            self.study.notes.append(f"best validation loss by mix of calibration items: {told}")
        points = [
            {
                "id": place,
                "losses": fronts[mix].points[place],
                "density": self._density(plan),
                "validation": known.get((mix, place)),
                "chosen": place == index,
            }
            for place, plan in enumerate(fronts[mix].plans)
        ]
        plan = self._described(fronts[mix].plans[index], chosen)
        return plan, {"objectives": [str(length) for length in self.settings.lengths], "points": points}

    def search(self, name: str, shown: str, run: Callable[..., tuple[Front, tuple[Plan, ...]]]) -> "Found":
        """A search up to the extension length, read from its file if it was made before."""

        def compute() -> dict[str, Any]:
            progress = counted(self.study.progress, shown)
            front, plans = run(extend=self.settings.extension, progress=progress)
            return {
                "plans": [plan.to_dict() for plan in plans],
                "points": [[one.losses[n] for n in self.settings.lengths] for one in front.candidates],
                "notes": list(front.notes),
            }

        with self.store.stage("search" if shown == "search" else "baselines"):
            found = Found(self.store.get(f"search-{name}", compute))
        for note in found.notes:
            text = note if shown == "search" else f"{shown}: {note}"
            if text not in self.study.notes:
                self.study.notes.append(text)
        return found

    def select(self, shown: str, plans: Sequence[Plan]) -> Selection:
        """The plan of least validation loss among those that keep the text; each plan's scores are a file."""
        contexts = len(self.items)
        self.study.progress.stage(shown, (len(plans) + (not self.store.has("validation-dense"))) * contexts)
        with self.store.stage("select"):
            limits = {"passage": _mean(self.losses(self.dense)["passage"]) + self.settings.text_rise}
            chosen = select(plans, self._validate, limits=limits)
        kept = chosen.table[chosen.best]["passage"]
        if kept > limits["passage"]:
            self.study.notes.append(
                f"{shown}: no validated plan keeps the text loss within {limits['passage']:.4f}; taken is "
                f"{kept:.4f}"
            )
        return chosen

    @cached_property
    def items(self) -> list[LongItem]:
        """Contexts of the validation length with their questions, from the text of the selection split."""
        mine, study = self.settings, self.study
        count = mine.validations * mine.calibration.per_item
        return build_items(
            study.tokenizer,
            study.splits["selection"],
            mine.validation,
            count,
            per_item=mine.calibration.per_item,
            seed=mine.seed,
        )

    @cached_property
    def dense(self) -> tuple[ItemScore, ...]:
        """The dense model's scores: what it finds is asked of the plans, its text loss limits theirs."""
        scores = self._scores("validation-dense", None)
        if not any(question.exact for score in scores for question in score.questions):
            self.study.notes.append("validation: the dense model finds no hidden fact, so that all count")
        return scores

    def losses(self, scores: Sequence[ItemScore]) -> dict[str, list[float]]:
        """`validation_losses` of a plan's scores."""
        return validation_losses(scores, self.dense)

    def _validate(self, plan: Plan) -> dict[str, list[float]]:
        table = plan.to_dict()
        name = f"validation-{digest([table['per'], table['patterns'], table['layers']])}"
        return self.losses(self._scores(name, plan))

    def _scores(self, name: str, plan: Plan | None) -> tuple[ItemScore, ...]:
        def compute() -> dict[str, Any]:
            return evaluate(
                self.study.model, self.items, plan, progress=self.study.progress.advance
            ).to_dict()

        found = Evaluation.from_dict(self.store.get(name, compute))
        self.study.fallbacks += found.fallbacks
        return found.scores

    def _described(self, plan: Plan, chosen: Selection) -> Plan:
        mine, row = self.settings, chosen.table[chosen.best]
        origin = {
            "budget": mine.budget,
            "lengths": list(mine.lengths),
            "extend": mine.extension,
            "seed": mine.seed,
            "text": self.study.source.name,
        }
        dense = _mean(self.losses(self.dense)["passage"])
        rise = row["passage"] - dense
        validation = {"length": mine.validation, "answer_ce": row["needle"], "text_rise": rise}
        measured = {"validation": validation, "density": self._density(plan)}
        return replace(plan, provenance={**plan.provenance, **origin}, metrics={**plan.metrics, **measured})

    def _density(self, plan: Plan) -> dict[str, float]:
        """Deployed density by length."""
        return {str(length): plan.density(length) for length in self.settings.all_lengths}


class Found:
    """A search as it is stored: plans with their losses by length."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.plans = tuple(Plan.from_dict(plan) for plan in data["plans"])
        self.points: list[list[float]] = data["points"]
        self.notes: list[str] = data["notes"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _name(mix: Mix) -> str:
    return "alike" if mix is None else " : ".join(f"{tag} {weight:g}" for tag, weight in mix.items())
