"""Training: the thin use of a training library, and objectives."""

from attlas.train.attention_at import AT, IAT, AttentionTraining, RandomDirection, adversarial_loss
from attlas.train.diffusion import Diffusion, NoisyBatch
from attlas.train.distil import distil, distil_loss
from attlas.train.fit import SMALL_RECIPE, Diverged, Recipe, fit
from attlas.train.kgat import Known, Recommending, bpr_loss, train_bpr, train_kgat, transr_loss
from attlas.train.objectives import absolute_loss, label_loss, next_token_loss, recall_loss

__all__ = [
    "AT",
    "IAT",
    "SMALL_RECIPE",
    "AttentionTraining",
    "Diffusion",
    "Diverged",
    "Known",
    "NoisyBatch",
    "RandomDirection",
    "Recipe",
    "Recommending",
    "absolute_loss",
    "adversarial_loss",
    "bpr_loss",
    "distil",
    "distil_loss",
    "fit",
    "label_loss",
    "next_token_loss",
    "recall_loss",
    "train_bpr",
    "train_kgat",
    "transr_loss",
]
