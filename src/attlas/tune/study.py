"""The run: calibrate, profile, search, select, compare; resumable at every step (MoA, arXiv 2406.14909).

    plan = tune(model, tokenizer, "python-docs", budget=0.5, out="runs/mine")

Every finished part is a file of its own in `out`/state (`store.Store`): each calibration set, each profiled
item, each search, each validated plan, each evaluated method and length. A run that was killed reads what is
there and goes on; with the same settings it ends in the same plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attlas._common.errors import UsageError
from attlas._common.machine import source_digest, versions
from attlas.attend import counting
from attlas.bridges import describe
from attlas.bridges.models import wiring
from attlas.pattern import Plan
from attlas.tasks import TextSource, load_source, split_tokens, tokenise
from attlas.tune.calibrate import CalibrationItem, build_calibration
from attlas.tune.compare import Comparison
from attlas.tune.evaluate import validation_losses
from attlas.tune.limits import check_budget, check_memory, fitted
from attlas.tune.plans import search_plans
from attlas.tune.profile import Influence, profile
from attlas.tune.progress import Progress, as_progress, counted
from attlas.tune.results import results
from attlas.tune.rules import RuleSet, rule_grid
from attlas.tune.search import Front
from attlas.tune.select import select, spread
from attlas.tune.settings import Calibration, Settings
from attlas.tune.store import Store, digest

__all__ = ["Study", "tune"]

Mix = Mapping[str, float] | None
# Rooms whose code decides what a run finds: parts made by other code are not continued.
DECISIVE = ("pattern", "score", "attend", "cache", "bridges", "tasks", "tune")


def tune(
    model: nn.Module,
    tokenizer: Any,
    data: str | Path | TextSource,
    *,
    budget: float = 0.5,
    lengths: Sequence[int] = (1024, 2048),
    extend: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    needles: int | None = None,
    calibration: Calibration | None = None,
    fresh: bool = False,
    progress: Progress | Callable[[str], None] | None = None,
    **options: Any,
) -> Plan:
    """Find the attention span that each KV head needs, so that at most `budget` of the KV cache is kept.

    model, tokenizer: a Hugging Face decoder (`bridges.load_model`); its type stays, bfloat16 is fastest.
    data: a known text (`tasks.SOURCES`), a UTF-8 file, or a TextSource. lengths: profiled, increasing,
    multiples of 64. extend: the longest length that the plan is made for (default: 4096, or as far as the
    model's context reaches). out: folder of the run; the same call goes on where a killed one stopped,
    `fresh` forgets that one. needles: facts asked at each length to compare methods (default 40 with `out`;
    0, and no comparison, without). options: fields of `Settings`.

    Writes `out`/plan.json and `out`/results.json, returns the plan. UsageError: text too short, lengths that
    do not fit the model or the memory, a folder with another run, a budget that no plan meets.
    Cost: with the defaults and a model of 135M parameters an estimated 25 minutes on 2 cores.
    """
    count = (0 if out is None else Settings.needles) if needles is None else needles
    given = {"needles": count, "calibration": calibration or Calibration(), **options}
    settings = Settings(budget, tuple(lengths), extend, seed, **given)
    source = data if isinstance(data, TextSource) else load_source(data)
    folder = None if out is None else Path(out)
    study = Study(model, tokenizer, source, settings, folder, as_progress(progress), fresh=fresh)
    try:
        return study.run()
    except UsageError:
        study.store.forget_refused()
        raise
    finally:
        study.store.close()


class Study:
    """One run: its model, texts, settings and folder, and the stages up to the choice of the plan."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        source: TextSource,
        settings: Settings,
        folder: Path | None,
        progress: Progress,
        *,
        fresh: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.source = model.eval(), tokenizer, source
        self.progress, self.notes = progress, list[str]()
        self.shape = describe(model)
        if not wiring(model).causal:
            raise UsageError(
                f"{self.shape.name} is an encoder: tune needs a decoder, which answers questions; profile an "
                "encoder with attlas.tune.profile"
            )
        self.settings = settings = fitted(model, settings, self.shape.name, self.notes)
        check_budget(self.rules(), settings)
        check_memory(model, settings)
        longest = {"calibration": settings.lengths[-1], "selection": settings.validation}
        if settings.needles:
            longest["test"] = settings.all_lengths[-1]
        self.splits = split_tokens(tokenise(tokenizer, source.text), longest, source=source.name)
        facts = {
            "model": self.shape.fingerprint or self.shape.name,
            "text": digest([source.name, source.text]),
            "dtype": str(next(model.parameters()).dtype),
            "attlas": f"{versions().get('attlas', '')} {source_digest(*DECISIVE)}",
        }
        self.store = Store(folder, settings, facts, fresh=fresh)
        self.validation: list[CalibrationItem] = []
        self.mix: Mix = None
        self.fallbacks: list[Mapping[str, Any]] = []

    def run(self) -> Plan:
        """All stages; the plan is written as soon as it is chosen, and again with its measurements."""
        items = self.calibrate()
        self.validation = items.pop(self.settings.validation)
        influence = self.profile(items)
        rules = self.rules()
        plan, pareto = self.choose(influence, rules)
        plan.save(self.store.folder / "plan.json")
        if not self.settings.needles:
            return plan
        comparison = Comparison(self, plan, influence, rules)
        comparison.run()
        plan = replace(plan, metrics={**plan.metrics, "quality": comparison.quality("plan")})
        plan.save(self.store.folder / "plan.json")
        results(
            self.store,
            self.model,
            self.shape,
            self.settings,
            self.source,
            plan,
            comparison.methods,
            pareto,
            self.notes,
            self.fallbacks,
        )
        return plan

    def calibrate(self) -> dict[int, list[CalibrationItem]]:
        """Items of every profiled length and of the validation length, answered by the dense model."""
        mine, found = self.settings.calibration, {}
        sets = [("calibration", length, mine.counts) for length in self.settings.lengths]
        sets.append(("selection", self.settings.validation, mine.validation_counts))
        self.progress.stage("calibrate", sum(sum(counts.values()) for *_, counts in sets))
        with self.store.stage("calibrate"):
            for split, length, counts in sets:
                make = partial(self._items, split, length, counts)
                made = self.store.get(f"{split}-{length}", make)
                found[length] = [CalibrationItem.from_dict(item) for item in made]
                self._note_answers(split, length, found[length], counts["needle"])
        return found

    def _note_answers(self, split: str, length: int, items: Sequence[CalibrationItem], wanted: int) -> None:
        """Say it where the dense model did not find what was hidden."""
        needles = [item for item in items if item.tag == "needle"]
        where = f"{split} at {length} tokens"
        if needles and not any(item.found for item in needles):
            self.notes.append(f"{where}: the dense model found no hidden fact; its wrong answers supervise")
        elif len(needles) < wanted:
            left = wanted - len(needles)
            self.notes.append(
                f"{where}: {left} of {wanted} needle items left out, no fact of theirs was found"
            )

    def _items(self, split: str, length: int, counts: Mapping[str, int]) -> list[dict[str, Any]]:
        items = build_calibration(
            self.model,
            self.tokenizer,
            self.splits[split],
            length,
            **counts,
            per_item=self.settings.calibration.per_item,
            answer_tokens=self.settings.calibration.answer_tokens,
            seed=self.settings.seed,
            progress=self.progress.advance,
        )
        return [item.to_dict() for item in items]

    def profile(self, items: Mapping[int, Sequence[CalibrationItem]]) -> Influence:
        """The influence of every head's blocks; written after each item."""
        with self.store.stage("profile"):
            return profile(
                self.model,
                items,
                block=self.settings.block,
                path=self.store.path("profile.safetensors"),
                progress=counted(self.progress, "profile"),
            )

    def rules(self) -> RuleSet:
        """The rule grid of the settings."""
        mine = self.settings
        return rule_grid(
            mine.lengths,
            mine.extension,
            alpha_step=mine.alpha_step,
            betas=mine.betas,
            block=mine.block,
            sink=mine.sink,
        )

    def choose(self, influence: Influence, rules: RuleSet) -> tuple[Plan, dict[str, Any]]:
        """Search with every mix of calibration tags, validate a spread of each front, take the best.

        Returns the plan and the "pareto" entry of results.json: the front of the chosen mix.
        """
        weights = self.settings.calibration.weights()
        fronts = [
            self.search(
                f"plan-{number}",
                "search",
                partial(search_plans, influence, rules, self.settings.budget, mix=mix),
            )
            for number, mix in enumerate(weights)
        ]
        share = max(1, self.settings.candidates // len(fronts))
        tried = [
            (mix, index)
            for mix, front in enumerate(fronts)
            for index in spread(range(len(front.plans)), share)
        ]
        best, scores = self.select("select", [fronts[mix].plans[index] for mix, index in tried])
        mix, index = tried[best]
        self.mix, known = weights[mix], dict(zip(tried, scores, strict=True))
        if len(fronts) > 1:
            least = [min(score for (one, _), score in known.items() if one == m) for m in range(len(fronts))]
            told = ", ".join(f"{_name(one)} {loss:.4f}" for one, loss in zip(weights, least, strict=True))
            self.notes.append(f"best validation loss by mix of calibration items: {told}")
        points = [
            {
                "id": place,
                "losses": fronts[mix].points[place],
                "density": self.density(plan),
                "validation": known.get((mix, place)),
                "chosen": place == index,
            }
            for place, plan in enumerate(fronts[mix].plans)
        ]
        plan = self._described(fronts[mix].plans[index], scores[best])
        return plan, {"objectives": [str(length) for length in self.settings.lengths], "points": points}

    def _described(self, plan: Plan, score: float) -> Plan:
        mine = self.settings
        origin = {
            "budget": mine.budget,
            "lengths": list(mine.lengths),
            "extend": mine.extension,
            "seed": mine.seed,
            "text": self.source.name,
        }
        measured = {"validation": {str(mine.validation): score}, "density": self.density(plan)}
        return replace(plan, provenance={**plan.provenance, **origin}, metrics={**plan.metrics, **measured})

    def search(self, name: str, shown: str, run: Callable[..., tuple[Front, tuple[Plan, ...]]]) -> "Found":
        """A search up to the extension length, read from its file if it was made before."""

        def compute() -> dict[str, Any]:
            front, plans = run(extend=self.settings.extension, progress=counted(self.progress, shown))
            return {
                "plans": [plan.to_dict() for plan in plans],
                "points": [[one.losses[n] for n in self.settings.lengths] for one in front.candidates],
                "notes": list(front.notes),
            }

        with self.store.stage("search" if shown == "search" else "baselines"):
            found = Found(self.store.get(f"search-{name}", compute))
        for note in found.notes:
            text = note if shown == "search" else f"{shown}: {note}"
            if text not in self.notes:
                self.notes.append(text)
        return found

    def select(self, shown: str, plans: Sequence[Plan]) -> tuple[int, tuple[float, ...]]:
        """Index of the plan of least validation loss, and all losses; each plan's is a file."""
        self.progress.stage(shown, len(plans) * len(self.validation))

        def validate(plan: Plan) -> dict[str, list[float]]:
            table = plan.to_dict()
            losses: dict[str, list[float]] = self.counted(
                f"validation-{digest([table['per'], table['patterns'], table['layers']])}",
                partial(validation_losses, self.model, self.validation, plan, progress=self.progress.advance),
            )
            return losses

        with self.store.stage("select"):
            limits = self._limits()
            chosen = select(plans, validate, limits=limits)
        for name, most in limits.items():
            if (loss := chosen.table[chosen.best][name]) > most:
                self.notes.append(
                    f"{shown}: no validated plan keeps the {name} loss within {most:.4f}; taken is {loss:.4f}"
                )
        return chosen.best, chosen.scores

    def counted(self, name: str, compute: Callable[[], Any]) -> Any:
        """A part of the run as `Store.get` gives it; the fallbacks that happened in it are kept beside it."""

        def run() -> dict[str, Any]:
            with counting() as heard:
                value = compute()
            return {"value": value, "fallbacks": heard.records()}

        found = self.store.get(name, run)
        self.fallbacks += found["fallbacks"]
        return found["value"]

    def _limits(self) -> dict[str, float]:
        """The largest validation loss that a plan should have on plain passages: dense's and `text_rise`."""
        passages = [item for item in self.validation if item.tag == "passage"]
        if not passages:
            return {}
        run = partial(validation_losses, self.model, passages, None)
        losses = self.store.get("validation-dense", run)["passage"]
        return {"passage": sum(losses) / len(losses) + self.settings.text_rise}

    def density(self, plan: Plan) -> dict[str, float]:
        """Deployed density by length."""
        return {str(length): plan.density(length) for length in self.settings.all_lengths}


class Found:
    """A search as it is stored: plans with their losses by length."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.plans = tuple(Plan.from_dict(plan) for plan in data["plans"])
        self.points: list[list[float]] = data["points"]
        self.notes: list[str] = data["notes"]


def _name(mix: Mix) -> str:
    return "alike" if mix is None else " : ".join(f"{tag} {weight:g}" for tag, weight in mix.items())
