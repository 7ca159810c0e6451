"""The `Score` protocol and the part of its algebra that needs no tensors.

Shapes: a *tile* is (..., rows, keys), a list of gathered edges is (edges,). In a tile the query comes as
(..., rows, 1, width), the key as (..., 1, keys, width): the same elementwise text serves both forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Clamped", "Edge", "Lowering", "PairResult", "Score", "ScoreSum", "side_by_side", "times"]


class Edge(NamedTuple):
    """What a score may know of the pair besides its tensors; fields broadcast against the tile.

    query_position, key_position: int64, (..., rows, 1) and (..., 1, keys); features: the edge's own, or None.
    """

    query_position: Tensor
    key_position: Tensor
    features: Tensor | None = None


class PairResult(NamedTuple):
    """logit (..., rows, keys); value: what is carried (`v_j` if unchanged); state: new edge features."""

    logit: Tensor
    value: Tensor
    state: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lowering:
    """A score written as a plain dot product: logit = scale * (query . key) + shift_i.

    query (B, H, N, D'), key (B, G, M, D'); shift (broadcasts to B, H, N) changes no softmax weight, only the
    lse, and is added to it; `largest` bounds the absolute value of the factors that lowering added (their
    rounding error scales with it); `extra` = D' - D columns, by which a caller zero-pads narrower values.
    """

    query: Tensor
    key: Tensor
    scale: float
    shift: Tensor | None = None
    largest: float = 0.0
    extra: int = 0


class Score:
    """A broadcasting, elementwise pair function: its `pair` is its definition and its reference.

    `tensors()` are explicit arguments of `pair` so that gradients reach them. Each broadcasts to
    (B, H, N, M, ...): an executor cuts axes of length > 1 to the tile that it computes, and nothing else.
    `edge_tensors()` belong to the edges of a graph and follow them: `pair(..., *tensors, *edge_tensors)`.
    A logit of -inf is an absent edge.
    """

    name: str = "score"
    kernel: str | None = None
    """Name of a fused form that a backend may use instead of `pair`; None if there is none."""

    def __init_subclass__(cls) -> None:
        """A class with a `pair` of its own inherits no fused form of another pair."""
        super().__init_subclass__()
        if "pair" in vars(cls):
            for name in ("kernel", "lower", "lowers"):
                if name not in vars(cls):
                    setattr(cls, name, vars(Score)[name])
            if "name" not in vars(cls):
                cls.name = cls.__name__.lower()

    def tensors(self) -> tuple[Tensor, ...]:
        """Learned or given tensors, each broadcasting to (B, H, N, M, ...)."""
        return ()

    def edge_tensors(self) -> tuple[Tensor, ...]:
        """Tensors of a graph's edges in its own order, each (E,), (E, H) or (E, H, ...), H or 1 heads.

        `pair` gets them of its pairs as (1, H or 1, pairs, ...), pairs being (edges,) or (rows, keys); for
        pairs that are no edge they hold those of some edge. A score that has any needs a Graph as the
        pattern.
        """
        return ()

    def split(self, tensors: Sequence[Tensor], *parts: "Score") -> list[tuple[Tensor, ...]]:
        """The arguments `tensors` of this score's `pair` as those of the scores that it is made of.

        Own tensors come first; then those of `parts`, then the edge tensors of `parts`, both in order.
        """
        plain = [len(part.tensors()) for part in parts]
        along = [len(part.edge_tensors()) for part in parts]
        ends = list(accumulate([len(tensors) - sum(plain) - sum(along), *plain, *along], initial=0))
        cuts = [tuple(tensors[a:b]) for a, b in pairwise(ends)]
        count = len(parts)
        return [cuts[0], *(cuts[1 + at] + cuts[1 + count + at] for at in range(count))]

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        """Logit, value and new edge state of the pairs; see the module's legend for shapes."""
        raise NotImplementedError

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        """The score as a dot product of (B, H, N, D') with (B, G, M, D'), or None where there is none.

        `edge` holds the positions of all rows and keys: (B or 1, 1, N, 1) and (B or 1, 1, 1, M).
        """
        return None

    def lowers(self, dtype: torch.dtype) -> bool:
        """Whether `lower` gives a dot product for queries of this dtype."""
        return False

    def terms(self) -> "tuple[Score, ...]":
        """The scores whose logits add up to this one's."""
        return (self,)

    def __add__(self, other: "Score") -> "ScoreSum":
        if not isinstance(other, Score):
            return NotImplemented
        return ScoreSum(self, other)

    def clamp(self, low: float = -float("inf"), high: float = float("inf")) -> "Clamped":
        """Logits limited to [low, high]; absent edges (-inf) stay absent."""
        return Clamped(self, low, high)


