"""Read `results.json` of a tune run (schema "attlas.run", version 1), trusting none of its values.

A value of the wrong type, or one that cannot be (a density above 1, a negative time), is a UsageError that
names the file and the place; missing parts are fine but for the methods and their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json
from attlas.report.run import (
    DepthScore,
    Fallback,
    Method,
    ParetoPoint,
    Quality,
    Run,
    Stage,
    Timing,
)

__all__ = ["load_run"]

SCHEMA, VERSION = "attlas.run", 1
ROUNDING = 1e-9  # by which a mean of shares may come out above 1
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class _Kind:
    """What a value must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


NUMBER = _Kind("a number", _numeric)
NUMBER_OR_NULL = _Kind("a number or null", lambda value: value is None or _numeric(value))
AMOUNT = _Kind("a number from 0", lambda value: _numeric(value) and value >= 0)
SHARE = _Kind("a share from 0 to 1", lambda value: _numeric(value) and 0 <= value <= 1 + ROUNDING)
DENSITY = _Kind("a share above 0, up to 1", lambda value: _numeric(value) and 0 < value <= 1 + ROUNDING)
COUNT = _Kind("a whole number from 0", lambda value: _whole(value, 0))
POSITIVE = _Kind("a whole number from 1", lambda value: _whole(value, 1))
TEXT = _Kind("text", lambda value: isinstance(value, str))
TRUTH = _Kind("true or false", lambda value: isinstance(value, bool))

# Every other field of an entry is an AMOUNT: losses, times, fractions of a bound.
KINDS = {
    "exact": SHARE, "depth": SHARE, "needles": COUNT, "n": COUNT, "length": POSITIVE,
    "batch": POSITIVE, "prefill_batch": POSITIVE, "kv_bytes": COUNT, "kv_bytes_bound": COUNT,
    "what": TEXT, "why": TEXT, "count": POSITIVE, "name": TEXT, "resumed": TRUTH,
}  # fmt: skip
NESTED = ("by_depth",)
MODEL = {
    "name": TEXT, "family": TEXT, "layers": POSITIVE, "heads": POSITIVE, "kv_heads": POSITIVE,
    "parameters": COUNT,
}  # fmt: skip


def load_run(folder: str | Path) -> Run:
    """Read `folder`/results.json; UsageError where it is missing, damaged or of a newer schema."""
    source = Path(folder) / "results.json"
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; give the output folder of a tune run")
    raw = read_json(source, what="the results of a tune run")
    raw = check_schema(raw, SCHEMA, VERSION, source=str(source))
    return _Reader(str(source)).run(raw, Path(folder))


