"""Plan files of the released MoA code (thu-nics/MoA, ``examples/*/moa_alpha_beta.json``)."""

import math
import os
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import read_json
from attlas.pattern.plan import ModelShape, Plan
from attlas.pattern.rules import span_rule

__all__ = ["from_official", "load_official"]


def load_official(
    path: str | os.PathLike[str],
    kv_heads: int | None = None,
    *,
    sink: int = 64,
    block: int = 64,
    minimum: int = 128,
) -> Plan:
    """The plan of an official file {"alphas": [l][h], "betas": [l][h]}: see ``from_official``."""
    value = read_json(path, what="plan")
    return from_official(value, kv_heads, sink=sink, block=block, minimum=minimum, source=f"plan {path}")


def from_official(
    value: Any,
    kv_heads: int | None = None,
    *,
    sink: int = 64,
    block: int = 64,
    minimum: int = 128,
    source: str = "plan",
) -> Plan:
    """One ``span_rule`` per query head, as the files list them.

    On a model with fewer KV heads (``kv_heads``, or later ``plan.on(shape)``) each query head keeps its own
    window as its mask while a KV head keeps the longest span of the consecutive query heads that share it;
    densities count that. (The released code repeats the KV heads first, which forgoes the saving.) UsageError
    for other content.
    """
    rows = {name: _numbers(value, name, source) for name in ("alphas", "betas")}
    layers, heads = len(rows["alphas"]), len(rows["alphas"][0])
    for name, table in rows.items():
        if len(table) != layers or any(len(row) != heads for row in table):
            raise UsageError(
                f"{source} is damaged: {name} must hold {layers} layers of {heads} heads each, like the "
                "first row of alphas"
            )
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise UsageError(
            f"{source} has {heads} heads per layer, which {kv_heads} KV heads cannot share evenly"
        )
    shape = ModelShape("", "", layers, heads, kv_heads or heads, 0)
    rules = tuple(
        tuple(span_rule(alpha, beta, sink, block, minimum) for alpha, beta in zip(*pair, strict=True))
        for pair in zip(rows["alphas"], rows["betas"], strict=True)
    )
    return Plan(shape, rules, per="head", provenance={"origin": "file in the form of thu-nics/MoA"})


def _numbers(value: Any, name: str, source: str) -> list[list[float]]:
    table = value.get(name) if isinstance(value, dict) else None
    if not isinstance(table, list) or not table or not all(isinstance(row, list) and row for row in table):
        raise UsageError(
            f"{source} is damaged: {name} must be a list of rows, one per layer, of numbers, one per head"
        )
    for layer, row in enumerate(table):
        for number in row:
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise UsageError(
                    f"{source} is damaged: {name} of layer {layer} holds {number!r}, expected a number"
                )
    return table
