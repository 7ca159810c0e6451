"""Static patterns side by side at equal density: on a sequence, a grid, a pretrained model, and trained.

Every finished row is a file of its own beside the result until all are there: an interrupted run continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, to_json, write_json
from attlas._common.machine import PACKAGE, machine, source_digest, versions
from attlas.bridges import describe
from attlas.bridges.models import wiring
from attlas.catalog.bench.geometry import BLOCK, geometry, speed
from attlas.catalog.bench.parts import Parts
from attlas.catalog.bench.quality import (
    Method,
    pair_density,
    plan_of,
    small_row,
    small_values,
    zero_shot_row,
)
from attlas.catalog.bench.settings import DENSITY, Settings
from attlas.catalog.static_grids import GRID, own_density
from attlas.catalog.static_patterns import SEQUENCE, Place, Stack, StaticPattern, fit
from attlas.pattern import Plan, Tokens, uniform_plan
from attlas.tasks import LongItem, TextSource, build_items, byte_text, load_source, split_tokens, tokenise
from attlas.tune import Progress, Silent
from attlas.tune.limits import context_of

__all__ = ["NAME", "SCHEMA", "VERSION", "Pretrained", "bench_patterns"]

SCHEMA, VERSION, NAME = "attlas.patterns", 1, "static_patterns"
UNMEASURED = ("cli", "report")  # rooms that only show what was measured


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A loaded decoder, its tokenizer, and perhaps a plan that was made for it."""

    model: nn.Module
    tokenizer: Any
    plan: Plan | None = None


