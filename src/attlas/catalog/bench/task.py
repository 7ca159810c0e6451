"""What a task of the comparison of token mixers consists of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from attlas.layers import Setting

__all__ = [
    "ACCURACY",
    "BITS",
    "ERROR",
    "TUNING_SEED",
    "UNDER_TEST",
    "Batch",
    "BenchTask",
    "Objective",
    "Split",
]

Batch = tuple[Tensor, Tensor]
UNDER_TEST = "the mixer under test"
TUNING_SEED = 1000  # of the networks that choose a learning rate; the seeds that are told begin at 0


@dataclass(frozen=True)
class Objective:
    """What is minimised in training and what is told of the result.

    loss(output, labels): a scalar in nats (or a squared error); score(output, labels): the figure told. Both
    get the answers that are asked for, (answers, V) and (answers,), or forecasts (B, horizon) and the truth.
    """

    name: str
    higher_is_better: bool
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Mean in nats; output (answers, V), labels (answers,)."""
    return functional.cross_entropy(output.float(), labels)


def _right(output: Tensor, labels: Tensor) -> Tensor:
    return (output.argmax(-1) == labels).double().mean()


ACCURACY = Objective("accuracy", True, _cross_entropy, _right)
ERROR = Objective("mean squared error", False, functional.mse_loss, functional.mse_loss)
BITS = Objective(
    "bits per byte",
    False,
    _cross_entropy,
    lambda output, labels: _cross_entropy(output, labels) / math.log(2),
)


@dataclass(frozen=True, eq=False)
class Split:
    """Endless (inputs, labels) to train on, and those to judge by."""

    batches: Iterator[Batch]
    held_out: Batch


@dataclass(frozen=True, eq=False)
class BenchTask:
    """A task, the network around its mixers, and how long to train the reference.

    data(seed, tuning): what a seed trains on and is judged by; with `tuning` judged by examples that are in
    no test. layers: mixers by name, UNDER_TEST where the compared one stands. embedding, head: made for a
    width. steps: of the reference mixer; the others get as many as their FLOPs allow. grid: (rows, columns)
    of the tokens where they are an image.
    """

    name: str
    says: str
    objective: Objective
    length: int
    causal: bool
    layers: tuple[str, ...]
    embedding: Callable[[int], nn.Module]
    head: Callable[[int], nn.Module]
    data: Callable[[int, bool], Split]
    batch: int
    steps: int
    grid: tuple[int, int] | None = None

    def setting(self, width: int, heads: int) -> Setting:
        """What a mixer is made for on this task."""
        return Setting(width, heads, causal=self.causal, length=self.length, grid=self.grid)
