"""What was inserted, swapped and trained in a pretrained model, as a folder of JSON and safetensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json, writable_folder, write_atomic, write_json
from attlas.bridges.insert import Insertion, described, insert, inserted
from attlas.bridges.models import INSERTED, describe, fingerprint_without
from attlas.bridges.swap import Swap
from attlas.bridges.written import read_part, write_part
from attlas.layers.gated import Gate, LearnedGate
from attlas.pattern import Pattern, Plan

__all__ = ["KINDS", "NAME", "SCHEMA", "VERSION", "Changes", "load_changes", "save_changes", "weight_names"]

SCHEMA, VERSION = "attlas.changes", 1
NAME = "changes.json"

Maker = Callable[..., nn.Module]

KINDS: dict[str, Maker] = {"Gate": Gate, "LearnedGate": LearnedGate}
"""Inserted modules that load by themselves, as kind(**spec); for others see `load_changes(modules=)`."""


class Changes:
    """What `load_changes` put into a model: `swap` to hand to `applied`, `insertions`, and the way back.

    As a context manager the model is bitwise as before on leaving the block.
    """

    def __init__(
        self,
        model: nn.Module,
        insertions: Sequence[Insertion],
        swaps: tuple[Swap, ...],
        before: Mapping[str, Tensor],
    ) -> None:
        self.model, self.insertions, self.swap = model, tuple(insertions), swaps
        self._before = dict(before)

    def remove(self) -> None:
        """Take out what was inserted, and put the weights back that were loaded over."""
        for one in self.insertions:
            one.remove()
        _copy(self.model, self._before)
        self._before = {}

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def weight_names(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The model's own parameters whose names match any of the patterns (`*` stands for anything).

    ValueError: a pattern that matches none. What was inserted is not among them.
    """
    own = [name for name, _ in model.named_parameters() if INSERTED not in name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise ValueError(
                f"no parameter of {type(model).__name__} is named {pattern!r}; they are named like "
                f"{own[0]!r} (* stands for anything)"
            )
    return tuple(name for name in own if any(fnmatchcase(name, pattern) for pattern in patterns))


def save_changes(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    swap: Swap | Sequence[Swap] = (),
    weights: Sequence[str] = (),
) -> Path:
    """Write what was inserted into `model`, `swap`, and the named weights of its own; returns the folder.

    weights: names or patterns (`*.v_proj.weight`) of the model's parameters that were trained. The base model
    is not written, only a fingerprint of it (signs of sampled weights, so that another precision passes).
    Whole or not at all: the JSON file is written last, and names the tensor file by its content. ValueError:
    something that cannot be written. UsageError: the folder.
    """
    tensors: dict[str, Tensor] = {}
    names = weight_names(model, weights)
    own = dict(model.named_parameters())
    for name in names:
        tensors[f"weights.{name}"] = own[name].detach()
    inserts = []
    for number, slot in enumerate(inserted(model)):
        row = described(slot)
        if row["spec"] is None and slot.module.state_dict():
            row["spec"] = {}
        inserts.append(row)
        for name, tensor in slot.module.state_dict().items():
            tensors[f"inserted.{number}.{name}"] = tensor
    swaps = [
        _written(one, f"swap.{number}", tensors)
        for number, one in enumerate((swap,) if isinstance(swap, Swap) else swap)
    ]
    target = writable_folder(folder)
    data = save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    file = f"changes-{digest[:12]}.safetensors"
    base = describe(model)
    write_atomic(target / file, data)
    write_json(
        target / NAME,
        {
            "schema": SCHEMA,
            "version": VERSION,
            "model": {"name": base.name, "family": base.family, "without": fingerprint_without(model, names)},
            "inserted": inserts,
            "swap": swaps,
            "weights": list(names),
            "tensors": {"file": file, "sha256": digest},
        },
    )
    for old in target.glob("changes-*.safetensors"):
        if old.name != file:
            old.unlink()
    return target


def load_changes(
    model: nn.Module, folder: str | os.PathLike[str], *, modules: Mapping[str, Maker] | None = None
) -> Changes:
    """Put what `save_changes` wrote into the base model: the same logits as where it was saved, bitwise.

        changes = load_changes(model, "gated")
        with at.applied(model, changes.swap): ...          # where something was swapped

    modules: for inserted modules of your own, by class name, what makes them from their `spec`. UsageError:
    missing, damaged or newer files, another base model. ValueError: a kind of module that is not known. On an
    error the model is as before.
    """
    path = Path(folder) / NAME
    body = check_schema(read_json(path, what="changes"), SCHEMA, VERSION, source=str(path))
    tensors = _tensors(path, body)
    names = [str(name) for name in body["weights"]]
    found = fingerprint_without(model, names)
    if found != body["model"]["without"]:
        base = describe(model)
        raise UsageError(
            f"{path} was made for another base model: {body['model']['name']} ({body['model']['family']}), "
            f"this is {base.name} ({base.family}) and its weights differ; load it into the model that was "
            "changed"
        )
    device = next(model.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    swaps = tuple(_read(one, tensors, str(path)) for one in body["swap"])
    makers = {**KINDS, **(modules or {})}
    own = dict(model.named_parameters())
    missing = [name for name in names if name not in own or f"weights.{name}" not in tensors]
    if missing:
        raise UsageError(f"{path} holds weights that this model or the tensor file has not: {missing[:3]}")
    before = {name: own[name].detach().clone() for name in names}
    made: list[Insertion] = []
    try:
        for number, row in enumerate(body["inserted"]):
            made.append(_inserted(model, row, f"inserted.{number}.", tensors, makers, path))
        _copy(model, {name: tensors[f"weights.{name}"] for name in names})
    except BaseException:
        for one in made:
            one.remove()
        _copy(model, before)
        raise
    return Changes(model, made, swaps, before)


def _inserted(
    model: nn.Module,
    row: Mapping[str, Any],
    prefix: str,
    tensors: Mapping[str, Tensor],
    makers: Mapping[str, Maker],
    path: Path,
) -> Insertion:
    if row["kind"] not in makers:
        raise ValueError(
            f"{path} holds an inserted module of the kind {row['kind']!r}, which is not Attlas' own: give "
            f"load_changes(modules={{{row['kind']!r}: make}}), made as make(**spec) with spec {row['spec']}"
        )
    module = makers[row["kind"]](**(row["spec"] or {}))
    made = insert(model, row["where"], module, layers=[row["layer"]])
    held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(held)
    except RuntimeError as error:
        made.remove()
        raise UsageError(
            f"{path}: the weights of {row['kind']} in layer {row['layer']} do not fit: {error}"
        ) from error
    return made


def _copy(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def _tensors(path: Path, body: Mapping[str, Any]) -> dict[str, Tensor]:
    source = path.parent / Path(body["tensors"]["file"]).name
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UsageError(f"{source}, which {path} names, cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != body["tensors"]["sha256"]:
        raise UsageError(f"{source} is damaged: its content is not what {path} says; save the changes anew")
    try:
        return load(data)
    except SafetensorError as error:
        raise UsageError(
            f"{source} is damaged, not a safetensors file ({error}); save the changes anew"
        ) from error


def _written(swap: Swap, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    seen = swap.pattern
    return {
        "layers": None if swap.layers is None else list(swap.layers),
        "normaliser": write_part(swap.normaliser, f"{place}.normaliser", tensors),
        "score": write_part(swap.score, f"{place}.score", tensors),
        "pattern": seen.to_dict() if isinstance(seen, Pattern) else None,
        "plan": seen.to_dict() if isinstance(seen, Plan) else None,
    }


def _read(row: Mapping[str, Any], tensors: dict[str, Tensor], source: str) -> Swap:
    seen: Pattern | Plan | None = None
    if row["pattern"] is not None:
        seen = Pattern.from_dict(row["pattern"])
    elif row["plan"] is not None:
        seen = Plan.from_dict(row["plan"], source=source)
    layers = None if row["layers"] is None else tuple(row["layers"])
    normaliser, score = (read_part(row[name], tensors, source) for name in ("normaliser", "score"))
    return Swap(normaliser, score, seen, layers)
