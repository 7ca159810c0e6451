"""Patterns of their own for each query head or each KV head, and arbitrary predicates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attlas.pattern import intervals as sets
from attlas.pattern.base import Pattern
from attlas.pattern.intervals import Intervals
from attlas.pattern.parts import check_parts
from attlas.pattern.registry import register

__all__ = ["Opaque", "PerHead", "PerKVHead", "opaque", "per_head", "per_kv_head"]


@dataclass(frozen=True)
class _PerHead(Pattern):
    patterns: tuple[Pattern, ...]
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError(f"{self.name} needs at least one pattern")
        check_parts(self.name, self.patterns)
        for h, pattern in enumerate(self.patterns):
            if pattern.heads is not None:
                raise ValueError(
                    f"{self.name} cannot hold a pattern that has heads of its own (head {h}: {pattern})"
                )

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        raise ValueError(f"{self.name} has {len(self.patterns)} patterns: choose one with pattern.head(h)")

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        return self.head(head).intervals(rows, sizes)

    @property
    def is_causal(self) -> bool:
        return all(pattern.is_causal for pattern in self.patterns)

    @property
    def heads(self) -> int | None:
        return len(self.patterns)

    @property
    def per(self) -> str | None:
        return self.kind

    def head(self, index: int) -> Pattern:
        if not 0 <= index < len(self.patterns):
            raise ValueError(f"head must be in 0..{len(self.patterns) - 1}, got {index}")
        return self.patterns[index]


@register("per_head")
@dataclass(frozen=True)
class PerHead(_PerHead):
    """One pattern per query head."""

    kind: ClassVar[str] = "head"


@register("per_kv_head")
@dataclass(frozen=True)
class PerKVHead(_PerHead):
    """One pattern per KV head, shared by the consecutive query heads that use it."""

    kind: ClassVar[str] = "kv_head"


@register("opaque")
@dataclass(frozen=True)
class Opaque(Pattern):
    """An arbitrary predicate ``fn(i, j) -> bool tensor``, elementwise and broadcasting on positions.

    It has no analytic layout (every tile may be touched, every part needs its mask), its counts cost O(n * n)
    time in row chunks, and it has no JSON form. ``opaque_parts`` of any pattern that holds it says so.
    """

    label: str
    fn: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.label or not isinstance(self.label, str):
            raise ValueError(f"opaque needs a name to be shown by, got {self.label!r}")
        if not callable(self.fn):
            raise TypeError(f"opaque needs a function of (i, j), got {self.fn!r}")

    @property
    def opaque_parts(self) -> tuple[str, ...]:
        return (self.label,)

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        seen = self.fn(i, j)
        shape = torch.broadcast_shapes(i.shape, j.shape)
        if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
            raise TypeError(
                f"opaque {self.label!r} must return a bool tensor, got {getattr(seen, 'dtype', seen)!r}"
            )
        return seen.expand(shape)

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        step = max(1, (1 << 24) // max(1, sizes["N"]))
        keys = torch.arange(sizes["N"])
        chunks = [
            self.pair(torch.from_numpy(rows[a : a + step, None]), keys, sizes).numpy()
            for a in range(0, len(rows), step)
        ]
        return sets.stack([sets.from_bool(chunk) for chunk in chunks])


def per_head(patterns: Sequence[Pattern]) -> Pattern:
    """One pattern per query head."""
    return PerHead(tuple(patterns))


def per_kv_head(patterns: Sequence[Pattern]) -> Pattern:
    """One pattern per KV head; consecutive query heads share it."""
    return PerKVHead(tuple(patterns))


def opaque(fn: Callable[[Any, Any], Any], name: str) -> Pattern:
    """An arbitrary predicate on positions, shown as ``name``: no layout, no JSON (see ``Opaque``)."""
    return Opaque(name, fn)
