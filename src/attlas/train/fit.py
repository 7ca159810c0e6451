"""One training run of a small network: AdamW, warm-up and cosine decay; the loop is pytorch-ignite's."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["SMALL_RECIPE", "Diverged", "Recipe", "fit", "optimiser_of"]

Batch = TypeVar("Batch")
REPORTS = 20  # how often progress is told in a run


class Diverged(ValueError):
    """The loss of a training run is not finite any more."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, learning rate up linearly for `warm_up` steps, then by a cosine to `final` of it.

    `weight_decay` is applied to matrices only (tensors of two or more axes); gradients are clipped to the
    norm `clip`.
    """

    steps: int
    learning_rate: float = 3e-3
    warm_up: int = 20
    final: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"recipe steps must be at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"recipe learning_rate must be above 0, got {self.learning_rate}")

    def share(self, done: int) -> float:
        """The learning rate of the step after `done` steps, as a share of `learning_rate`."""
        if done < self.warm_up:
            return (done + 1) / self.warm_up
        through = (done - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, through)))


SMALL_RECIPE = Recipe(steps=300, learning_rate=3e-3, warm_up=20, weight_decay=0.1, betas=(0.9, 0.95))
"""Of `SmallLM`: 300 steps of 16 windows of 128 bytes."""


def optimiser_of(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the weights, decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=recipe.betas,
    )


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    recipe: Recipe,
    *,
    step: Callable[[str], None] = lambda text: None,
) -> list[float]:
    """Train `model` in place on the next `recipe.steps` batches; the loss before each update.

    `loss(model, batch)` is a scalar. `step` is told the progress. The run is repeatable: it draws no random
    numbers itself. Raises ValueError where the batches end too soon, `Diverged` (one too) where the loss is
    not finite.
    """
    from ignite.engine import Engine, Events

    optimiser = optimiser_of(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, recipe.share)
    losses: list[float] = []

    def update(engine: Engine, batch: Batch) -> float:
        optimiser.zero_grad(set_to_none=True)
        found = loss(model, batch)
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        schedule.step()
        return found.item()

    trainer = Engine(update)

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        value = float(engine.state.output or 0.0)
        if not math.isfinite(value):
            raise Diverged(f"the loss of step {engine.state.iteration} is {value}: training went wrong")
        losses.append(value)
        if engine.state.iteration % max(1, recipe.steps // REPORTS) == 0:
            step(f"step {engine.state.iteration} of {recipe.steps}, loss {value:.3f}")

    model.train()
    found = iter(batches)
    # ignite would begin an exhausted iterator again, or warn: a finite list of batches is an error here.
    trainer.run(_exactly(found, recipe.steps), max_epochs=1, epoch_length=recipe.steps)
    model.eval()
    return losses


def _exactly(batches: Iterable[Batch], steps: int) -> Iterable[Batch]:
    count = 0
    for batch in batches:
        yield batch
        count += 1
        if count == steps:
            return
    raise ValueError(f"batches ended after {count} of {steps} steps: give at least as many")
