"""Pretrained models of Hugging Face: load them, describe them, run them with a plan, watch their
attention."""

from __future__ import annotations

from attlas.bridges.applied import Applied, applied
from attlas.bridges.capture import Captured, Recording, capture
from attlas.bridges.changes import Changes, load_changes, save_changes
from attlas.bridges.encoder import load_encoder
from attlas.bridges.insert import Insertion, gates_for, insert, inserted, paused
from attlas.bridges.loading import load_model
from attlas.bridges.models import UnsupportedModel, describe
from attlas.bridges.swap import Swap, swap

__all__ = [
    "Applied",
    "Captured",
    "Changes",
    "Insertion",
    "Recording",
    "Swap",
    "UnsupportedModel",
    "applied",
    "capture",
    "describe",
    "gates_for",
    "insert",
    "inserted",
    "load_changes",
    "load_encoder",
    "load_model",
    "paused",
    "save_changes",
    "swap",
]
