"""Read `results.json` of a tune run (schema "attlas.run", version 1) into plain, checked objects.

Everything but the methods may be missing, since a run can be made without timings or without a Pareto front:
what is missing reads as None or empty, what has the wrong type is a UsageError that names its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json

__all__ = ["DepthScore", "Fallback", "Method", "ParetoPoint", "Quality", "Run", "Stage", "Timing", "load_run"]

SCHEMA, VERSION = "attlas.run", 1
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class DepthScore:
    """Needles at one relative depth: share found exactly, mean answer cross-entropy (nats), their number."""

    depth: float
    exact: float | None = None
    answer_ce: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Quality:
    """Quality of a method at a length: text NLL and answer cross-entropy in nats, exact match in [0, 1]."""

    text_nll: float | None = None
    answer_ce: float | None = None
    exact: float | None = None
    needles: int | None = None
    by_depth: tuple[DepthScore, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Cost of one method at one length; `*_fraction` is bound / measured attention time."""

    batch: int | None = None
    kv_bytes: int | None = None
    kv_bytes_bound: int | None = None
    prefill_seconds: float | None = None
    prefill_attention_seconds: float | None = None
    prefill_bound_seconds: float | None = None
    prefill_fraction: float | None = None
    decode_ms: float | None = None
    decode_attention_ms: float | None = None
    decode_bound_ms: float | None = None
    decode_fraction: float | None = None


@dataclass(frozen=True)
class Method:
    """One row of the comparison; `kind` is its name without the budget: "plan" for "plan@0.35"."""

    name: str
    label: str
    budget: float | None
    density: Mapping[int, float]
    quality: Mapping[int, Quality]
    time: Mapping[int, Timing]

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @property
    def main(self) -> bool:
        """Whether it belongs to the main comparison, at the run's own budget."""
        return "@" not in self.name

    def density_at(self, length: int) -> float | None:
        """Deployed mean KV density at a length; 1 for dense."""
        return self.density.get(length, 1.0 if self.kind == "dense" else None)


@dataclass(frozen=True)
class ParetoPoint:
    """One plan of the search: its loss per objective and, where it was tried, its validation loss."""

    id: int
    losses: tuple[float, ...]
    density: Mapping[int, float]
    validation: float | None
    chosen: bool


@dataclass(frozen=True)
class Fallback:
    """Something that did not go the fast or the asked way, how often, and why."""

    what: str
    why: str = ""
    count: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage of the run and its wall time."""

    name: str
    seconds: float | None = None
    resumed: bool = False


@dataclass(frozen=True)
class Run:
    """A tune run as its results file tells it."""

    folder: Path
    model: Mapping[str, Any]
    lengths: tuple[int, ...]
    extend: int | None
    budget: float | None
    methods: tuple[Method, ...]
    objectives: tuple[str, ...]
    pareto: tuple[ParetoPoint, ...]
    rules: tuple[tuple[str, ...], ...]
    alphas: tuple[tuple[float, ...], ...]
    betas: tuple[tuple[float, ...], ...]
    fallbacks: tuple[Fallback, ...] | None  # None: the run did not record them
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)

    @property
    def main_methods(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if method.main)

    @property
    def quality_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({length for method in self.methods for length in method.quality}))

    @property
    def time_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({length for method in self.methods for length in method.time}))

    @property
    def plan_lengths(self) -> tuple[int, ...]:
        """Lengths at which the plan's spans are of interest, ascending."""
        return tuple(sorted({*self.lengths, *([self.extend] if self.extend else [])}))


def load_run(folder: str | Path) -> Run:
    """Read `folder`/results.json; UsageError where it is missing, damaged or of a newer schema."""
    source = Path(folder) / "results.json"
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; give the output folder of a tune run")
    raw = check_schema(
        read_json(source, what="the results of a tune run"), SCHEMA, VERSION, source=str(source)
    )
    return _Reader(str(source)).run(raw, Path(folder))


