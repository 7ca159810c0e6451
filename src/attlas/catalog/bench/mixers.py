"""Token mixers side by side: small networks of equal parameters and FLOPs, and one layer against the length.

Every trained network is a file of its own beside the result until all are there: an interrupted run
continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, to_json, write_json
from attlas._common.machine import machine, versions
from attlas.catalog.bench.mixer_nets import RATIO, REFERENCE, TOLERANCE, Fitted, Size, fitted
from attlas.catalog.bench.mixer_own import Absent, breaches, check_small, is_own, own_code
from attlas.catalog.bench.mixer_settings import MixerSettings
from attlas.catalog.bench.mixer_speed import SLOW, efficiency, speed_at
from attlas.catalog.bench.mixer_tasks import TASKS
from attlas.catalog.bench.mixer_training import best_rate, net_values, row_of
from attlas.catalog.bench.parts import Parts, code_mark
from attlas.catalog.bench.task import TUNING_SEED, BenchTask
from attlas.layers import MixerEntry, mixer_entry
from attlas.tune import Progress, Silent

__all__ = ["NAME", "SCHEMA", "VERSION", "bench_mixers"]

SCHEMA, VERSION, NAME = "attlas.mixers", 1, "mixers"


def bench_mixers(
    settings: MixerSettings,
    *,
    out: str | Path,
    command: str = "",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure and write `out`/mixers.json (schema "attlas.mixers"); returns what was written.

    UsageError: an unknown mixer, or one of the user's that breaks the contract, small or at a task's size; a
    task whose data is not there. A mixer that lacks the form that a task needs, that is too large for the
    budget, or of the user's that fails at a size, is in the result with the reason.
    Cost: with the defaults about 10 minutes on 2 cores, nearly all of it training: for every task, width and
    mixer one network per learning rate and one per seed.
    """
    progress, folder = progress or Silent(), check_folder(out)
    entries = [_entry(name, settings.heads) for name in settings.mixers]
    kept = Parts(folder / f"{NAME}-{code_mark()}.partial", SCHEMA, VERSION)
    if fresh:
        kept.remove()
    codes = {name: own_code(name) for name in settings.mixers}
    for name in settings.tasks:
        TASKS[name].data(TUNING_SEED, True)  # before anything is trained: its data may not be there
    run = _Run(settings, entries, codes, _unfit(settings, entries), kept, progress)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": NAME,
        "title": "Token mixers at equal parameters and FLOPs",
        "command": command,
        "settings": settings.to_dict()
        | {"reference": REFERENCE, "ratio": RATIO, "tolerance": TOLERANCE, "tuning_seed": TUNING_SEED},
        "tasks": [run.task(TASKS[name]) for name in settings.tasks],
        "speed": run.speed() if settings.lengths else None,
        "versions": versions(),
        "machine": machine(),
    }
    write_json(folder / f"{NAME}.json", result)
    kept.remove()
    return result


