"""Whether attention weights rank tokens as the loss's gradient does.

Source: the measure of interpretability of arXiv 2009.12064, after Jain & Wallace 2019, arXiv 1902.10186.
"""

from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.train.attention_at import answer_loss

__all__ = ["Agreement", "attention_agreement", "weights_and_importance"]

Agreement = Literal["pearson", "kendall"]
LEAST = 3  # tokens of a sentence for which a correlation is taken: two correlate by 1 or -1 always


def weights_and_importance(
    model: nn.Module, inputs: Any, labels: Tensor
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Attention weights of an `AttentionClassifier`, and ||dL / d embedding_t||_2 normalised to sum 1.

    L: the sentence's own loss. Both are 0 on padding. The model is left in its mode, its gradients untouched.
    """
    part: Any = model
    with torch.enable_grad():
        embedded = part.embedding(inputs.tokens).detach().requires_grad_()
        encoded = part.encode(inputs, embedded=embedded)
        scores = part.scores(encoded)
        # The mean over sentences times their number: sentences do not touch each other.
        loss = len(labels) * answer_loss(part.answer(encoded, scores), labels)
        (gradient,) = torch.autograd.grad(loss, embedded)
    size = gradient.norm(dim=-1).masked_fill(~encoded.valid, 0.0)
    total = size.sum(-1, keepdim=True)
    return part.weights(encoded, scores).detach(), torch.where(total > 0, size / total, 0.0)


def attention_agreement(
    weights: Float[Tensor, "B N"],
    importance: Float[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    kind: Agreement = "pearson",
) -> np.ndarray:
    """Correlation of both over the valid tokens of each sentence: Pearson's r or Kendall's tau (scipy).

    Sentences with fewer than 3 tokens, or with all weights or all importances equal, have none and are left
    out: (sentences with one,) float64. ValueError: another kind.
    """
    from scipy import stats

    if kind not in get_args(Agreement):
        raise ValueError(f"kind must be one of {', '.join(get_args(Agreement))}, got {kind!r}")
    measure = stats.pearsonr if kind == "pearson" else stats.kendalltau
    found = []
    for row, other, kept in zip(weights.double().cpu(), importance.double().cpu(), valid.cpu(), strict=True):
        a, b = row[kept].numpy(), other[kept].numpy()
        if len(a) >= LEAST and np.ptp(a) > 0 and np.ptp(b) > 0:
            found.append(float(measure(a, b)[0]))
    return np.array(found)
