"""Titans' memory as context (MAC), causal and as the paper writes it, and the gate of its layers.

    segments S of x:  h = M(S W_Q);  y = Attn(p || h || S);  write y;  out = y * M(y)

p are learned persistent tokens, a * b is `Gate`. Source: arXiv 2501.00663.

Legend: B batch, H heads, N tokens, C width, P persistent tokens, S tokens of a segment.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.layers.rotary import rotary
from attlas.layers.titans_memory import LongTermMemory, at_front, back_in_place
from attlas.pattern import Tokens, causal
from attlas.scan import State

__all__ = [
    "BASE",
    "PERSISTENT",
    "SEGMENT",
    "Gate",
    "LiteralMemoryAsContext",
    "MemoryAsContext",
    "persistent_tokens",
]

SEGMENT, PERSISTENT = 16, 4
"""Unless given; the paper's sizes are not known."""
BASE = 10000.0
COLUMNS = ("key", "value")


class Gate(nn.Module):
    """a * b = silu(norm(a)) silu(norm(b)), RMS norms with a learned vector each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, a: Float[Tensor, "B N C"], b: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Elementwise."""
        # Under autocast the inputs are narrower than the norms' vectors.
        kind = self.first.weight.dtype
        return functional.silu(self.first(a.to(kind))) * functional.silu(self.second(b.to(kind)))


class MemoryAsContext(nn.Module):
    """MAC, causal: in each segment, attention over persistent tokens, memory reads and the segment.

    The reads come from the memory as the segment found it. The read made for position j is seen by positions
    from j on, as token j itself is, and the output of position i reads the memory after i was written; as
    written in the paper, both let a token see later ones of its segment (`LiteralMemoryAsContext`).

    Args:
        memory: `LongTermMemory` of the width.
        heads, base: of the attention, and of its rotary positions within a segment (None: none).
        segment: S; persistent: P.

    Shapes: (B, N, width) -> (B, N, width), any N. Cost: N (P + 2 S) pairs, and the memory's. State: the
    memory now and its weights at the segment's start, the segment's keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        memory: LongTermMemory,
        *,
        segment: int = SEGMENT,
        persistent: int = PERSISTENT,
        base: float | None = BASE,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if segment < 1:
            raise ValueError(f"segment must be at least 1 token, got {segment}")
        self.width, self.heads, self.segment, self.base = width, heads, segment, base
        self.memory = memory
        self.persistent = persistent_tokens(persistent, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate = Gate(width)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; valid tokens are neighbours whatever stands between them, others give 0."""
        return back_in_place(self.advance(at_front(x, valid), self.start(len(x)))[0], valid)

    def start(self, batch: int) -> State:
        """The initial memory, and an empty segment."""
        memory = self.memory.start(batch)
        return self._next_segment(State({"memory": memory, "past": memory.nested("query")}, memory.position))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of rows that all stand at one position."""
        at = _position(state)
        found, done = [x[:, :0]], 0
        while done < x.shape[1]:
            place = (at + done) % self.segment
            count = min(self.segment - place, x.shape[1] - done)
            if place == 0:
                state = self._next_segment(state)
            out, state = self._within(x[:, done : done + count], state, place)
            found.append(out)
            done += count
        return torch.cat(found, 1), state

    def _next_segment(self, state: State) -> State:
        """The memory's weights as they are now, and no keys."""
        fast = state.nested("memory").nested("memory")
        found = {name: part for name, part in fast.parts.items() if name.startswith("weight")}
        empty = self.key.weight.new_zeros(len(state.position), self.heads, 0, self.width // self.heads)
        kept = {name: state.nested(name) for name in ("memory", "past")}
        keys = {f"{name} {column}": empty for name in ("context", "own") for column in COLUMNS}
        return State({**kept, "found": State(found, fast.position), **keys}, state.position)

    def _within(self, x: Tensor, state: State, place: int) -> tuple[Tensor, State]:
        """Tokens of one segment, from its `place` on."""
        context, past = self.memory.recall(x, state.nested("past"), state.nested("found"))
        context_at, own_at = self._stands(place + x.shape[1], x.device)
        first = torch.arange(len(self.persistent), device=x.device)
        groups = {
            "context": self._key_value(context, context_at[place:]),
            "own": self._key_value(x, own_at[place:]),
        }
        seen = {
            f"{name} {column}": torch.cat([state[f"{name} {column}"].to(x.dtype), part], 2)
            for name, pair in groups.items()
            for column, part in zip(COLUMNS, pair, strict=True)
        }
        lasting = self._key_value(self.persistent.expand(len(x), -1, -1), first)
        query = self._placed(self._by_head(self.query(x)), own_at[place:])
        key, value = (
            torch.cat([part, seen[f"context {column}"], seen[f"own {column}"]], 2).to(query.dtype)
            for column, part in zip(COLUMNS, lasting, strict=True)
        )
        y = attend(
            query, key, value, pattern=causal(),
            q_at=Tokens.at(own_at[place:]), k_at=Tokens.at(torch.cat([first, context_at, own_at])),
        )  # fmt: skip
        y = self.out(y.transpose(1, 2).flatten(2))
        read, memory = self._written(y, state.nested("memory"))
        kept = {"memory": memory, "past": past, "found": state.nested("found")}
        return self.gate(y, read), State({**kept, **seen}, memory.position)

    def _stands(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of a segment's first `count` reads and tokens: a read stands where its token does."""
        at = len(self.persistent) + torch.arange(count, device=device)
        return at, at

    def _written(self, y: Tensor, memory: State) -> tuple[Tensor, State]:
        """What is read for y, each from the memory as its own token left it, and the memory after all."""
        return self.memory.advance(y, memory)

    def _key_value(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return self._placed(self._by_head(self.key(x)), at), self._by_head(self.value(x))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _placed(self, x: Tensor, at: Tensor) -> Tensor:
        return x if self.base is None else rotary(x, at, base=self.base)


class LiteralMemoryAsContext(MemoryAsContext):
    """MAC as the paper writes it: within a segment tokens see later ones. For tasks that are given whole.

    All reads of a segment stand before its tokens, and the output of every token reads the memory after the
    whole segment was written. Segments still see only earlier ones and themselves. `advance` takes whole
    segments.
    """

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next segments; the last call of a sequence may end inside one."""
        if place := _position(state) % self.segment:
            raise ValueError(
                f"the literal MAC reads whole segments of {self.segment} tokens, and this state ends after "
                f"{place} of one: give whole segments, or use MemoryAsContext"
            )
        return super().advance(x, state)

    def _stands(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        at = len(self.persistent) + torch.arange(2 * count, device=device)
        return at[:count], at[count:]

    def _written(self, y: Tensor, memory: State) -> tuple[Tensor, State]:
        _, after = self.memory.advance(y, memory)
        read, _ = self.memory.recall(y, memory.nested("query"), after.nested("memory"))
        return read, after


def persistent_tokens(count: int, width: int) -> nn.Parameter:
    """Learned tokens that stand before every sequence (count, width); ValueError: fewer than none."""
    if count < 0:
        raise ValueError(f"persistent must be the number of learned tokens, 0 or more, got {count}")
    return nn.Parameter(torch.randn(count, width))


def _position(state: State) -> int:
    at = int(state.position[0]) if len(state.position) else 0
    if bool((state.position != at).any()):
        raise ValueError("all rows of a state must stand at one position to go on together")
    return at
