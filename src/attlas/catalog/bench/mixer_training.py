"""Trains one network of the comparison of token mixers and judges it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from attlas.catalog.bench.mixer_nets import Fitted, Size, answers, make_net, training_loss
from attlas.catalog.bench.mixer_own import taking_part
from attlas.catalog.bench.task import Batch, BenchTask
from attlas.layers import MixerEntry
from attlas.train import SMALL_RECIPE, Diverged, Recipe, fit

__all__ = ["best_rate", "net_values", "row_of"]

POINTS = 40  # of a kept loss curve
JUDGED = 64  # sequences at a time


def net_values(
    task: BenchTask,
    entry: MixerEntry,
    size: Size,
    plan: Fitted,
    *,
    rate: float,
    seed: int,
    tuning: bool = False,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train and judge one network: score and loss on held-out data, the training curve; or "diverged": why.

    Weights, data and order depend on the seed alone. curve: [[FLOPs so far, mean training loss], ...].
    Absent: a mixer of the user's fails.
    """
    recipe = Recipe(
        steps=plan.steps, learning_rate=rate, warm_up=min(SMALL_RECIPE.warm_up, max(1, plan.steps // 5))
    )

    with taking_part(entry):
        torch.manual_seed(seed)
        net = make_net(task, entry, size, plan.inner)
        split = task.data(seed, tuning)
        try:
            losses = fit(net, split.batches, partial(training_loss, task), recipe, step=step)
        except Diverged as error:
            return {"seed": seed, "rate": rate, "diverged": str(error)}
        score, held_out = _judge(task, net, split.held_out)
    curve = _curve(losses, plan.flops * task.batch)
    return {"seed": seed, "rate": rate, "score": score, "loss": held_out, "curve": curve}


@torch.inference_mode()
def _judge(task: BenchTask, net: nn.Module, held_out: Batch) -> tuple[float, float]:
    parts = [answers(net, part) for part in zip(*(one.split(JUDGED) for one in held_out), strict=True)]
    output, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return float(task.objective.score(output, labels)), float(task.objective.loss(output, labels))


def _curve(losses: Sequence[float], flops: int) -> list[list[float]]:
    """Means of at most POINTS pieces of equal length, each at the FLOPs of its end."""
    size = max(1, -(-len(losses) // POINTS))
    pieces = [losses[start : start + size] for start in range(0, len(losses), size)]
    ends = [min(size * (index + 1), len(losses)) for index in range(len(pieces))]
    return [[float(flops * end), statistics.fmean(piece)] for end, piece in zip(ends, pieces, strict=True)]


def best_rate(task: BenchTask, sweep: Sequence[Mapping[str, Any]]) -> float | None:
    """The learning rate with the best score (ties: the lower loss); None where all diverged."""
    sign = 1 if task.objective.higher_is_better else -1
    there = [one for one in sweep if "score" in one]
    if not there:
        return None
    return float(max(there, key=lambda one: (sign * one["score"], -one["loss"]))["rate"])


def row_of(
    entry: MixerEntry,
    size: Size,
    plan: Fitted,
    sweep: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A mixer on a task: its budgets, the sweep, every run, mean and sample standard deviation.

    The latter is None of a single score.
    """
    scores = [run["score"] for run in runs if "score" in run]
    row: dict[str, Any] = {"mixer": entry.name, "width": size.width, "heads": size.heads, **plan.to_dict()}
    row |= {
        "sweep": [{key: value for key, value in one.items() if key != "curve"} for one in sweep],
        "runs": [dict(run) for run in runs],
        "diverged": len(runs) - len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
    }
    return row