@dataclass(frozen=True, eq=False)
class ScoreSum(Score):
    """logit = first + second. At most one of the two may change the value, and one may return a state."""

    first: Score
    second: Score

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.first.name} + {self.second.name}"

    def tensors(self) -> tuple[Tensor, ...]:
        return self.first.tensors() + self.second.tensors()

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return self.first.edge_tensors() + self.second.edge_tensors()

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        _, to_first, to_second = self.split(tensors, self.first, self.second)
        one = self.first.pair(query, key, value, edge, *to_first)
        two = self.second.pair(query, key, value, edge, *to_second)
        if one.value is not value and two.value is not value:
            raise ValueError(f"score {self.name}: both terms change the value; only one term of a sum may")
        if one.state is not None and two.state is not None:
            raise ValueError(
                f"score {self.name}: both terms return an edge state; only one term of a sum may"
            )
        return PairResult(
            one.logit + two.logit,
            two.value if one.value is value else one.value,
            two.state if one.state is None else one.state,
        )

    def terms(self) -> tuple[Score, ...]:
        return self.first.terms() + self.second.terms()

    def lowers(self, dtype: torch.dtype) -> bool:
        return self.first.lowers(dtype) and self.second.lowers(dtype)

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        """Widths side by side: q' = (q1, q2 * s2 / s1), k' = (k1, k2), scale s1."""
        one = self.first.lower(query, key, edge)
        two = self.second.lower(query, key, edge)
        if one is None or two is None:
            return None
        if one.query.shape[-1] == 0:
            joined_query, joined_key, scale = two.query, two.key, two.scale
        else:
            joined_query = side_by_side(one.query, two.query * (two.scale / one.scale))
            joined_key = side_by_side(one.key, two.key)
            scale = one.scale
        shifts = [part.shift for part in (one, two) if part.shift is not None]
        shift = None if not shifts else shifts[0] if len(shifts) == 1 else shifts[0] + shifts[1]
        extra = joined_query.shape[-1] - query.shape[-1]
        return Lowering(joined_query, joined_key, scale, shift, max(one.largest, two.largest), extra)


@dataclass(frozen=True, eq=False)
class Clamped(Score):
    """logit = min(max(inner, low), high); made by `score.clamp(low, high)`."""

    inner: Score
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"clamp: low must be below high, got low={self.low}, high={self.high}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"clamp({self.inner.name}, {self.low:g}, {self.high:g})"

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors()

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return self.inner.edge_tensors()

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        result = self.inner.pair(query, key, value, edge, *tensors)
        absent = result.logit == -float("inf")
        limited = result.logit.clamp(self.low, self.high).masked_fill(absent, -float("inf"))
        return result._replace(logit=limited)


def times(factor: Tensor, logit: Tensor) -> Tensor:
    """factor * logit, but -inf where the logit is -inf: an absent edge has no sign, and no gradient."""
    absent = logit == -float("inf")
    return (factor * logit.masked_fill(absent, 0.0)).masked_fill(absent, -float("inf"))


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Columns of both; the axes before the last broadcast."""
    lead = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat((left.expand(*lead, -1), right.expand(*lead, -1)), dim=-1)
