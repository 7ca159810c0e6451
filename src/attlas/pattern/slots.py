"""Named slots: recipes about properties of tokens that are known only when the tokens are.

``same("line")`` is a recipe with JSON and text; ``bind(line=labels)`` fills it with one entry per *position*
(not per row of a call), so that a decoded token or a chunk needs no table of its own. A leading batch axis
gives every batch row its own pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attlas.pattern import intervals as sets
from attlas.pattern.base import Pattern
from attlas.pattern.bound import Bound, batch_of, bound_kind, check_integers
from attlas.pattern.intervals import Intervals
from attlas.pattern.registry import register
from attlas.pattern.relation import Relation, looked_up, relation
from attlas.pattern.tokens import Tokens

__all__ = ["Linked", "LinkedTokens", "Role", "RoleTokens", "Same", "SameTokens", "linked", "role", "same"]

Side = Literal["key", "query"]


@dataclass(frozen=True)
class _Slot(Pattern):
    slot: str
    wanted: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.slot, str) or not self.slot.isidentifier() or self.slot == "N":
            raise ValueError(
                f"{self.name} needs a slot name such as 'line' (not 'N', the length), got {self.slot!r}"
            )

    @cached_property
    def slots(self) -> Mapping[str, str]:
        return {self.slot: self.wanted}

    def _filled(self, tensor: Tensor) -> Pattern:
        raise NotImplementedError

    def _bound(self, values: Mapping[str, Any]) -> Pattern:
        return self._filled(values[self.slot]) if self.slot in values else self

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        raise ValueError(f"slot {self.slot!r} is not filled: call pattern.bind({self.slot}=...)")

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        raise ValueError(f"slot {self.slot!r} is not filled: call pattern.bind({self.slot}=...)")


@register("same")
@dataclass(frozen=True)
class Same(_Slot):
    """Query and key have the same label: the same line, speaker, image, document."""

    wanted: ClassVar[str] = "an integer label per token, (tokens,) or (batch, tokens), negative: none"

    def _filled(self, tensor: Tensor) -> Pattern:
        return SameTokens(self.slot, tensor)


@register("role")
@dataclass(frozen=True)
class Role(_Slot):
    """The key has the role, for every query; with side "query" the query has it, for every key."""

    side: Side = field(default="key")
    wanted: ClassVar[str] = "a bool per token, (tokens,) or (batch, tokens)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side not in ("key", "query"):
            raise ValueError(f"role side must be 'key' or 'query', got {self.side!r}")

    def _filled(self, tensor: Tensor) -> Pattern:
        return RoleTokens(self.slot, tensor, self.side)


@register("linked")
@dataclass(frozen=True)
class Linked(_Slot):
    """The pair is a link of a given relation: a tree, a reading order, citations."""

    wanted: ClassVar[str] = (
        "links (query position, key position) as integers (2, links) or (batch, 2, links), negative: none"
    )

    def _filled(self, tensor: Tensor) -> Pattern:
        return LinkedTokens(self.slot, tensor)


@dataclass(frozen=True, eq=False)
class _Filled(Bound):
    slot: str
    tensor: Tensor = field(repr=False)
    axes_of_row: ClassVar[int] = 1

    @property
    def label(self) -> str:
        return f"{self.name}({self.slot!r}, bound)"

    @cached_property
    def batch(self) -> int | None:
        return batch_of(self.tensor, self.axes_of_row)

    @cached_property
    def _row(self) -> Tensor:
        """The tensor without a batch axis of 1."""
        one = self.tensor.dim() > self.axes_of_row and self.batch is None
        return self.tensor[0] if one else self.tensor

    @cached_property
    def _batch_rows(self) -> tuple[Pattern, ...]:
        return tuple(type(self)(self.slot, row, *self._rest()) for row in self.tensor)

    def _rest(self) -> tuple[Any, ...]:
        return ()

    def batch_row(self, index: int) -> Pattern:
        if self.batch is None:
            return self
        if not 0 <= index < self.batch:
            raise ValueError(f"batch row must be in 0..{self.batch - 1}, got {index}")
        return self._batch_rows[index]


@bound_kind("same")
@dataclass(frozen=True, eq=False)
class SameTokens(_Filled):
    """``Same`` with its labels; tokens with a negative label see nobody and are seen by nobody."""

    def __post_init__(self) -> None:
        check_integers(f"slot {self.slot!r} of same", self.tensor, (1, 2), "(tokens,) or (batch, tokens)")

    def check_tokens(self, q_at: Tokens, k_at: Tokens) -> None:
        self.covers("queries", q_at, 0, self.tensor.shape[-1])
        self.covers("keys", k_at, 0, self.tensor.shape[-1])

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        mine, other = looked_up(self._row, i, -1), looked_up(self._row, j, -1)
        return (mine == other) & (mine >= 0)

    @cached_property
    def _places(self) -> tuple[np.ndarray, Relation]:
        """(number of its label per position, -1 for none; positions of every label)."""
        labels = self._row.cpu()
        known, number = torch.unique(labels, return_inverse=True)
        found = relation(number, torch.arange(labels.numel()), known.numel(), labels >= 0)
        return number.where(labels >= 0, -1).numpy(), found

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        number, places = self._places
        inside = (rows >= 0) & (rows < len(number))
        mine = np.where(inside, np.append(number, -1)[np.where(inside, rows, 0)], -1)
        return sets.clip(places.intervals(mine), 0, sizes["N"])


@bound_kind("role")
@dataclass(frozen=True, eq=False)
class RoleTokens(_Filled):
    """``Role`` with its flags."""

    side: Side = "key"

    def __post_init__(self) -> None:
        if self.tensor.dtype != torch.bool:
            raise TypeError(f"slot {self.slot!r} of role must be a bool tensor, got {self.tensor.dtype}")
        if self.tensor.dim() not in (1, 2):
            raise ValueError(
                f"slot {self.slot!r} of role must have shape (tokens,) or (batch, tokens), "
                f"got {tuple(self.tensor.shape)}"
            )

    def _rest(self) -> tuple[Any, ...]:
        return (self.side,)

    def check_tokens(self, q_at: Tokens, k_at: Tokens) -> None:
        side, space = ("queries", q_at) if self.side == "query" else ("keys", k_at)
        self.covers(side, space, 0, self.tensor.shape[-1])

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        mine, other = (i, j) if self.side == "query" else (j, i)
        return looked_up(self._row, mine, False) & torch.ones_like(other, dtype=torch.bool)

    @cached_property
    def _flags(self) -> np.ndarray:
        return self._row.cpu().numpy()

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        if self.side == "query":
            inside = (rows >= 0) & (rows < len(self._flags))
            seen = np.append(self._flags, False)[np.where(inside, rows, len(self._flags))]
            return sets.ranges(0, np.where(seen, sizes["N"], 0), sizes["N"], len(rows))
        one = sets.clip(sets.from_bool(self._flags[None]), 0, sizes["N"])
        return one[np.zeros(len(rows), np.int64)]


@bound_kind("linked")
@dataclass(frozen=True, eq=False)
class LinkedTokens(_Filled):
    """``Linked`` with its links; a link given twice is one pair."""

    axes_of_row: ClassVar[int] = 2

    def __post_init__(self) -> None:
        what, shape = f"slot {self.slot!r} of linked", "(2, links) or (batch, 2, links)"
        check_integers(what, self.tensor, (2, 3), shape)
        if self.tensor.shape[-2] != 2:
            raise ValueError(f"{what} must have shape {shape}, got {tuple(self.tensor.shape)}")

    @cached_property
    def _relation(self) -> Relation:
        query, key = self._row.to(torch.int64).unbind(-2)
        rows = int(query.max()) + 1 if query.numel() else 0
        present = (query >= 0) & (key >= 0)
        if self.batch is not None:
            query = query + torch.arange(self.batch, device=query.device)[:, None] * rows
        return relation(query, key, rows, present, self.batch)

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        return self._relation.has(i, j)

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        return sets.clip(self._relation.intervals(rows), 0, sizes["N"])


def same(slot: str) -> Pattern:
    """Pairs of tokens with the same label: ``same("line")``, filled by ``bind(line=labels)``."""
    return Same(slot)


def role(slot: str, side: Side = "key") -> Pattern:
    """Pairs whose key (or query) has a role: ``role("text")``, filled by ``bind(text=flags)``."""
    return Role(slot, side)


def linked(slot: str) -> Pattern:
    """Pairs that are links of a relation: ``linked("tree")``, filled by ``bind(tree=links)``."""
    return Linked(slot)