def bench_patterns(
    settings: Settings,
    *,
    out: str | Path,
    pretrained: Pretrained | None = None,
    command: str = "",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure and write `out`/static_patterns.json (schema "attlas.patterns"); returns what was written.

    UsageError: settings that cannot work, a length beyond the model's context, a plan for another model.
    Cost: with the defaults minutes, nearly all of it timing; a pretrained model adds a prefill per item and
    pattern, each seed a training per pattern.
    """
    progress, folder = progress or Silent(), check_folder(out)
    if pretrained is not None:
        pretrained = _checked(pretrained, settings)
    plan = None if pretrained is None else pretrained.plan
    if plan is not None and settings.density is not None:
        raise UsageError(
            "give a density or a plan, not both: with a plan all patterns get the share of pairs that it "
            "computes"
        )
    density = settings.density or (DENSITY if plan is None else pair_density(plan, settings.length))
    digest = _digest(settings, density, pretrained)
    kept = Parts(folder / f"{NAME}-{digest}.partial", SCHEMA, VERSION)
    if fresh:
        kept.remove()
    source = load_source(settings.data)
    # Before anything is measured: the text may be too short, or the length for the questions.
    items = [] if pretrained is None else _items(pretrained, source, settings)
    run = _Run(settings, density, kept, progress)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": NAME,
        "title": "Static patterns at equal density",
        "command": command,
        "settings": settings.to_dict() | {"density": density, "block": BLOCK},
        "sequence": run.table("sequence", SEQUENCE, Place(_sequence(settings.length), settings.heads)),
        "grid": [],
        "zero_shot": None,
        "small": None,
        "versions": versions(),
        "machine": machine(),
    }
    if settings.grid is not None:
        place = Place(_grid(settings.grid), settings.heads)
        share = settings.density or own_density(place)
        result["settings"]["grid_density"] = share
        result["grid"] = replace(run, density=share).table("grid", GRID, place)
    if pretrained is not None:
        result["zero_shot"] = run.zero_shot(pretrained, source, items)
    if settings.seeds:
        result["small"] = run.small(source)
    write_json(folder / f"{NAME}.json", result)
    kept.remove()
    return result


def _sequence(length: int) -> Tokens:
    return Tokens(length, total=length)


def _grid(sizes: tuple[int, int, int]) -> Tokens:
    return Tokens.grid(**dict(zip("FHW", sizes, strict=True)))


def _checked(pretrained: Pretrained, settings: Settings) -> Pretrained:
    model = pretrained.model.eval()
    shape, context = describe(model), context_of(model)
    if not wiring(model).causal:
        raise UsageError(f"{shape.name} is an encoder; give a decoder, which answers questions")
    if context is not None and settings.length > context:
        raise UsageError(
            f"length {settings.length} is above the context of {context} of {shape.name}; use less"
        )
    plan = pretrained.plan
    return Pretrained(model, pretrained.tokenizer, None if plan is None else plan.on(shape))


def _items(pretrained: Pretrained, source: TextSource, mine: Settings) -> list[LongItem]:
    """Long contexts with hidden facts, of text and wordings that no calibration has seen."""
    tokens = tokenise(pretrained.tokenizer, source.text)
    passages = split_tokens(tokens, {"test": mine.length}, source=source.name)["test"]
    return build_items(
        pretrained.tokenizer, passages, mine.length, mine.needles, per_item=mine.per_item, seed=mine.seed
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """The stages; each row is kept."""

    settings: Settings
    density: float
    kept: Parts
    progress: Progress

    def table(self, stage: str, rows: Sequence[StaticPattern], place: Place) -> list[dict[str, Any]]:
        """Geometry and time of all rows at one place."""
        self.progress.stage(f"patterns on a {stage}", len(rows))
        return [self._part(f"{stage}-{row.name}", partial(self._row, row, place)) for row in rows]

    def _row(self, row: StaticPattern, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {"name": row.name, "label": row.label, "source": row.source}
        fitted = _fitted(row, place, self.density)
        if isinstance(fitted, str):
            return found | {"absent": fitted}
        found |= {"pattern": [str(pattern) for pattern in fitted]}
        found |= geometry(fitted, place.space, self.settings.layers)
        if self.settings.timing:
            found |= speed(fitted, place.space, heads=place.heads)
        return found

    def zero_shot(
        self, pretrained: Pretrained, source: TextSource, items: Sequence[LongItem]
    ) -> dict[str, Any]:
        """Every method on the same items."""
        model, shape = pretrained.model, describe(pretrained.model)
        methods, absent = self._methods(pretrained)
        rows = []
        for method in methods:
            self.progress.stage(f"{method.label} on {shape.name}", len(items))
            measure = partial(zero_shot_row, model, items, method, self.progress.advance)
            rows.append(self._part(f"model-{method.name}", measure, steps=len(items), tells=True))
        return {
            "model": shape.name,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "data": {"name": source.name, "licence": source.licence, "origin": source.origin},
            "rows": [*rows, *absent],
        }

    def _methods(self, pretrained: Pretrained) -> tuple[list[Method], list[dict[str, Any]]]:
        """Dense, the plan and its uniform window, and every pattern at equal density; and what is absent."""
        shape, plan = describe(pretrained.model), pretrained.plan
        methods, absent = [Method("dense", "dense", None)], []
        if plan is not None:
            methods.append(Method("plan", "MoA's plan", plan))
            methods.append(
                Method(
                    "uniform",
                    "uniform window of the plan's cache",
                    uniform_plan(plan, length=self.settings.length),
                )
            )
        place = Place(_sequence(self.settings.length), shape.heads)
        for row in SEQUENCE:
            fitted = _fitted(row, place, self.density)
            if isinstance(fitted, str):
                absent.append({"name": row.name, "label": row.label, "absent": fitted})
            else:
                own = plan_of(fitted, shape, origin="bench patterns", pattern=row.name)
                methods.append(Method(row.name, row.label, own))
        return methods, absent

    def small(self, source: TextSource) -> dict[str, Any]:
        """A small language model per pattern and seed."""
        mine, small = self.settings, self.settings.small
        text, space = byte_text(source), _sequence(small.length)
        rows: list[dict[str, Any]] = []
        stacks: list[tuple[str, str, Stack | str | None]] = [("dense", "dense", None)]
        place = Place(space, small.heads)
        stacks += [(row.name, row.label, _fitted(row, place, self.density)) for row in SEQUENCE]
        self.progress.stage("small language models", len(stacks) * mine.seeds)
        for name, label, stack in stacks:
            if isinstance(stack, str):
                rows.append({"name": name, "label": label, "absent": stack})
                self.progress.advance(mine.seeds)
                continue
            runs = [
                self._part(f"small-{name}-{seed}", partial(small_values, stack, text, seed, small))
                for seed in range(mine.seeds)
            ]
            share = 1.0 if stack is None else sum(one.density(space, space) for one in stack) / len(stack)
            rows.append(small_row(name, label, share, runs))
        return {"data": source.name, "rows": rows}

    def _part(self, name: str, compute: Callable[[], Any], *, steps: int = 1, tells: bool = False) -> Any:
        """What `compute` found, kept in a file; `steps` of the stage, which it may tell itself."""
        if tells and not self.kept.has(name):
            steps = 0
        value = self.kept.keep(name, compute)
        self.progress.advance(steps)
        return value


def _fitted(row: StaticPattern, place: Place, density: float) -> Stack | str:
    """The stack at the density, or why there is none."""
    try:
        return fit(row, place, density).stack
    except ValueError as error:
        return str(error)


def _digest(settings: Settings, density: float, pretrained: Pretrained | None) -> str:
    """Names the experiment and the code that runs it: rows measured by other code are not mixed in."""
    code = source_digest(*(folder.name for folder in PACKAGE.iterdir() if folder.name not in UNMEASURED))
    facts: dict[str, Any] = settings.to_dict() | {"density": density, "code": code, "versions": versions()}
    if pretrained is not None:
        facts["model"] = asdict(describe(pretrained.model))
        facts["plan"] = None if pretrained.plan is None else pretrained.plan.to_dict()
    return hashlib.sha256(to_json(facts).encode()).hexdigest()[:8]
