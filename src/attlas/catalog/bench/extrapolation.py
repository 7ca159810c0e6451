"""Length extrapolation side by side: small language models trained short and judged at up to 16 times that.

Every network is a file of its own beside the result until all are there: an interrupted run continues.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, to_json, write_json
from attlas._common.machine import machine, versions
from attlas.catalog.bench.extrapolation_arms import ARMS, entry_of
from attlas.catalog.bench.extrapolation_settings import ExtrapolationSettings
from attlas.catalog.bench.mixer_own import Absent, breaches_at, check_small, is_own, own_code, taking_part
from attlas.catalog.bench.parts import Parts, code_mark
from attlas.inspect.sinks import THRESHOLD, sink_strength
from attlas.layers import MIXERS, MixerEntry, Setting
from attlas.models import SmallLM
from attlas.tasks import ByteText, byte_text, load_source, losses_at_lengths
from attlas.tasks.extrapolation import TOKENS, endings
from attlas.train import SMALL_RECIPE, Diverged, fit, next_token_loss
from attlas.tune import Progress, Silent

__all__ = ["NAME", "SCHEMA", "VERSION", "bench_extrapolation"]

SCHEMA, VERSION, NAME = "attlas.extrapolation", 1, "extrapolation"
TEXT, WIDTH, HEADS, LAYERS, BATCH = "python-docs", 64, 4, 2, 16


def bench_extrapolation(
    settings: ExtrapolationSettings,
    *,
    out: str | Path,
    command: str = "",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure and write `out`/extrapolation.json (schema "attlas.extrapolation"); returns what was written.

    For every mixer and seed one small language model, trained on windows of the first length. The loss is
    that of the same last bytes of held-out windows, with more and more of the text before them; the sink
    metric is that of the windows of the shortest and of the longest length.
    UsageError: an unknown mixer, one of the user's that breaks the contract, lengths that the text lacks. A
    mixer that cannot be made or run at a length is in the result with the reason.
    Cost: with the defaults about 15 minutes on 2 cores.
    """
    progress, folder = progress or Silent(), check_folder(out)
    run = _Run(settings, byte_text(load_source(TEXT)), progress)
    entries = [run.entry(name) for name in settings.mixers]
    try:
        next(run.text.batches(1, settings.trained, 0))
        endings(run.text, settings.lengths[-1], settings.windows)
    except ValueError as error:
        raise UsageError(f"lengths: {error}") from error
    kept = Parts(folder / f"{NAME}-{code_mark()}.partial", SCHEMA, VERSION)
    if fresh:
        kept.remove()
    progress.stage("language models", settings.seeds * len(entries))
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": NAME,
        "title": "Length extrapolation and attention sinks",
        "command": command,
        "settings": settings.to_dict()
        | {"text": TEXT, "width": WIDTH, "heads": HEADS, "layers": LAYERS, "batch": BATCH}
        | {"threshold": THRESHOLD},
        "rows": [run.row(entry, kept) for entry in entries],
        "versions": versions(),
        "machine": machine(),
    }
    write_json(folder / f"{NAME}.json", result)
    kept.remove()
    return result


