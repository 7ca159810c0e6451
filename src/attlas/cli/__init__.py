"""The command `attlas`: it reads options, calls the rooms and shows what they say; the logic is theirs."""

from __future__ import annotations

from attlas.cli.app import app, main

# Imported for their commands, in the order in which the help lists them.
from attlas.cli import model, graph, atlas, bench, inspect  # isort: skip

__all__ = ["app", "atlas", "bench", "graph", "inspect", "main", "model"]
