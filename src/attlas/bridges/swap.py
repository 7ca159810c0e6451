"""What stands in for a pretrained model's own pattern, score and normaliser, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import nn

from attlas.attend import Normaliser
from attlas.bridges.models import Wiring
from attlas.pattern import Pattern, Plan, causal, dense
from attlas.score import Score

__all__ = ["LayerRule", "Swap", "checked_layers", "layer_rules", "swap"]


@dataclass(frozen=True, eq=False)
class Swap:
    """Made by `swap`: what is exchanged (None: stays the model's own) and in which layers (None: in all)."""

    normaliser: Normaliser | None = None
    score: Score | None = None
    pattern: Pattern | Plan | None = None
    layers: tuple[int, ...] | None = None

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The nn.Parameters that normaliser and score hold, to train: a learned sink, for example."""
        return tuple(_parameters((self.normaliser, self.score)))


def swap(
    *,
    normaliser: Normaliser | None = None,
    score: Score | None = None,
    pattern: Pattern | None = None,
    plan: Plan | None = None,
    layers: int | Sequence[int] | None = None,
) -> Swap:
    """Exchange parts of a pretrained model's attention: `applied(model, swap(normaliser=Sigmoid(-5.0)))`.

    normaliser, score: as in `attend`; a score has a scale of its own (Dot(): 1/sqrt(head width)) and is given
    queries and keys as the model makes them, rotated. pattern or plan: who attends to whom, as in `applied`.
    layers: one or several; all unless given. Several swaps go in a list, each for its layers.

    The model was trained for the softmax: `attlas.train.distil` accustoms it to another. ValueError,
    TypeError: nothing to exchange, pattern beside plan, or something of another kind.
    """
    if normaliser is None and score is None and pattern is None and plan is None:
        raise ValueError("swap has nothing to exchange: give normaliser, score, pattern or plan")
    if pattern is not None and plan is not None:
        raise ValueError("swap: give either pattern or plan, not both: a plan holds a pattern per layer")
    _check_kinds({"normaliser": normaliser, "score": score, "pattern": pattern, "plan": plan})
    return Swap(normaliser, score, pattern if plan is None else plan, _numbers(layers))


def _numbers(layers: object) -> tuple[int, ...] | None:
    several = [layers] if isinstance(layers, int) else layers
    if several is None:
        return None
    if isinstance(several, str) or not isinstance(several, Iterable):
        raise TypeError(f"swap layers must be a layer's number or several of them, got {layers!r}")
    numbers = tuple(several)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise TypeError(f"swap layers must be numbers of layers, whole ones, got {layers!r}")
    return numbers


def _check_kinds(given: Mapping[str, object]) -> None:
    kinds = {"normaliser": Normaliser, "score": Score, "pattern": Pattern, "plan": Plan}
    for name, value in given.items():
        if value is not None and not isinstance(value, kinds[name]):
            raise TypeError(f"swap {name} must be a {kinds[name].__name__}, made ready to use, got {value!r}")


@dataclass(frozen=True, eq=False)
class LayerRule:
    """How one layer attends: its pattern, and a score and a normaliser in place of the model's own."""

    pattern: Pattern
    score: Score | None = None
    normaliser: Normaliser | None = None

    @property
    def own(self) -> bool:
        """Whether score and normaliser are the model's: scaled dot products and softmax."""
        return self.score is None and self.normaliser is None

    @property
    def changed(self) -> str:
        """Score and normaliser that are not the model's own, for a message."""
        parts = (("score", self.score), ("normaliser", self.normaliser))
        return " and ".join(f"the {what} {part.name}" for what, part in parts if part is not None)


Rules = Plan | Pattern | Sequence[Pattern] | Swap | Sequence[Swap]


def layer_rules(given: Rules, wired: Wiring) -> tuple[LayerRule, ...]:
    """The rule of every layer; a decoder's patterns are made causal.

    ValueError: layers that are not there or swapped twice, a normaliser that lets a decoder see the future.
    """
    swaps: list[Any] = [given] if isinstance(given, Swap) else []
    if not swaps and isinstance(given, list | tuple):
        swaps = [one for one in given if isinstance(one, Swap)]
        if swaps and len(swaps) != len(given):
            raise TypeError(
                "plan must hold swaps alone or patterns alone: give a pattern as swap(pattern=...)"
            )
    if not swaps:
        return tuple(LayerRule(pattern) for pattern in _patterns(given, wired))
    whole = causal() if wired.causal else dense()
    rules: list[dict[str, Any]] = [{} for _ in range(wired.shape.layers)]
    for one in swaps:
        parts: dict[str, Any] = {"score": one.score, "normaliser": one.normaliser}
        patterns = None if one.pattern is None else _patterns(one.pattern, wired)
        for layer in checked_layers(one.layers, wired):
            parts["pattern"] = None if patterns is None else patterns[layer]
            for name, part in parts.items():
                if part is None:
                    continue
                if name in rules[layer]:
                    raise ValueError(f"two swaps exchange the {name} of layer {layer}: give each layer one")
                rules[layer][name] = part
    found = tuple(LayerRule(**{"pattern": whole, **rule}) for rule in rules)
    for layer, rule in enumerate(found):
        if wired.causal and rule.normaliser is not None and not rule.normaliser.causal_safe:
            raise ValueError(
                f"layer {layer} of {wired.shape.name} would see the future: under the normaliser "
                f"{rule.normaliser.name} a weight depends on later queries, which a decoder must not know; "
                "use one that normalises over the keys of a query"
            )
    return found


def checked_layers(layers: Sequence[int] | None, wired: Wiring) -> tuple[int, ...]:
    """The layers, all of them for None; ValueError for one that is not there or named twice."""
    count = wired.shape.layers
    if layers is None:
        return tuple(range(count))
    wrong = [layer for layer in layers if isinstance(layer, bool) or layer not in range(count)]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise ValueError(
            f"layers must be different numbers of 0 .. {count - 1} for {wired.shape.name}, got {list(layers)}"
        )
    return tuple(layers)


def _parameters(value: Any) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _parameters(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _parameters(getattr(value, field.name))


def _patterns(plan: Any, wired: Wiring) -> list[Pattern]:
    shape = wired.shape
    if isinstance(plan, str | os.PathLike):
        raise TypeError(
            f"plan must be a Plan, one pattern, or one per layer, got the text {os.fspath(plan)!r}: load a "
            "plan file with attlas.Plan.load(path), read a pattern's text with attlas.parse(text)"
        )
    if isinstance(plan, Plan):
        plan = plan.on(shape)
        patterns = [plan.pattern(layer) for layer in range(shape.layers)]
    elif isinstance(plan, Pattern):
        patterns = [plan] * shape.layers
    else:
        patterns = list(plan)
        if len(patterns) != shape.layers:
            raise ValueError(
                f"plan must be a Plan, one pattern, or one per layer: {shape.name} has {shape.layers} "
                f"layers, got {len(patterns)} patterns"
            )
    for pattern in dict.fromkeys(patterns):
        pattern.expand(shape.heads, shape.kv_heads)  # says which head counts do not fit
    if not wired.causal:
        return patterns
    return [pattern if pattern.is_causal else causal() & pattern for pattern in patterns]