class _Reader:
    """Turns JSON values into the types above and names the place of whatever does not fit."""

    def __init__(self, source: str) -> None:
        self.source = source

    def damaged(self, where: str, expected: str, value: Any) -> UsageError:
        return UsageError(
            f"{self.source} is damaged: {where} must be {expected}, got {value!r}; run the tuning again"
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

    def number(self, value: Any, where: str) -> float | None:
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise self.damaged(where, "a number or null", value)

    def required(self, value: Any, where: str) -> float:
        number = self.number(value, where)
        if number is None:
            raise self.damaged(where, "a number", value)
        return number

    def by_length(self, value: Any, where: str) -> dict[int, Any]:
        found = self.object(value, where)
        if not all(key.isdigit() for key in found):
            raise self.damaged(where, "an object with lengths as keys", value)
        return {int(key): child for key, child in found.items()}

    def entry(self, kind: type[_Entry], value: Any, where: str) -> _Entry:
        """A dataclass of plain fields: numbers unless the class says str or bool."""
        raw = self.object(value, where)
        found: dict[str, Any] = {}
        for field in fields(kind):  # type: ignore[arg-type]
            if field.name not in raw or field.name == "by_depth":
                continue
            child, place = raw[field.name], f"{where}.{field.name}"
            wanted = {"str": str, "bool": bool}.get(str(field.type))
            if wanted is None:
                found[field.name] = self.number(child, place)
            elif isinstance(child, wanted):
                found[field.name] = child
            else:
                raise self.damaged(place, "text" if wanted is str else "true or false", child)
        try:
            return kind(**found)
        except TypeError:
            raise self.damaged(where, f"a complete {kind.__name__.lower()} entry", value) from None

    def quality(self, value: Any, where: str) -> Quality:
        plain = self.entry(Quality, value, where)
        depths = self.list(value.get("by_depth"), f"{where}.by_depth")
        scores = tuple(self.entry(DepthScore, d, f"{where}.by_depth[{i}]") for i, d in enumerate(depths))
        return Quality(plain.text_nll, plain.answer_ce, plain.exact, plain.needles, scores)

    def method(self, value: Any, where: str) -> Method:
        raw = self.object(value, where)
        name = raw.get("name")
        if not isinstance(name, str) or not name:
            raise self.damaged(f"{where}.name", "a name", name)
        density = self.by_length(raw.get("density"), f"{where}.density")
        quality = self.by_length(raw.get("quality"), f"{where}.quality")
        time = self.by_length(raw.get("time"), f"{where}.time")
        return Method(
            name=name,
            label=str(raw.get("label") or name),
            budget=self.number(raw.get("budget"), f"{where}.budget"),
            density={n: self.required(v, f"{where}.density.{n}") for n, v in density.items()},
            quality={n: self.quality(v, f"{where}.quality.{n}") for n, v in quality.items() if v is not None},
            time={n: self.entry(Timing, v, f"{where}.time.{n}") for n, v in time.items() if v is not None},
        )

    def point(self, value: Any, where: str, index: int) -> ParetoPoint:
        raw = self.object(value, where)
        losses = self.list(raw.get("losses"), f"{where}.losses")
        density = self.by_length(raw.get("density"), f"{where}.density")
        return ParetoPoint(
            id=raw.get("id", index),
            losses=tuple(self.required(loss, f"{where}.losses[{i}]") for i, loss in enumerate(losses)),
            density={n: self.required(v, f"{where}.density.{n}") for n, v in density.items()},
            validation=self.number(raw.get("validation"), f"{where}.validation"),
            chosen=raw.get("chosen") is True,
        )

    def grid(self, value: Any, where: str) -> tuple[tuple[Any, ...], ...]:
        return tuple(tuple(self.list(row, f"{where}[{i}]")) for i, row in enumerate(self.list(value, where)))

    def run(self, raw: dict[str, Any], folder: Path) -> Run:
        methods = self.list(raw.get("methods"), "methods")
        if not methods:
            raise self.damaged("methods", "a list with at least one method", raw.get("methods"))
        pareto = self.object(raw.get("pareto"), "pareto")
        plan = self.object(raw.get("plan"), "plan")
        extend = self.number(raw.get("extend"), "extend")
        return Run(
            folder=folder,
            model=self.object(raw.get("model"), "model"),
            lengths=tuple(
                int(self.required(n, f"lengths[{i}]"))
                for i, n in enumerate(self.list(raw.get("lengths"), "lengths"))
            ),
            extend=None if extend is None else int(extend),
            budget=self.number(raw.get("budget"), "budget"),
            methods=tuple(self.method(m, f"methods[{i}]") for i, m in enumerate(methods)),
            objectives=tuple(map(str, self.list(pareto.get("objectives"), "pareto.objectives"))),
            pareto=tuple(
                self.point(p, f"pareto.points[{i}]", i)
                for i, p in enumerate(self.list(pareto.get("points"), "pareto.points"))
            ),
            rules=self.grid(plan.get("rules"), "plan.rules"),
            alphas=self.grid(plan.get("alphas"), "plan.alphas"),
            betas=self.grid(plan.get("betas"), "plan.betas"),
            fallbacks=None
            if raw.get("fallbacks") is None
            else tuple(
                self.entry(Fallback, f, f"fallbacks[{i}]")
                for i, f in enumerate(self.list(raw.get("fallbacks"), "fallbacks"))
            ),
            stages=tuple(
                self.entry(Stage, s, f"stages[{i}]")
                for i, s in enumerate(self.list(raw.get("stages"), "stages"))
            ),
            notes=tuple(map(str, self.list(raw.get("notes"), "notes"))),
            settings=self.object(raw.get("settings"), "settings"),
            versions=self.object(raw.get("versions"), "versions"),
            machine=self.object(raw.get("machine"), "machine"),
        )
