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
from attlas.bridges.models import weights_digest, wiring
from attlas.pattern import Plan
from attlas.tasks import TextSource, load_source, split_tokens, tokenise
from attlas.tune.calibrate import CalibrationItem, build_calibration
from attlas.tune.choice import Choice
from attlas.tune.compare import Comparison
from attlas.tune.limits import check_budget, check_memory, fitted
from attlas.tune.profile import Influence, profile
from attlas.tune.progress import Progress, as_progress, counted
from attlas.tune.results import results
from attlas.tune.rules import RuleSet, rule_grid
from attlas.tune.settings import Calibration, Settings
from attlas.tune.store import Store, digest

__all__ = ["Study", "tune"]

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
    Cost: with the defaults and a model of 135M parameters 24 minutes on 2 cores.
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
            "weights": weights_digest(model),
            "tokenizer": _tokenizer_digest(tokenizer),
            "dtype": str(next(model.parameters()).dtype),
            "attlas": f"{versions().get('attlas', '')} {source_digest(*DECISIVE)}",
            **{name: versions().get(name, "") for name in ("torch", "transformers")},
        }
        self.store = Store(folder, settings, facts, fresh=fresh)
        self.fallbacks: list[Mapping[str, Any]] = []

    def run(self) -> Plan:
        """All stages; the plan is written as soon as it is chosen, and again with its measurements."""
        influence, rules = self.profile(self.calibrate()), self.rules()
        choice = Choice(self)
        plan, pareto = choice.run(influence, rules)
        plan.save(self.store.folder / "plan.json")
        if not self.settings.needles:
            return plan
        comparison = Comparison(self, choice, plan, influence, rules)
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
        """Items of every profiled length, answered by the dense model."""
        mine, found = self.settings.calibration, {}
        self.progress.stage("calibrate", len(self.settings.lengths) * sum(mine.counts.values()))
        with self.store.stage("calibrate"):
            for length in self.settings.lengths:
                made = self.store.get(f"calibration-{length}", partial(self._items, length))
                found[length] = [CalibrationItem.from_dict(item) for item in made]
                self._note_answers(length, found[length])
        return found

    def _note_answers(self, length: int, items: Sequence[CalibrationItem]) -> None:
        """Say it where the dense model did not find what was hidden."""
        wanted = self.settings.calibration.needle
        needles = [item for item in items if item.tag == "needle"]
        where = f"calibration at {length} tokens"
        if needles and not any(item.found for item in needles):
            self.notes.append(f"{where}: the dense model found no hidden fact; its wrong answers supervise")
        elif len(needles) < wanted:
            left = wanted - len(needles)
            self.notes.append(
                f"{where}: {left} of {wanted} needle items left out, no fact of theirs was found"
            )

    def _items(self, length: int) -> list[dict[str, Any]]:
        items = build_calibration(
            self.model,
            self.tokenizer,
            self.splits["calibration"],
            length,
            **self.settings.calibration.counts,
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

    def counted(self, name: str, compute: Callable[[], Any]) -> Any:
        """A part of the run as `Store.get` gives it; the fallbacks that happened in it are kept beside it."""

        def run() -> dict[str, Any]:
            with counting() as heard:
                value = compute()
            return {"value": value, "fallbacks": heard.records()}

        found = self.store.get(name, run)
        self.fallbacks += found["fallbacks"]
        return found["value"]


def _tokenizer_digest(tokenizer: Any) -> str:
    """Names what decides the tokens of a text and a chat."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return digest([vocabulary, str(getattr(tokenizer, "chat_template", None))])
