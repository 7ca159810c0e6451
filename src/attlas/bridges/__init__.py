"""Pretrained models of Hugging Face: load them, describe them, run them with a plan, watch their
attention."""

from __future__ import annotations

from attlas.bridges.applied import Applied, applied
from attlas.bridges.capture import Captured, Recording, capture
from attlas.bridges.encoder import load_encoder
from attlas.bridges.loading import load_model
from attlas.bridges.models import UnsupportedModel, describe

__all__ = [
    "Applied",
    "Captured",
    "Recording",
    "UnsupportedModel",
    "applied",
    "capture",
    "describe",
    "load_encoder",
    "load_model",
]
