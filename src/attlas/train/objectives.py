"""Losses to train by."""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.tasks.molecules import MoleculeBatch
from attlas.tasks.mqar import UNASKED

__all__ = ["absolute_loss", "label_loss", "next_token_loss", "recall_loss"]


def next_token_loss(model: nn.Module, ids: Int[Tensor, "B n"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of tokens 1..n-1, each given those before it."""
    logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def label_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of one label per example; batch: (inputs (B, ...), labels (B,))."""
    inputs, labels = batch
    return functional.cross_entropy(model(inputs).float(), labels)


def recall_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the labelled places, `model(ids, where)` giving their logits alone.

    batch: (ids, labels) of `tasks.mqar`. What the model's `auxiliary()` tells is added, if it has one.
    """
    ids, labels = batch
    asked = labels != UNASKED
    loss = functional.cross_entropy(model(ids, asked).float(), labels[asked])
    auxiliary = getattr(model, "auxiliary", None)
    return loss if auxiliary is None else loss + auxiliary()


def absolute_loss(model: nn.Module, batch: MoleculeBatch) -> Float[Tensor, ""]:
    """Mean absolute error of `model(x, graph)` against the target of every graph (L1)."""
    return functional.l1_loss(model(batch.x, batch.graph), batch.target)
