"""A tune run as plain objects, the way `reading.load_run` makes them of its results.json.

Everything but the methods may be missing, since a run can be made without timings or without a Pareto front:
what is missing reads as None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "DepthScore",
    "Fallback",
    "Method",
    "ParetoPoint",
    "Quality",
    "Run",
    "Stage",
    "Timing",
]


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
    """Cost of one method at one length; `*_fraction` is bound / measured attention time.

    `batch` rows in `decode_*` and `kv_*` (one row in `decode_ms_single`), `prefill_batch` in `prefill_*`.
    """

    batch: int | None = None
    prefill_batch: int | None = None
    kv_bytes: int | None = None
    kv_bytes_bound: int | None = None
    prefill_seconds: float | None = None
    prefill_attention_seconds: float | None = None
    prefill_bound_seconds: float | None = None
    prefill_fraction: float | None = None
    decode_ms: float | None = None
    decode_ms_single: float | None = None
    decode_attention_ms: float | None = None
    decode_bound_ms: float | None = None
    decode_fraction: float | None = None

    @property
    def kv_off(self) -> float | None:
        """Relative deviation of the measured KV bytes from those that the plan's density promises."""
        if self.kv_bytes is None or not self.kv_bytes_bound:
            return None
        return self.kv_bytes / self.kv_bytes_bound - 1


@dataclass(frozen=True)
class Method:
    """One row of the comparison; `kind` is its name without the budget: "plan" for "plan@0.35".

    `multi_key`: quality where two facts of one kind are told apart only by their owner.
    """

    name: str
    label: str
    budget: float | None
    density: Mapping[int, float]
    quality: Mapping[int, Quality]
    time: Mapping[int, Timing]
    multi_key: Mapping[int, Quality] = field(default_factory=dict)

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
    alphas: tuple[tuple[float | None, ...], ...]  # None: the rule has no span alpha + beta N
    betas: tuple[tuple[float | None, ...], ...]
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
    def multi_key_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({length for method in self.methods for length in method.multi_key}))

    @property
    def judged_lengths(self) -> tuple[int, ...]:
        """Profiled lengths with quality figures, ascending; all measured ones where none is named."""
        return tuple(n for n in self.quality_lengths if not self.lengths or n in self.lengths)

    @property
    def plan_lengths(self) -> tuple[int, ...]:
        """Lengths at which the plan's spans are of interest, ascending."""
        return tuple(sorted({*self.lengths, *([self.extend] if self.extend else [])}))
