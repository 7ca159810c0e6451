"""Brief training of a changed pretrained model towards the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.train.fit import Recipe, fit

if TYPE_CHECKING:
    from attlas.bridges import Swap

__all__ = ["distil", "distil_loss"]

Batch = Tensor | Mapping[str, Tensor]


class _Trained(nn.Module):
    """The parameters that are trained, and nothing else: `fit` neither sees nor switches the model."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)


def distil_loss(
    student: Any, teacher: Any, valid: Tensor | None = None, *, temperature: float = 1.0, layers: float = 0.0
) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) per token, in nats, + layers * error of hidden states.

    student, teacher: outputs of a model, with `logits` (B, n, vocabulary) and, for layers > 0,
    `hidden_states`; the error is |student - teacher|^2 / |teacher|^2, averaged over the layers. valid (B, n):
    real tokens; all unless given.
    """
    logits = [(one.logits.float() / temperature).log_softmax(-1) for one in (student, teacher)]
    parts = functional.kl_div(logits[0], logits[1], log_target=True, reduction="none").sum(-1)
    real = torch.ones_like(parts, dtype=torch.bool) if valid is None else valid.to(torch.bool)
    # What a padded token gives may be anything, NaN too.
    loss = torch.where(real, parts, 0.0).sum() / real.sum() * temperature**2
    if not layers:
        return loss
    errors = []
    for ours, theirs in zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True):
        apart = torch.where(real[..., None], ours - theirs, 0.0).float().square().sum()
        errors.append(apart / torch.where(real[..., None], theirs, 0.0).float().square().sum())
    return loss + layers * torch.stack(errors).mean()


def distil(
    model: nn.Module,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    swap: Swap | Sequence[Swap] | None = None,
    teacher: nn.Module | None = None,
    weights: Sequence[str] = (),
    temperature: float = 1.0,
    layers: float = 0.0,
    step: Callable[[str], None] = lambda text: None,
) -> list[float]:
    """Train what was inserted into `model` or swapped so that it answers as the original; the loss per step.

        at.insert(model, "G1", at.gates_for(model, "G1", form="2-sigmoid", start=1.0))
        at.distil(model, batches, Recipe(steps=200), swap=at.swap(normaliser=at.Sigmoid(-5.0)))

    batches: token ids (B, n), or mappings with input_ids and attention_mask. Trained are the parameters of
    inserted modules, those that `swap` holds, and the model's own that `weights` names (`*.v_proj.weight`);
    all others are frozen meanwhile. teacher: the original; None: the model itself without insertions and
    swap, which needs no second copy but `weights` empty. temperature, layers: see `distil_loss`; how long and
    how fast: `recipe`. Dropout is as the model's mode says (`model.eval()`: none). No cache is used.

    ValueError: nothing to train, weights without a teacher, a model without logits. Cost: per step a pass
    forward and backward, and one forward of the teacher.
    """
    # Here, since transformers takes seconds to load and other training does without it.
    from attlas.bridges import Swap, applied, inserted, paused
    from attlas.bridges.changes import weight_names

    swaps = () if swap is None else (swap,) if isinstance(swap, Swap) else tuple(swap)
    names = weight_names(model, weights)
    if names and (teacher is None or teacher is model):
        raise ValueError(
            "distil: weights of the model are to be trained, so that it is not the original any more: give "
            "teacher=, a copy made before"
        )
    own = dict(model.named_parameters())
    trained = [parameter for slot in inserted(model) for parameter in slot.parameters()]
    trained += [parameter for one in swaps for parameter in one.parameters()]
    trained += [own[name] for name in names]
    if not trained:
        raise ValueError(
            "distil: nothing to train: insert a module, swap something that holds an nn.Parameter, or name "
            "weights="
        )
    if swaps and getattr(model, "is_activation_checkpointing", False):
        raise ValueError(
            "distil: activation checkpointing runs the model again behind the step, where nothing is "
            "swapped: call model.activation_checkpointing_disable() first"
        )
    hidden = layers > 0

    def run(network: nn.Module, batch: Batch) -> Any:
        inputs = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
        found = network(**inputs, use_cache=False, output_hidden_states=hidden)
        if getattr(found, "logits", None) is None:
            raise ValueError(f"distil: {type(network).__name__} gives no logits; use a model with a head")
        return found

    def original(batch: Batch) -> Any:
        with torch.no_grad():
            if teacher is not None:
                return run(teacher, batch)
            with paused(model):
                return run(model, batch)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        target = original(batch)
        changed: AbstractContextManager[Any] = applied(model, swaps) if swaps else nullcontext()
        with changed:
            valid = None if isinstance(batch, Tensor) else batch.get("attention_mask")
            return distil_loss(run(model, batch), target, valid, temperature=temperature, layers=layers)

    before = {parameter: parameter.requires_grad for parameter in (*model.parameters(), *trained)}
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        return fit(_Trained(trained), batches, loss, recipe, step=step)
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        for parameter in trained:
            parameter.grad = None
