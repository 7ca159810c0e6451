"""Training on labelled nodes, step by step, so that an interrupted run ends where an uninterrupted one does.

Everything random in a step comes from (seed, step): nothing but the step's number has to be kept.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.train.checkpoint import load_checkpoint, save_checkpoint
from attlas.train.fit import Diverged, Recipe, optimiser_of
from attlas.train.node_model import NodeInputs, NodeModel, NodeSettings

__all__ = ["LabelledNodes", "NodeTraining", "train_nodes"]


@dataclass(frozen=True, eq=False)
class LabelledNodes:
    """node (m,) int64, value (m,) classes or targets, split (m,): 0 train, 1 valid, 2 test."""

    node: Tensor
    value: Tensor
    split: Tensor

    def of(self, split: int) -> tuple[Tensor, Tensor]:
        """Nodes and values of a split."""
        mine = self.split == split
        return self.node[mine], self.value[mine]


@dataclass(frozen=True)
class NodeTraining:
    """curve: a row per look, with step, train (mean loss of the steps since the last one), valid (or None).

    best_step: whose weights the model has now: the least validation loss; the last without such nodes.
    earlier: seconds that were trained, up to its last checkpoint, before an interruption.
    """

    curve: list[dict[str, Any]]
    best_step: int
    earlier: float


def train_nodes(
    model: NodeModel,
    inputs: NodeInputs,
    labels: LabelledNodes,
    settings: NodeSettings,
    *,
    state: Path | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> NodeTraining:
    """Train the model in place; it ends with its best weights, in evaluation mode.

    AdamW with warm-up over a tenth of the steps and cosine decay; cross-entropy of classes, squared error of
    scaled targets. state: file for going on; the run goes on from it if it is there. told: how many steps are
    done. `Diverged` where the loss is not finite.
    """
    from ignite.engine import Engine, Events

    warm_up = max(1, settings.steps // 10)
    recipe = Recipe(
        settings.steps, settings.learning_rate, warm_up=warm_up, weight_decay=settings.weight_decay
    )
    optimiser = optimiser_of(model, recipe)
    facts: dict[str, Any] = {"done": 0, "curve": [], "losses": [], "best_step": 0, "best": None}
    best = {name: one.clone() for name, one in model.state_dict().items()}
    if state is not None and state.exists():
        best, facts = load_checkpoint(state, model, optimiser)
    earlier, began = float(facts.get("seconds", 0.0)), time.monotonic()
    told(facts["done"])
    batches = _Batches(inputs, *labels.of(0), settings)

    def update(engine: Engine, step: int) -> float:
        torch.manual_seed(_seed(settings.seed, step))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.share(step)
        part, rows, wanted = batches.at(step)
        model.train()
        optimiser.zero_grad(set_to_none=True)
        loss = _loss(model, model(part)[rows], wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        return loss.item()

    trainer = Engine(update)
    trainer.logger.setLevel(logging.CRITICAL)  # an error is told by who catches it

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        value, done = float(engine.state.output or 0.0), facts["done"] + 1
        if not math.isfinite(value):
            raise Diverged(
                f"the loss of step {done} is {value}: try a smaller learning rate (--learning-rate)"
            )
        facts["done"] = done
        facts["losses"].append(value)
        if done % settings.check == 0 or done == settings.steps:
            _look(model, inputs, labels, facts, best)
            if state is not None:
                facts["seconds"] = earlier + time.monotonic() - began
                save_checkpoint(state, model, optimiser, best, facts)
        told(done)

    left = range(facts["done"], settings.steps)
    if left:
        with torch.random.fork_rng(devices=[]):
            trainer.run(left, max_epochs=1, epoch_length=len(left))
    model.load_state_dict(best)
    model.eval()
    return NodeTraining(facts["curve"], facts["best_step"], earlier)


def _look(
    model: NodeModel,
    inputs: NodeInputs,
    labels: LabelledNodes,
    facts: dict[str, Any],
    best: dict[str, Tensor],
) -> None:
    """A row of the curve; the weights become the best ones where they are."""
    nodes, wanted = labels.of(1)
    valid = None
    if len(nodes):
        model.eval()
        with torch.no_grad():
            valid = float(_loss(model, model(inputs)[nodes], wanted))
    row = {"step": facts["done"], "train": float(np.mean(facts["losses"])), "valid": valid}
    facts["curve"].append(row)
    facts["losses"] = []
    if valid is None or facts["best"] is None or valid < facts["best"]:
        facts["best"], facts["best_step"] = valid, facts["done"]
        best.update({name: one.clone() for name, one in model.state_dict().items()})


def _loss(model: NodeModel, out: Tensor, wanted: Tensor) -> Tensor:
    if wanted.is_floating_point():
        return functional.mse_loss(out[:, 0], model.target(wanted[:, None])[:, 0].to(out.dtype))
    return functional.cross_entropy(out, wanted)


def _seed(seed: int, step: int) -> int:
    """One number for (seed, step), far from that of other steps and seeds."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, eq=False)
class _Batches:
    """What a step trains on: (inputs, rows of its output, their values)."""

    inputs: NodeInputs
    node: Tensor
    value: Tensor
    settings: NodeSettings

    def at(self, step: int) -> tuple[NodeInputs, Tensor, Tensor]:
        """All training nodes on the whole graph, or `batch` of them with what is sampled around them."""
        size = self.settings.batch
        if not size or size >= len(self.node):
            return self.inputs, self.node, self.value
        from attlas.graph.sample import sample_neighbours

        # Epochs of all training nodes, each in an order of its own.
        each = -(-len(self.node) // size)
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, -1 - step // each & 0xFFFFFFFF))
        order = torch.randperm(len(self.node), generator=generator)
        chosen = order[step % each * size : (step % each + 1) * size]
        found = sample_neighbours(
            self.inputs.graph,
            self.node[chosen],
            [self.settings.fanout] * self.settings.depth,
            seed=_seed(self.settings.seed, step),
        )
        part = self.inputs.part(found.graph, found.nodes, found.edges)
        return part, torch.arange(len(chosen)), self.value[chosen]