@dataclass(frozen=True, eq=False)
class _Run:
    settings: ExtrapolationSettings
    text: ByteText
    progress: Progress

    @property
    def setting(self) -> Setting:
        # For mixers with parameters per position: they are there, though not trained beyond the first length.
        return Setting(WIDTH, HEADS, causal=True, length=self.settings.lengths[-1])

    def entry(self, name: str) -> MixerEntry:
        """An arm, a registered mixer, or one of the user's that keeps the contract."""
        try:
            entry = entry_of(name, self.settings.trained)
        except ValueError as error:
            own = ", ".join(sorted(set(ARMS) - set(MIXERS)))
            raise UsageError(f"{error}; this comparison also has {own}") from error
        if is_own(name):
            check_small(entry, HEADS)
            try:
                breaches_at(entry, self.setting, self.settings.trained, f" at {self.settings.trained} tokens")
            except Absent as error:
                raise UsageError(str(error)) from error
        return entry

    def row(self, entry: MixerEntry, kept: Parts) -> dict[str, Any]:
        """All seeds of a mixer, or why there are none."""
        mine, runs = self.settings, []
        facts = [own_code(entry.name), mine.steps, mine.lengths, mine.windows]
        mark = hashlib.sha256(to_json(facts).encode()).hexdigest()[:8]
        plain = "".join(letter if letter.isalnum() else "_" for letter in entry.name)
        says = ARMS[entry.name].says if entry.name in ARMS else entry.name
        try:
            for seed in range(mine.seeds):
                runs.append(kept.keep(f"{plain}-{mark}-{seed}", partial(self._net, entry, seed)))
                self.progress.advance()
        except Absent as error:
            self.progress.advance(mine.seeds - len(runs))
            return {"mixer": entry.name, "says": says, "absent": str(error)}
        return {"mixer": entry.name, "says": says, "runs": runs} | summary(runs, mine.lengths)

    def _net(self, entry: MixerEntry, seed: int) -> dict[str, Any]:
        """Train one model; its loss at every length, the sinks of the first and the last."""
        mine = self.settings
        recipe = replace(
            SMALL_RECIPE, steps=mine.steps, warm_up=min(SMALL_RECIPE.warm_up, max(1, mine.steps // 5))
        )
        with taking_part(entry):
            torch.manual_seed(seed)
            net = SmallLM(
                mixer=lambda layer: entry.build(self.setting), width=WIDTH, heads=HEADS, layers=LAYERS
            )
            try:
                fit(net, self.text.batches(BATCH, mine.trained, seed), next_token_loss, recipe)
            except Diverged as error:
                return {"seed": seed, "diverged": str(error)}
            losses = losses_at_lengths(net, self.text, mine.lengths, tail=mine.trained, windows=mine.windows)
            bad = [n for n in mine.lengths if not math.isfinite(losses[n])]
            if bad:
                return {"seed": seed, "diverged": f"the loss at {bad[0]} tokens is {losses[bad[0]]}"}
            sinks = [sinks_at(net, self.text, n, mine) for n in (mine.lengths[0], mine.lengths[-1])]
        size = sum(weight.numel() for weight in net.parameters())
        return {
            "seed": seed,
            "losses": [losses[n] for n in mine.lengths],
            "sinks": None if None in sinks else sinks,
            "parameters": size,
        }


@torch.no_grad()
def sinks_at(
    net: SmallLM, text: ByteText, length: int, settings: ExtrapolationSettings
) -> dict[str, float] | None:
    """The sink metric of the windows of `length` that end where the judged ones do; None without maps."""
    ends = endings(text, settings.lengths[-1], settings.windows)
    parts = ends.split(max(1, TOKENS // length))
    blocks: list[Any] = list(net.eval().blocks)
    mixers: list[nn.Module] = [block.mixer for block in blocks]
    found = []
    for some in parts:
        ids = text.test[some[:, None] + torch.arange(-length, 0)]
        last = torch.arange(length).eq(length - 1).expand_as(ids)
        ask: Callable[[], object] = partial(net, ids, last)
        sinks = sink_strength(mixers, ask)
        if sinks is None:
            return None
        found.append((len(some), sinks))
    windows = sum(count for count, _ in found)
    return {
        name: sum(count * getattr(sinks, name) for count, sinks in found) / windows
        for name in ("first_share", "strength")
    }


def summary(runs: Sequence[dict[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    """Mean and sample standard deviation (None of one seed) over the seeds that did not diverge."""
    there = [run for run in runs if "losses" in run]

    def told(values: Sequence[float]) -> dict[str, float | None]:
        return {
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
        }

    found: dict[str, Any] = {
        "diverged": len(runs) - len(there),
        "losses": [told([run["losses"][at] for run in there]) for at in range(len(lengths))],
        "rise": told([run["losses"][-1] - run["losses"][0] for run in there]),
        "sinks": None,
    }
    if there and all(run["sinks"] is not None for run in there):
        found["sinks"] = [
            {name: told([run["sinks"][at][name] for run in there]) for name in ("first_share", "strength")}
            for at in range(2)
        ]
    return found
