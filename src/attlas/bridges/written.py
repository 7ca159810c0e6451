"""Normalisers and scores as JSON and named tensors, and back: a closed list of kinds, nothing is executed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas.attend import Normaliser
from attlas.score import RowScale, Score

__all__ = ["read_part", "write_part"]


def _kinds() -> dict[str, type[Any]]:
    """The public normalisers and scores that are dataclasses, by name."""
    found = {}
    # `attlas.attend` is a function as well as a room: by import_module it is the room.
    for room in (import_module("attlas.attend"), import_module("attlas.score")):
        for name in room.__all__:
            kind = getattr(room, name)
            if (
                isinstance(kind, type)
                and issubclass(kind, Normaliser | Score | RowScale)
                and is_dataclass(kind)
            ):
                found[name] = kind
    return found


def write_part(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors` under names that begin with `place`.

    ValueError: it holds something that cannot be written, such as a function or a class of the user's.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value.detach()
        return {"tensor": place, "parameter": isinstance(value, nn.Parameter)}
    if isinstance(value, tuple | list):
        return {"tuple": [write_part(one, f"{place}.{i}", tensors) for i, one in enumerate(value)]}
    kind = type(value).__name__
    if _kinds().get(kind) is not type(value):
        raise ValueError(
            f"{place} cannot be written: {value!r} is no normaliser, score, number, text or tensor of "
            "Attlas; save without swap= and give it to applied() again after loading"
        )
    held = {
        field.name: write_part(getattr(value, field.name), f"{place}.{field.name}", tensors)
        for field in fields(value)
        if field.init
    }
    return {"kind": kind, "fields": held}


def read_part(value: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """The inverse of `write_part`; UsageError names what is damaged in `source`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            return nn.Parameter(tensor) if value["parameter"] else tensor
        if "tuple" in value:
            return tuple(read_part(one, tensors, source) for one in value["tuple"])
        kind = _kinds()[value["kind"]]
        return kind(**{name: read_part(one, tensors, source) for name, one in value["fields"].items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{source} is damaged, or of a newer Attlas: {value!r} is no normaliser or score ({error})"
        ) from error
