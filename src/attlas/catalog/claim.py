"""Measures a paper's central statement again and writes down what came out, whatever it is."""

from __future__ import annotations

import hashlib
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, check_schema, read_json, to_json, write_json
from attlas._common.machine import PACKAGE, machine, source_digest, versions
from attlas.catalog.card import Card, resolve

__all__ = [
    "OUTCOMES",
    "SCHEMA",
    "VERSION",
    "Claim",
    "Measure",
    "Verdict",
    "named",
    "remember",
    "run_claim",
    "spread",
]

SCHEMA, VERSION = "attlas.claim", 1
OUTCOMES = ("holds", "does not hold", "not shown at this scale")
ENOUGH_SEEDS = 3
# Rooms that only show or offer what was measured.
UNMEASURED = ("cli", "report")

Values = Mapping[str, float]
Step = Callable[[str], None]


@runtime_checkable
class Measure(Protocol):
    """One seed of the experiment: named finite numbers.

    `step` is told what is being done; `folder` is the seed's own, to go on from.
    """

    def __call__(self, seed: int, *, long: bool, folder: Path, step: Step) -> Values: ...


@dataclass(frozen=True)
class Verdict:
    """What was found: one of OUTCOMES and a sentence with the figures."""

    outcome: Literal["holds", "does not hold", "not shown at this scale"]
    measured: str


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, the rule that judges it (written before measuring), and the experiment."""

    says: str
    rule: str
    settings: Mapping[str, Any]
    measure: Measure
    judge: Callable[[Sequence[Values]], Verdict]
    minutes: float
    seeds: int = ENOUGH_SEEDS


def spread(runs: Sequence[Values]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation (0 for one run), least and largest of every value over the runs."""
    names = sorted(set.intersection(*(set(run) for run in runs)))
    table = {}
    for name in names:
        values = [float(run[name]) for run in runs]
        table[name] = {
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
            "least": min(values),
            "largest": max(values),
        }
    return table


def named(step: Step, name: str) -> Step:
    """A step that tells which part of a measurement its text is of."""
    return lambda text: step(f"{name}: {text}")


def remember(folder: Path, name: str, measure: Callable[[], Values]) -> Values:
    """What `measure` found, kept in `folder/name.json`: an interrupted seed goes on with its next network."""
    path = folder / f"{name}.json"
    if not path.exists():
        write_json(path, {"schema": SCHEMA + ".part", "version": VERSION, "values": dict(measure())})
    found: Values = check_schema(read_json(path), SCHEMA + ".part", VERSION, source=str(path))["values"]
    return found


def run_claim(
    card: Card,
    *,
    seeds: int | None = None,
    budget: float | None = None,
    long: bool = False,
    fresh: bool = False,
    folder: str | Path = "results",
    step: Step = lambda text: None,
) -> dict[str, Any]:
    """Measure `card`'s claim and write `folder/KEY.json` (schema "attlas.claim"); returns what was written.

    `seeds` experiments (the claim's own number by default); `budget` in minutes: no further seed is begun
    once it is used up. Every finished seed is kept beside the result until all are there, so an interrupted
    run continues; `fresh` measures all of them again. With fewer than three seeds nothing counts as shown.
    """
    claim = _claim_of(card)
    wanted = claim.seeds if seeds is None else seeds
    if wanted < 1:
        raise UsageError(f"seeds must be at least 1, got {wanted}")
    if budget is not None and not budget > 0:
        raise UsageError(f"budget is in minutes and must be above 0, got {budget}")
    target = check_folder(folder)
    kept = target / f"{card.key}-{_digest(claim, long)}.partial"
    if fresh:
        shutil.rmtree(kept, ignore_errors=True)
    runs = _measure_all(claim, wanted, budget, long, kept, step)
    values = [run["values"] for run in runs]
    verdict = claim.judge(values)
    if len(runs) < ENOUGH_SEEDS and verdict.outcome != OUTCOMES[2]:
        few = f"{verdict.measured} With {len(runs)} of {ENOUGH_SEEDS} seeds this shows nothing yet."
        verdict = Verdict("not shown at this scale", few)
    result = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": card.key,
        "title": card.title,
        "source": card.source,
        "command": _command(card, wanted, long, claim),
        "says": claim.says,
        "rule": claim.rule,
        "verdict": verdict.outcome,
        "measured": verdict.measured,
        "summary": spread(values),
        "runs": runs,
        "settings": {**claim.settings, "long": long},
        "versions": versions(),
        "machine": machine(),
        "seconds": sum(run["seconds"] for run in runs),
    }
    write_json(target / f"{card.key}.json", result)
    if len(runs) == wanted:
        shutil.rmtree(kept, ignore_errors=True)
    return result


def _claim_of(card: Card) -> Claim:
    if card.claim is None:
        raise UsageError(f"{card.key} has no claim to measure; attlas show {card.key} tells why")
    claim = resolve(card.claim)
    if not isinstance(claim, Claim):
        raise TypeError(f"{card.claim} must be a Claim, got {type(claim).__name__}")
    return claim


def _measure_all(
    claim: Claim, wanted: int, budget: float | None, long: bool, kept: Path, step: Step
) -> list[dict[str, Any]]:
    started = time.monotonic()
    runs = []
    for seed in range(wanted):
        path = kept / f"seed-{seed}.json"
        if path.exists():
            step(f"seed {seed + 1} of {wanted}: measured before, kept")
            runs.append(check_schema(read_json(path), SCHEMA + ".seed", VERSION, source=str(path)))
            continue
        if runs and budget is not None and time.monotonic() - started >= 60 * budget:
            break
        begun = time.monotonic()
        say = _prefixed(step, f"seed {seed + 1} of {wanted}: ")
        values = claim.measure(seed, long=long, folder=kept / f"seed-{seed}", step=say)
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        if bad:
            raise ValueError(f"seed {seed} measured values that are not finite: {', '.join(bad)}")
        run = {"schema": SCHEMA + ".seed", "version": VERSION, "seed": seed}
        run |= {"seconds": time.monotonic() - begun, "values": dict(values)}
        write_json(path, run)
        runs.append(run)
    return [{key: run[key] for key in ("seed", "seconds", "values")} for run in runs]


def _prefixed(step: Step, prefix: str) -> Step:
    return lambda text: step(prefix + text)


def _digest(claim: Claim, long: bool) -> str:
    """Names the experiment and the code that runs it: seeds measured by other code are not mixed in."""
    code = source_digest(*(folder.name for folder in PACKAGE.iterdir() if folder.name not in UNMEASURED))
    facts = {"rule": claim.rule, "settings": dict(claim.settings), "long": long}
    text = to_json(facts | {"versions": versions(), "code": code})
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _command(card: Card, seeds: int, long: bool, claim: Claim) -> str:
    parts = [f"attlas claim {card.key}"]
    if seeds != claim.seeds:
        parts.append(f"--seeds {seeds}")
    if long:
        parts.append("--long")
    return " ".join(parts)
