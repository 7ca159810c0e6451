"""One network per token mixer, with equal parameters, and as many training steps as equal FLOPs allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attlas._common.flops import count_flops
from attlas.catalog.bench.mixer_own import taking_part
from attlas.catalog.bench.task import TUNING_SEED, UNDER_TEST, Batch, BenchTask
from attlas.layers import MixerEntry, mixer_entry
from attlas.models import SmallNet
from attlas.tasks import UNASKED

__all__ = [
    "RATIO",
    "REFERENCE",
    "TOLERANCE",
    "Fitted",
    "Size",
    "answers",
    "fitted",
    "make_net",
    "state_bytes",
    "training_loss",
]

REFERENCE = "softmax"
RATIO = 4  # hidden over outer width of the reference's MLP
TOLERANCE = 0.02  # of parameters and of FLOPs
COUNTED = 2  # sequences of the step whose FLOPs are counted


@dataclass(frozen=True)
class Size:
    """Width of the network and heads of its mixers."""

    width: int = 64
    heads: int = 2


@dataclass(frozen=True)
class Fitted:
    """A mixer in the network of a task, brought to the reference's budgets.

    inner: hidden width of the MLPs. parameters: of the blocks, budget: those of the reference (embedding and
    head are the same for all). flops: of forward and backward, per sequence; steps: of training; uncounted:
    operations that nobody counts; flops_budget: flops x steps of the reference. state_bytes: what the mixers
    of the network remember of a sequence of the task's length, None without such a form.
    """

    inner: int
    parameters: int
    budget: int
    flops: int
    steps: int
    flops_budget: int
    uncounted: tuple[str, ...]
    state_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return named | {"uncounted": list(self.uncounted)}


def make_net(task: BenchTask, entry: MixerEntry, size: Size, inner: int) -> SmallNet:
    """The network of `task` with the mixer `entry` where it is under test.

    ValueError: the mixer lacks the form that the task needs, or cannot have this size.
    """
    return SmallNet(
        task.embedding(size.width),
        _mixers(task, entry, size),
        lambda: task.head(size.width),
        width=size.width,
        inner=inner,
    )


def _entries(task: BenchTask, entry: MixerEntry) -> list[MixerEntry]:
    return [entry if name == UNDER_TEST else mixer_entry(name) for name in task.layers]


def _mixers(task: BenchTask, entry: MixerEntry, size: Size) -> Iterator[nn.Module]:
    setting = task.setting(size.width, size.heads)
    return (one.build(setting) for one in _entries(task, entry))


def fitted(task: BenchTask, entry: MixerEntry, size: Size, *, steps: int | None = None) -> Fitted:
    """The network at the reference's parameters, with steps (of the reference: `steps`) for equal FLOPs.

    Absent: see `make_net`, the mixer's own parameters leave no room for an MLP, or one of the user's fails.
    """
    with taking_part(entry):
        return _fitted(task, entry, size, task.steps if steps is None else steps)


def _fitted(task: BenchTask, entry: MixerEntry, size: Size, steps: int) -> Fitted:
    reference = mixer_entry(REFERENCE)
    wide = RATIO * size.width
    budget = _block_parameters(make_net(task, reference, size, wide))
    allowed, _ = _flops(task, make_net(task, reference, size, wide))
    unit = 2 * size.width * len(task.layers)  # parameters of one hidden unit in every MLP
    least = _block_parameters(make_net(task, entry, size, 1))
    inner = 1 + round((budget - least) / unit)
    if inner < 1 or abs(least + (inner - 1) * unit - budget) > TOLERANCE * budget:
        raise ValueError(
            f"mixer {entry.name} has {least:,} parameters in the blocks at width {size.width} with the "
            f"smallest MLP, above the {budget:,} of {REFERENCE} with its MLP: no width of the MLP "
            "makes them equal"
        )
    net = make_net(task, entry, size, inner)
    flops, unknown = _flops(task, net)
    return Fitted(
        inner=inner,
        parameters=_block_parameters(net),
        budget=budget,
        flops=flops,
        steps=max(1, round(steps * allowed / flops)),
        flops_budget=steps * allowed,
        uncounted=unknown,
        state_bytes=state_bytes(task, entry, net),
    )


def answers(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the network says and should say; of tokens that have labels only those that are asked for."""
    inputs, labels = batch
    if labels.dim() == 1 or labels.is_floating_point():
        return net(inputs), labels
    asked = labels != UNASKED
    return net(inputs, asked), labels[asked]


def training_loss(task: BenchTask, net: nn.Module, batch: Batch) -> Tensor:
    """The task's loss, and what mixers add to it themselves: their tensor `auxiliary`, set in training."""
    loss = task.objective.loss(*answers(net, batch))
    added = [getattr(module, "auxiliary", None) for module in net.modules()]
    return loss + sum(one for one in added if isinstance(one, Tensor))


def _block_parameters(net: SmallNet) -> int:
    return sum(parameter.numel() for parameter in net.blocks.parameters())


def _flops(task: BenchTask, net: SmallNet) -> tuple[int, tuple[str, ...]]:
    """Forward and backward of the training loss, per sequence."""
    inputs, labels = (part[:COUNTED] for part in task.data(TUNING_SEED, True).held_out)
    found = count_flops(lambda: training_loss(task, net, (inputs, labels)).backward())
    return found.total // len(inputs), found.unknown


@torch.inference_mode()
def state_bytes(task: BenchTask, entry: MixerEntry, net: SmallNet) -> int | None:
    """Bytes of the states of all mixers of one sequence of the task's length; None where one has none."""
    entries = _entries(task, entry)
    if not task.causal or not all(one.stateful for one in entries):
        return None
    total = 0
    for block in net.eval().blocks:
        mixer: Any = block.mixer
        x = torch.zeros(1, task.length, net.norm.weight.shape[0])
        total += int(mixer.advance(x, mixer.start(1))[1].nbytes)
    return total