class _Reader:
    """Turns JSON values into the types of a run and names the place of whatever does not fit."""

    def __init__(self, source: str) -> None:
        self.source = source

    def damaged(self, where: str, expected: str, value: Any) -> UsageError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
        return UsageError(
            f"{self.source} is damaged: {where} must be {expected}, got {shown}; run the tuning again"
        )

    def object(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.damaged(where, "an object", value)
        return value

    def list(self, value: Any, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.damaged(where, "a list", value)
        return value

    def value(self, value: Any, where: str, kind: _Kind, *, optional: bool = True) -> Any:
        if (optional and value is None) or kind.fits(value):
            return value
        raise self.damaged(where, f"{kind.words} or null" if optional else kind.words, value)

    def row(self, value: Any, where: str, kind: _Kind) -> tuple[Any, ...]:
        items = enumerate(self.list(value, where))
        return tuple(self.value(item, f"{where}[{i}]", kind, optional=False) for i, item in items)

    def grid(self, value: Any, where: str, kind: _Kind) -> tuple[tuple[Any, ...], ...]:
        found = tuple(self.row(row, f"{where}[{i}]", kind) for i, row in enumerate(self.list(value, where)))
        if not all(found):
            raise self.damaged(where, "a row per layer with a value per head", value)
        return found

    def entries(self, value: Any, where: str, read: Callable[[Any, str], _Part]) -> tuple[_Part, ...]:
        return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(self.list(value, where)))

    def by_length(self, value: Any, where: str, read: Callable[[Any, str], _Part]) -> dict[int, _Part]:
        found = self.object(value, where)
        if not all(key.isdecimal() and int(key) > 0 for key in found):
            raise self.damaged(where, "an object with lengths as keys", value)
        return {int(key): read(child, f"{where}.{key}") for key, child in found.items() if child is not None}

    def density(self, value: Any, where: str) -> float:
        return min(float(self.value(value, where, DENSITY, optional=False)), 1.0)

    def entry(self, part: type[_Part], value: Any, where: str, **nested: Any) -> _Part:
        """A dataclass whose plain fields are of the kinds above; `nested`: its other fields, read already."""
        raw = self.object(value, where)
        found = dict(nested)
        for field in fields(part):  # type: ignore[arg-type]
            if field.name in NESTED:
                continue
            if field.name in raw:
                kind = KINDS.get(field.name, AMOUNT)
                optional = "None" in str(field.type)
                found[field.name] = self.value(
                    raw[field.name], f"{where}.{field.name}", kind, optional=optional
                )
            elif field.default is MISSING:
                words = f"a complete {part.__name__.lower()} entry with {field.name!r}"
                raise self.damaged(where, words, value)
        return part(**found)

    def depth_score(self, value: Any, where: str) -> DepthScore:
        return self.entry(DepthScore, value, where)

    def quality(self, value: Any, where: str) -> Quality:
        depths = self.object(value, where).get("by_depth")
        scores = self.entries(depths, f"{where}.by_depth", self.depth_score)
        return self.entry(Quality, value, where, by_depth=scores)

    def timing(self, value: Any, where: str) -> Timing:
        return self.entry(Timing, value, where)

    def method(self, value: Any, where: str) -> Method:
        raw = self.object(value, where)
        name = raw.get("name")
        if not isinstance(name, str) or not name:
            raise self.damaged(f"{where}.name", "a name", name)
        return Method(
            name=name,
            label=self.value(raw.get("label"), f"{where}.label", TEXT) or name,
            budget=self.value(raw.get("budget"), f"{where}.budget", DENSITY),
            density=self.by_length(raw.get("density"), f"{where}.density", self.density),
            quality=self.by_length(raw.get("quality"), f"{where}.quality", self.quality),
            time=self.by_length(raw.get("time"), f"{where}.time", self.timing),
            multi_key=self.by_length(raw.get("multi_key"), f"{where}.multi_key", self.quality),
        )

    def methods(self, value: Any) -> tuple[Method, ...]:
        found = self.entries(value, "methods", self.method)
        names = [method.name for method in found]
        if not names:
            raise self.damaged("methods", "a list with at least one method", value)
        if len(set(names)) < len(names):
            raise self.damaged("methods", "a list of different methods", names)
        return found

    def point(self, value: Any, where: str) -> ParetoPoint:
        raw = self.object(value, where)
        return ParetoPoint(
            id=self.value(raw.get("id"), f"{where}.id", COUNT, optional=False),
            losses=self.row(raw.get("losses"), f"{where}.losses", NUMBER),
            density=self.by_length(raw.get("density"), f"{where}.density", self.density),
            validation=self.value(raw.get("validation"), f"{where}.validation", NUMBER),
            chosen=self.value(raw.get("chosen", False), f"{where}.chosen", TRUTH, optional=False),
        )

    def pareto(self, value: Any) -> tuple[tuple[str, ...], tuple[ParetoPoint, ...]]:
        raw = self.object(value, "pareto")
        objectives = self.row(raw.get("objectives"), "pareto.objectives", TEXT)
        points = self.entries(raw.get("points"), "pareto.points", self.point)
        for i, point in enumerate(points):
            if len(point.losses) != len(objectives or points[0].losses):
                raise self.damaged(f"pareto.points[{i}].losses", "a loss per objective", list(point.losses))
        return objectives, points

    def run(self, raw: dict[str, Any], folder: Path) -> Run:
        lengths = self.row(raw.get("lengths"), "lengths", POSITIVE)
        if list(lengths) != sorted(set(lengths)):
            raise self.damaged("lengths", "increasing", list(lengths))
        objectives, points = self.pareto(raw.get("pareto"))
        plan, model = self.object(raw.get("plan"), "plan"), self.object(raw.get("model"), "model")
        for name, kind in MODEL.items():
            self.value(model.get(name), f"model.{name}", kind)
        fallbacks = raw.get("fallbacks")
        return Run(
            folder=folder,
            model=model,
            lengths=lengths,
            extend=self.value(raw.get("extend"), "extend", POSITIVE),
            budget=self.value(raw.get("budget"), "budget", DENSITY),
            methods=self.methods(raw.get("methods")),
            objectives=objectives,
            pareto=points,
            rules=self.grid(plan.get("rules"), "plan.rules", TEXT),
            alphas=self.grid(plan.get("alphas"), "plan.alphas", NUMBER_OR_NULL),
            betas=self.grid(plan.get("betas"), "plan.betas", NUMBER_OR_NULL),
            fallbacks=None if fallbacks is None else self.entries(fallbacks, "fallbacks", self.fallback),
            stages=self.entries(raw.get("stages"), "stages", self.stage),
            notes=self.row(raw.get("notes"), "notes", TEXT),
            settings=self.object(raw.get("settings"), "settings"),
            versions=self.object(raw.get("versions"), "versions"),
            machine=self.object(raw.get("machine"), "machine"),
        )

    def fallback(self, value: Any, where: str) -> Fallback:
        return self.entry(Fallback, value, where)

    def stage(self, value: Any, where: str) -> Stage:
        return self.entry(Stage, value, where)