def _entry(name: str, heads: int) -> MixerEntry:
    """A registered mixer, or one of the user's that keeps the contract."""
    try:
        entry = mixer_entry(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if is_own(name):
        # A mixer that looks ahead would win every comparison.
        check_small(entry, heads)
    return entry


def _unfit(settings: MixerSettings, entries: Sequence[MixerEntry]) -> dict[tuple[str, str, int], str]:
    """(mixer, task, width): why one of the user's cannot be judged at that size."""
    found = {}
    for entry in entries:
        for task in settings.tasks if is_own(entry.name) else ():
            for width in settings.widths:
                try:
                    breaches(entry, TASKS[task], width, settings.heads)
                except Absent as error:
                    found[entry.name, task, width] = str(error)
    return found


@dataclass(frozen=True, eq=False)
class _Run:
    """The stages; every network and every length is kept."""

    settings: MixerSettings
    entries: Sequence[MixerEntry]
    codes: Mapping[str, str]
    unfit: Mapping[tuple[str, str, int], str]
    kept: Parts
    progress: Progress

    def task(self, task: BenchTask) -> dict[str, Any]:
        """All mixers at all widths on one task."""
        mine = self.settings
        nets = len(mine.rates) + mine.seeds
        self.progress.stage(f"networks on {task.name}", nets * len(self.entries) * len(mine.widths))
        sizes = [Size(width, mine.heads) for width in mine.widths]
        rows = [self._row(task, entry, size) for size in sizes for entry in self.entries]
        return {
            "name": task.name,
            "says": task.says,
            "metric": task.objective.name,
            "higher_is_better": task.objective.higher_is_better,
            "form": "CS" if task.causal else "NS",
            "layers": list(task.layers),
            "length": task.length,
            "batch": task.batch,
            "steps": mine.steps or task.steps,
            "rows": rows,
        }

    def _row(self, task: BenchTask, entry: MixerEntry, size: Size) -> dict[str, Any]:
        """The sweep of learning rates, then every seed at the best of them; or why there is none."""
        rates, seeds = self.settings.rates, self.settings.seeds
        nets: list[dict[str, Any]] = []
        try:
            if (why := self.unfit.get((entry.name, task.name, size.width))) is not None:
                raise Absent(why)
            plan = fitted(task, entry, size, steps=self.settings.steps)
            for rate in rates:
                nets.append(self._net(task, entry, size, plan, rate, TUNING_SEED, True))
            best = best_rate(task, nets)
            if best is None:
                raise Absent(f"{entry.name} diverged at every learning rate")
            for seed in range(seeds):
                nets.append(self._net(task, entry, size, plan, best, seed, False))
        except Absent as error:
            self.progress.advance(len(rates) + seeds - len(nets))
            return {"mixer": entry.name, "width": size.width, "absent": str(error)}
        return row_of(entry, size, plan, nets[: len(rates)], nets[len(rates) :]) | {"rate": best}

    def _net(
        self,
        task: BenchTask,
        entry: MixerEntry,
        size: Size,
        plan: Fitted,
        rate: float,
        seed: int,
        tuning: bool,
    ) -> dict[str, Any]:
        facts = [task.name, size.width, size.heads, plan.steps, rate, tuning, self.codes[entry.name]]
        mark = hashlib.sha256(to_json(facts).encode()).hexdigest()[:8]
        train = partial(net_values, task, entry, size, plan, rate=rate, seed=seed, tuning=tuning)
        found: dict[str, Any] = self.kept.keep(f"{task.name}-{_plain(entry.name)}-{mark}-{seed}", train)
        self.progress.advance()
        return found

    def speed(self) -> dict[str, Any]:
        """One layer of every mixer at every length, all of them in turns in this process."""
        mine = self.settings
        size = Size(mine.speed_width, mine.speed_heads)
        self.progress.stage("time and memory", len(mine.lengths))
        columns: list[dict[str, Any]] = []
        for length in mine.lengths:
            facts = [mine.lengths, size.width, size.heads, list(self.codes.values())]
            mark = hashlib.sha256(to_json(facts).encode()).hexdigest()[:8]
            going = [entry for entry in self.entries if not _slow(entry.name, columns)]
            columns.append(self.kept.keep(f"speed-{length}-{mark}", partial(speed_at, going, size, length)))
            self.progress.advance()
        names = ("forward_ms", "train_ms", "train_bytes", "decode_us", "state_bytes")
        rows = []
        for entry in self.entries:
            cells = [column.get(entry.name, {}) for column in columns]
            row: dict[str, Any] = {"mixer": entry.name}
            row |= {name: [cell.get(name) for cell in cells] for name in names}
            why = next((cell["absent"] for cell in cells if "absent" in cell), None)
            rows.append(row | ({} if why is None else {"absent": why}))
        return {
            "width": size.width,
            "heads": size.heads,
            "lengths": list(mine.lengths),
            "slow": SLOW,
            "rows": rows,
            "efficiency": efficiency(rows, mine.lengths),
        }


def _slow(name: str, columns: Sequence[dict[str, Any]]) -> bool:
    """Whether a training call of a shorter sequence took longer than SLOW seconds."""
    return any(column.get(name, {}).get("train_ms", 0.0) > 1e3 * SLOW for column in columns)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in name)
