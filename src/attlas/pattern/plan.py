"""Plans: the pattern of every layer and head of one model, what it costs, and the file that holds it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json, write_json
from attlas.pattern.base import Pattern
from attlas.pattern.heads import per_head, per_kv_head
from attlas.pattern.rules import kept, share, span_of

__all__ = ["SCHEMA", "VERSION", "ModelShape", "Plan", "PlanMismatch"]

SCHEMA = "attlas.plan"
VERSION = 1


class PlanMismatch(UsageError):
    """A plan was made for another model; the text names every difference."""


@dataclass(frozen=True)
class ModelShape:
    """What a plan must know of its model. Empty text and 0 mean "not known" and match anything.

    ``fingerprint`` is a hash over the essentials of the configuration and a sample of the weights.
    """

    name: str
    family: str
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads", "head_width"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"model {name} must be an integer, got {number!r}")
        if self.layers < 1 or self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"a model needs layers >= 1 and heads a multiple of KV heads >= 1, got {self.layers} "
                f"layers, {self.heads} heads, {self.kv_heads} KV heads"
            )

    @property
    def group(self) -> int:
        """Consecutive query heads that share a KV head."""
        return self.heads // self.kv_heads

    def differences(self, other: "ModelShape") -> list[str]:
        """What differs, as "heads 9 (here 32)"; the name is not compared."""
        pairs = [
            (f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "name"
        ]
        return [
            f"{name} {_short(one)} (here {_short(two)})"
            for name, one, two in pairs
            if one and two and one != two
        ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "..."


@dataclass(frozen=True)
class Plan:
    """Patterns per layer and head, still elastic: rules per KV head ("kv_head") or per query head ("head").

    Any recipe may be a rule; MoA's are ``span_rule``s. ``provenance`` (how it was made) and ``metrics`` (what
    was measured) are free JSON objects. Densities are the deployed ones: mean over layers and KV heads of
    min(c, N) / N, c = keys kept in the cache (``sizes``); for an encoder the mean share of keys that a row
    sees.
    """

    model: ModelShape
    layers: tuple[tuple[Pattern, ...], ...]
    per: str = "kv_head"
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    metrics: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.per not in ("kv_head", "head"):
            raise ValueError(f"plan per must be 'kv_head' or 'head', got {self.per!r}")
        if len(self.layers) != self.model.layers:
            raise ValueError(
                f"plan has rules for {len(self.layers)} layers but its model has {self.model.layers}"
            )
        wanted = self.model.kv_heads if self.per == "kv_head" else self.model.heads
        for number, rules in enumerate(self.layers):
            if len(rules) != wanted:
                raise ValueError(
                    f"plan layer {number} has {len(rules)} rules but the model has {wanted} "
                    f"{'KV' if self.per == 'kv_head' else 'query'} heads"
                )
            for rule in rules:
                if not isinstance(rule, Pattern) or rule.heads is not None:
                    raise ValueError(f"plan layer {number} needs one pattern per head, got {rule!r}")
                if rule.bound_parts:
                    raise ValueError(
                        f"plan rules must be recipes, got {rule.bound_parts[0]} bound to tensors in layer "
                        f"{number}"
                    )
                if rule.free - {"N"}:
                    raise ValueError(f"plan rules may depend on N only, got {sorted(rule.free)} in {rule}")

    @property
    def is_causal(self) -> bool:
        """True for a decoder's plan: every rule is causal."""
        return all(rule.is_causal for rules in self.layers for rule in rules)

    def pattern(self, layer: int) -> Pattern:
        """The pattern of a layer, still elastic: per_kv_head([...]) or per_head([...])."""
        return (per_kv_head if self.per == "kv_head" else per_head)(self.layers[layer])

    def groups(self, layer: int) -> tuple[tuple[Pattern, ...], ...]:
        """The rules that share each KV head: one each for "kv_head", a group of query heads for "head"."""
        rules = self.layers[layer]
        width = 1 if self.per == "kv_head" else self.model.group
        return tuple(rules[a : a + width] for a in range(0, len(rules), width))

    def sizes(self, layer: int, length: int) -> tuple[int, ...]:
        """Keys c that each KV head keeps at request length N: the longest of the heads that share it.

        May exceed N for short requests (a ring is never smaller than its minimum); densities count min(c, N).
        """
        return tuple(max(kept(rule, length) for rule in rules) for rules in self.groups(layer))

    def layer_density(self, layer: int, length: int) -> float:
        """Deployed density of one layer: mean over its KV heads."""
        shares = [max(share(rule, length) for rule in rules) for rules in self.groups(layer)]
        return sum(shares) / len(shares)

    def density(self, length: int) -> float:
        """Deployed density at request length N: mean over layers and KV heads of min(c, N) / N."""
        return sum(self.layer_density(layer, length) for layer in range(len(self.layers))) / len(self.layers)

    def spans(self) -> tuple[list[list[float | None]], list[list[float | None]]]:
        """(alphas, betas) [layer][head] of the spans alpha + beta * N; None where a rule has no span."""
        lines = [[span_of(rule) or (None, None) for rule in rules] for rules in self.layers]
        return [[line[0] for line in rules] for rules in lines], [
            [line[1] for line in rules] for rules in lines
        ]

    def check(self, shape: ModelShape) -> None:
        """Raise PlanMismatch naming every difference between the plan's model and this one."""
        found = self.model.differences(shape)
        if found:
            name = self.model.name or "a model"
            raise PlanMismatch(
                f"this plan was made for {name} and does not fit {shape.name}: {'; '.join(found)}. "
                "Tune this model, or give the plan that belongs to it"
            )

    def on(self, shape: ModelShape) -> "Plan":
        """The plan placed on a model: checked, and with the model's description taken over.

        Rules per query head without a fingerprint (the official MoA files know neither KV heads nor weights)
        take the number of KV heads from the model, so that sizes and densities are those of its real cache.
        """
        if self.per == "head" and not self.model.fingerprint:
            replace(self, model=replace(self.model, kv_heads=self.model.heads)).check(
                replace(shape, kv_heads=shape.heads)
            )
        else:
            self.check(shape)
        return replace(self, model=shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: a table of the different patterns and, per layer and head, the number of its row."""
        table: dict[Pattern, int] = {}
        layers = [[table.setdefault(rule, len(table)) for rule in rules] for rules in self.layers]
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "model": asdict(self.model),
            "per": self.per,
            "patterns": [rule.to_dict() for rule in table],
            "layers": layers,
            "provenance": dict(self.provenance),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, value: Any, *, source: str = "plan") -> "Plan":
        """Inverse of ``to_dict``; UsageError says what is damaged or that the schema is newer."""
        body = check_schema(value, SCHEMA, VERSION, source=source)
        try:
            table = [Pattern.from_dict(rule) for rule in _list(body["patterns"], "patterns")]
            layers = [_list(rules, "layers") for rules in _list(body["layers"], "layers")]
            numbers = [[_row(number, len(table)) for number in rules] for rules in layers]
            return cls(
                model=ModelShape(**_object(body, "model")),
                per=body["per"],
                provenance=_object(body, "provenance"),
                metrics=_object(body, "metrics"),
                layers=tuple(tuple(table[number] for number in rules) for rules in numbers),
            )
        except KeyError as error:
            raise UsageError(
                f"{source} is damaged: it has no {error.args[0]!r}; write the plan anew"
            ) from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source} is damaged: {error}; write the plan anew") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, atomically; UsageError where the folder cannot be written."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ModelShape | None = None) -> "Plan":
        """Read a plan file, ours or an official {alphas, betas} file of thu-nics/MoA.

        With ``model`` the plan is placed on it (``on``): checked, and an official file gets its KV heads.
        UsageError for a missing or damaged file or a newer schema, PlanMismatch for another model.
        """
        value = read_json(path, what="plan")
        if isinstance(value, dict) and "alphas" in value and "schema" not in value:
            from attlas.pattern.official import from_official

            plan = from_official(value, source=f"plan {path}")
        else:
            plan = cls.from_dict(value, source=f"plan {path}")
        return plan if model is None else plan.on(model)


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(body[name], dict):
        raise ValueError(f"{name} must be an object with named fields, got {body[name]!r}")
    return dict(body[name])


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must hold lists, got {value!r}")
    return value


def _row(number: object, rows: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < rows:
        raise ValueError(f"layers must hold pattern numbers in 0..{rows - 1}, got {number!r}")
    return number
