"""One attention call, validated: what every backend is asked and answers.

Legend: B batch, H query heads, G KV heads (H = G * group), N queries, M keys, D width, V value width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attlas.attend.aggregate import Aggregate, Sum
from attlas.attend.normaliser import Normaliser, Softmax
from attlas.attend.view import KVView
from attlas.graph import Graph
from attlas.pattern import Pattern, Tokens, as_pattern
from attlas.score import Dot, Edge, Score

__all__ = ["Piece", "Request", "Result", "make_request", "present", "take"]

Extra = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """Query heads of one request that share a pattern and lie evenly on their KV heads: a unit of work.

    heads: query heads, KV head by KV head; kv_heads: ids of the KV heads; key (B, G', M, D), value (B, G',
    M, V).
    """

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    pattern: Pattern | None
    key: Tensor
    value: Tensor
    k_at: Tokens

    @property
    def group(self) -> int:
        return len(self.heads) // len(self.kv_heads)


@dataclass(frozen=True, eq=False)
class Request:
    """Everything about one call; made by `make_request`, which validates it.

    Either key and value with k_at, or a view (then key, value and k_at are None). `pattern` has no unbound
    size.
    """

    query: Tensor
    key: Tensor | None
    value: Tensor | None
    view: KVView | None
    q_at: Tokens
    k_at: Tokens | None
    pattern: Pattern | None = None
    score: Score = field(default_factory=Dot)
    normaliser: Normaliser = field(default_factory=Softmax)
    aggregate: Aggregate = field(default_factory=Sum)
    gate: Tensor | None = None
    extra: Extra = ()
    dropout: float = 0.0
    seed: int = 0
    return_state: bool = False
    return_edge: bool = False
    strict: bool = False
    # What was found out about this request and its variants (`but`): it lives as long as they do.
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def batch(self) -> int:
        keys = [self.key, self.value] if self.view is None else [self.view.groups[0].key]
        return max(self.query.shape[0], *(tensor.shape[0] for tensor in keys if tensor is not None))

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.view.kv_heads if self.key is None and self.view is not None else _given(self.key).shape[1]

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def queries(self) -> int:
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        """Number of keys (of the longest group of a view)."""
        return self.view.keys if self.key is None and self.view is not None else _given(self.key).shape[2]

    @property
    def width(self) -> int:
        return self.query.shape[3]

    @property
    def value_width(self) -> int:
        return self.view.groups[0].value.shape[3] if self.view is not None else _given(self.value).shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.query.dtype

    @property
    def device(self) -> torch.device:
        return self.query.device

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that may carry gradient."""
        held = [self.query]
        if self.view is None:
            held += [_given(self.key), _given(self.value)]
        else:
            held += [tensor for group in self.view.groups for tensor in (group.key, group.value)]
        held += [*self.score.tensors(), *self.edge_tensors, *self.normaliser.tensors()]
        held += [] if self.gate is None else [self.gate]
        return (*held, *(tensor for pair in self.extra for tensor in pair))

    @property
    def edge_tensors(self) -> tuple[Tensor, ...]:
        """The score's tensors of edges, asked for once: to make them may cost a pass over the edges."""
        known = ("edge tensors", id(self.score))
        if known not in self.memo:
            self.memo[known] = self.score.edge_tensors()
        return self.memo[known]

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient may be asked for."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    @property
    def plain_softmax(self) -> bool:
        """Softmax itself (a subclass may weigh otherwise) without a sink, of which lse is the whole state."""
        return type(self.normaliser) is Softmax and self.normaliser.sink is None

    @cached_property
    def patterns(self) -> tuple[Pattern | None, ...]:
        """One bound pattern per query head; None sees everything."""
        if self.pattern is None:
            return (None,) * self.heads
        return self.pattern.expand(self.heads, self.kv_heads)

    @property
    def edge(self) -> Edge:
        """Positions of all rows and keys, (B or 1, 1, N, 1) and (B or 1, 1, 1, M), for `Score.lower`."""
        if self.k_at is None:
            raise ValueError("a view has positions per group: use pieces()")
        return Edge(
            _batched(self.q_at.positions(self.device))[:, None, :, None],
            _batched(self.k_at.positions(self.device))[:, None, None, :],
        )

    def but(self, **changes: object) -> "Request":
        """The same request with some fields changed; nothing is validated anew."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def expanded(self) -> "Request":
        """The same request with the batch of query, key and value made equal, as views."""
        shapes = {tensor.shape[0] for tensor in (self.query, self.key, self.value) if tensor is not None}
        if self.view is not None or len(shapes) == 1:
            return self
        wide = {
            name: _given(getattr(self, name)).expand(self.batch, -1, -1, -1)
            for name in ("query", "key", "value")
        }
        return self.but(**wide)

    def pieces(self) -> tuple[Piece, ...]:
        """The request cut into units of one pattern and one token space, in which query heads lie evenly."""
        if self.view is None:
            sources = [(tuple(range(self.kv_heads)), _given(self.key), _given(self.value), self.k_at)]
        else:
            sources = [
                (group.heads, group.key, group.value, group.tokens(self.q_at.total))
                for group in self.view.groups
            ]
        found = []
        for kv_heads, key, value, k_at in sources:
            if not key.shape[2]:
                # Executors may count on one key: an absent one stands in for none.
                key, value = (
                    key.new_zeros(*key.shape[:2], 1, key.shape[3]),
                    value.new_zeros(*value.shape[:2], 1, value.shape[3]),
                )
                k_at = Tokens(1, valid=torch.zeros(1, dtype=torch.bool, device=key.device))
            for pattern, slots, heads in self._even(kv_heads):
                chosen = tuple(kv_heads[slot] for slot in slots)
                found.append(
                    Piece(heads, chosen, pattern, take(key, slots), take(value, slots), k_at or Tokens(0))
                )
        return tuple(found)

    def _even(self, kv_heads: Sequence[int]) -> list[tuple[Pattern | None, tuple[int, ...], tuple[int, ...]]]:
        """(pattern, slots among kv_heads, query heads) with equally many query heads in every slot."""
        buckets: dict[tuple[Pattern | None, int], list[tuple[int, tuple[int, ...]]]] = {}
        for slot, kv_head in enumerate(kv_heads):
            own: dict[Pattern | None, list[int]] = {}
            for head in range(kv_head * self.group, (kv_head + 1) * self.group):
                own.setdefault(self.patterns[head], []).append(head)
            for pattern, heads in own.items():
                buckets.setdefault((pattern, len(heads)), []).append((slot, tuple(heads)))
        return [
            (pattern, tuple(slot for slot, _ in found), tuple(head for _, heads in found for head in heads))
            for (pattern, _), found in buckets.items()
        ]


@dataclass(frozen=True, eq=False)
class Result:
    """What a generic backend gives: out (B, H, N, V), lse and total (B, H, N), edge states (B, H, E, ...)."""

    out: Tensor
    lse: Tensor
    total: Tensor | None = None
    edge: Tensor | None = None


def take(tensor: Tensor, heads: Sequence[int], axis: int = 1) -> Tensor:
    """These heads of a tensor: the tensor itself or a slice of it where they are consecutive."""
    if tensor.shape[axis] == 1 and len(heads) != 1:
        return tensor
    first, count = heads[0], len(heads)
    if tuple(heads) == tuple(range(first, first + count)):
        return tensor if count == tensor.shape[axis] else tensor.narrow(axis, first, count)
    return tensor.index_select(axis, torch.tensor(heads, device=tensor.device))


def present(tensor: Tensor, k_at: Tokens | None) -> Tensor:
    """Keys or values (B, G, M, ...) with zeros for absent ones: their memory may hold anything, and 0 * NaN
    is NaN."""
    if k_at is None or k_at.valid is None:
        return tensor
    absent = ~k_at.valid.to(tensor.device)
    return tensor.masked_fill((absent if absent.dim() == 2 else absent[None])[:, None, :, None], 0.0)


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("this request holds a KVView: use pieces() instead of key and value")
    return tensor


def _batched(positions: Tensor) -> Tensor:
    return positions if positions.dim() == 2 else positions.unsqueeze(0)


def make_request(
    query: Tensor,
    key: Tensor | KVView,
    value: Tensor | None = None,
    *,
    pattern: Pattern | Graph | None = None,
    score: Score | None = None,
    normaliser: Normaliser | None = None,
    aggregate: Aggregate | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
    gate: Tensor | None = None,
    extra: Sequence[tuple[Tensor, Tensor]] | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    return_state: bool = False,
    return_edge: bool = False,
    strict: bool = False,
) -> Request:
    """Validate the arguments of `attend` and bind the pattern; its errors say what to change."""
    from attlas.attend import checks

    view = key if isinstance(key, KVView) else None
    pattern = as_pattern(pattern)
    checks.tensors(query, key, value)
    q_at, k_at = checks.tokens(query, key, q_at, k_at, pattern)
    score, normaliser, aggregate = score or Dot(), normaliser or Softmax(), aggregate or Sum()
    checks.parts(pattern, score, normaliser, aggregate)
    checks.numbers(dropout, seed, extra)
    if pattern is not None:
        pattern = pattern.resolved(q_at, k_at or Tokens(0))
    if seed is None:
        # One draw of torch's generator per call: torch.manual_seed makes dropout repeatable.
        seed = int(torch.randint(0, 2**31 - 1, ())) if dropout else 0
    request = Request(
        query,
        None if view is not None else key,  # type: ignore[arg-type]
        value,
        view,
        q_at,
        k_at,
        pattern,
        score,
        normaliser,
        aggregate,
        gate,
        tuple(extra or ()),
        dropout,
        seed,
        return_state,
        return_edge,
        strict,
    )
    checks.request(request)
    return request
