"""Training: the thin use of a training library, and objectives."""

from attlas.train.diffusion import Diffusion, NoisyBatch
from attlas.train.distil import distil, distil_loss
from attlas.train.fit import SMALL_RECIPE, Diverged, Recipe, fit
from attlas.train.objectives import label_loss, next_token_loss, recall_loss

__all__ = [
    "SMALL_RECIPE",
    "Diffusion",
    "Diverged",
    "NoisyBatch",
    "Recipe",
    "distil",
    "distil_loss",
    "fit",
    "label_loss",
    "next_token_loss",
    "recall_loss",
]
