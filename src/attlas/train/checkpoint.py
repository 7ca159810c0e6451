"""The state of a training run in one safetensors file: numbers as tensors, all else as JSON in its header."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas._common.files import write_atomic

__all__ = ["load_checkpoint", "load_tensors", "save_checkpoint", "save_tensors"]

SCHEMA, VERSION = "attlas.checkpoint", 1


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], facts: Any) -> Path:
    """Write tensors and facts (JSON) atomically."""
    said = {"schema": SCHEMA, "version": VERSION, "facts": facts}
    # One entry: safetensors writes several in no fixed order, and equal runs shall have equal files.
    header = {"attlas": json.dumps(said, sort_keys=True)}
    return write_atomic(
        path, save({name: one.detach().contiguous() for name, one in tensors.items()}, metadata=header)
    )


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """(tensors, facts) of `save_tensors`; UsageError: a missing or damaged file, or of a newer version."""
    try:
        with safe_open(path, "pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check the folder of the run") from None
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} is damaged ({error}); begin the run again (--fresh)") from error
    said = json.loads(header.get("attlas", "{}"))
    if said.get("schema") != SCHEMA or said.get("version") != VERSION:
        raise UsageError(
            f"{path} is not a file of schema {SCHEMA!r} version {VERSION}: found {said.get('schema')!r} "
            f"{said.get('version')!r}; upgrade Attlas, or begin the run again (--fresh)"
        )
    return tensors, said["facts"]


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    facts: Any,
) -> Path:
    """Write what a run needs to go on: weights, buffers, the optimiser's numbers, the best weights so far."""
    tensors = {f"model.{name}": one for name, one in model.state_dict().items()}
    tensors |= {f"best.{name}": one.clone() for name, one in best.items()}
    for index, numbers in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(one) for name, one in numbers.items()}
    return save_tensors(path, tensors, facts)


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], Any]:
    """Put model and optimiser where they were; (best weights, facts). UsageError as `load_tensors`."""
    tensors, facts = load_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
    for name, one in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = one
    model.load_state_dict(parts["model"])
    numbers: dict[int, dict[str, Tensor]] = {}
    for name, one in parts["optimiser"].items():
        index, _, rest = name.partition(".")
        numbers.setdefault(int(index), {})[rest] = one
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": numbers, "param_groups": groups})
    return parts["best"], facts
