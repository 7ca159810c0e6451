"""Multi-head self-attention with a pattern, a score and a normaliser of your choice."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.attend import Normaliser, Softmax, attend
from attlas.cache.spans import Span, span_of
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.rotary import rotary
from attlas.pattern import Pattern, Tokens, causal, window
from attlas.scan import State
from attlas.score import Dot, Score

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    """x -> W_o attend(W_q x, W_k x, W_v x), heads side by side in the width.

    Args:
        width, heads: of the input; `kv_heads` fewer key-value heads (grouped queries).
        pattern: who attends to whom; sizes relative to a length are evaluated at the tokens' own.
        score, normaliser: as in `attend`.
        base: of rotary positions; None: no positions here. factor: they are divided by it (see `rotary`).
        bias: of the four projections. head_width: width / heads unless given.
        norm: makes a normalisation of the head width, for queries and keys before rotary positions.

    Shapes: (B, N, width) -> (B, N, width). Cost: 4 width^2 N for the projections plus that of the pattern.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        pattern: Pattern | None = None,
        score: Score | None = None,
        normaliser: Normaliser | None = None,
        base: float | None = None,
        factor: float = 1.0,
        bias: bool = False,
        head_width: int | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if (head_width is None and width % heads) or heads % kv_heads:
            raise ValueError(
                f"width must be a multiple of heads and heads of kv_heads, got {width}, {heads}, {kv_heads}"
            )
        self.heads, self.kv_heads, self.backend = heads, kv_heads, backend
        self.base, self.factor = base, factor
        self.pattern = pattern
        self.score = Dot() if score is None else score
        self.normaliser = Softmax() if normaliser is None else normaliser
        head = width // heads if head_width is None else head_width
        self.query = nn.Linear(width, heads * head, bias=bias)
        self.key = nn.Linear(width, kv_heads * head, bias=bias)
        self.value = nn.Linear(width, kv_heads * head, bias=bias)
        self.out = nn.Linear(heads * head, width, bias=bias)
        self.norms = nn.ModuleDict({} if norm is None else {name: norm(head) for name in ("query", "key")})

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        at: Tokens | None = None,
        valid: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """`context`: where keys and values come from (x itself unless given), `valid`: its real tokens.

        `at`: the token space of the rows, for grids and explicit positions; default: 0 .. N - 1, of the
        context likewise.
        """
        if at is not None and (context is not None or valid is not None):
            raise ValueError("give at with its own valid, without context and valid")
        own = Tokens(x.shape[1], total=x.shape[1]) if at is None else at
        there = own
        if context is not None or valid is not None:
            keys = x.shape[1] if context is None else context.shape[1]
            there = Tokens(keys, total=keys, valid=valid)
        source = x if context is None else context
        query, key, value = self._query(x, own), *self._key_value(source, there)
        return self._output(self._attended(query, key, value, own, there), x)

    def start(self, batch: int) -> State:
        """Before the first token."""
        head = self.key.weight.shape[0] // self.kv_heads
        like = self.key.weight
        nothing = torch.zeros(batch, self.kv_heads, 0, head, dtype=like.dtype, device=like.device)
        position = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return State({"key": nothing, "value": nothing}, position)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state: the keys and values that a later token can see."""
        if self.pattern is None or not self.pattern.is_causal:
            raise ValueError(
                "SelfAttention goes on piece by piece with a causal pattern only: earlier outputs would need "
                f"later tokens under {self.pattern}"
            )
        before, count = int(state.position[0]), x.shape[1]
        if bool((state.position != before).any()):
            raise ValueError("all rows of a state must stand at one position to go on together")
        span = span_of(self.pattern, None)
        index = _kept(before, span, x.device)
        own = Tokens(count, start=before)
        new_key, new_value = self._key_value(x, own)
        key, value = (
            torch.cat([state[name].to(part.dtype), part], 2)
            for name, part in (("key", new_key), ("value", new_value))
        )
        index = torch.cat([index, before + torch.arange(count, device=x.device)])
        there = Tokens(len(index), index=index, total=before + count)
        out = self._output(self._attended(self._query(x, own), key, value, own, there), x)
        left = torch.isin(index, _kept(before + count, span, x.device)).nonzero()[:, 0]
        parts = {"key": key.index_select(2, left), "value": value.index_select(2, left)}
        return out, State(parts, state.position + count)

    def _query(self, x: Tensor, at: Tokens) -> Tensor:
        return self._placed(self.part("query", x), at)

    def _key_value(self, x: Tensor, at: Tokens) -> tuple[Tensor, Tensor]:
        return self._placed(self.part("key", x), at), self.part("value", x)

    def part(self, name: str, x: Tensor) -> Tensor:
        """Query, key or value before rotary positions, (B, heads, N, head width)."""
        heads = self.heads if name == "query" else self.kv_heads
        part: Tensor = getattr(self, name)(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        return self.norms[name](part) if name in self.norms else part

    def _placed(self, part: Tensor, at: Tokens) -> Tensor:
        if self.base is None:
            return part
        return rotary(part, at.positions(part.device), base=self.base, factor=self.factor)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, q_at: Tokens, k_at: Tokens) -> Tensor:
        found = attend(
            query, key, value, pattern=self.pattern, score=self.score, normaliser=self.normaliser,
            q_at=q_at, k_at=k_at, backend=self.backend,
        )  # fmt: skip
        return torch.as_tensor(found)

    def _output(self, heads: Tensor, x: Tensor) -> Tensor:
        """What the heads found (B, heads, N, head width), put together for the tokens x that asked."""
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out


def _kept(count: int, span: Span, device: torch.device) -> Tensor:
    """Positions that tokens from `count` on can still see."""
    if span.ring is None:
        return torch.arange(count, device=device)
    sinks = torch.arange(min(span.sink, count), device=device)
    first = max(span.sink, count - span.ring + 1)
    return torch.cat([sinks, torch.arange(first, count, device=device)]) if first < count else sinks


WINDOW = 16
"""Tokens that the registered mixer "window" sees, its own included."""


def _softmax(setting: Setting) -> nn.Module:
    causal_self = setting.causal and not setting.cross
    pattern = causal() if causal_self else None
    return SelfAttention(setting.width, setting.heads, pattern=pattern, base=10000.0 if causal_self else None)


def _window(setting: Setting) -> nn.Module:
    return SelfAttention(setting.width, setting.heads, pattern=causal() & window(WINDOW), base=10000.0)


register_mixer(
    MixerEntry(
        "softmax", _softmax, frozenset({"NS", "CS", "NC", "CC"}), stateful=True, padding=True, permutes=True
    )
)
register_mixer(
    MixerEntry(
        "window",
        _window,
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        local=True,
        why_not="a noncausal window is a pattern of SelfAttention; across sequences places mean nothing",
    )
)
