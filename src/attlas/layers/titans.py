"""Titans: a memory that learns at test time as gate (MAG) and as layer (MAL); the register of its mixers.

    MAG  z = p || x:   y = window attention(z), every query also sees p;  out = y * M(z)
    MAL  z = p || x:   y = z + M(z);  out = window attention(y)

p are learned persistent tokens, a * b is `Gate`. LMM, the memory alone, is `LongTermMemory`
(`titans_memory`); MAC, the memory as context, is in `titans_context`. Source: arXiv 2501.00663.

Legend: B batch, H heads, N tokens, C width, P persistent tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.attention import SelfAttention
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.titans_context import BASE, PERSISTENT, Gate, MemoryAsContext, persistent_tokens
from attlas.layers.titans_memory import LongTermMemory, at_front, back_in_place
from attlas.pattern import causal, sink, window
from attlas.scan import State

__all__ = ["MemoryAsGate", "MemoryAsLayer"]

WINDOW = 16
"""Unless given; the paper's is not known."""


class MemoryAsGate(nn.Module):
    """MAG: sliding-window attention, multiplied by what the memory reads at every token.

    Both run over p || x; every query also sees the P persistent tokens, and the memory reads them first.

    Args:
        memory: `LongTermMemory` of the width. heads, base: of the attention; base: of rotary positions.
        size: tokens that a query sees, its own included; persistent: P.

    Shapes: (B, N, width) -> (B, N, width). State: that of the memory and the window's keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        memory: LongTermMemory,
        *,
        size: int = WINDOW,
        persistent: int = PERSISTENT,
        base: float | None = BASE,
    ) -> None:
        super().__init__()
        self.persistent, self.memory = persistent_tokens(persistent, width), memory
        self.attention = SelfAttention(
            width, heads, pattern=causal() & (window(size) | sink(persistent)), base=base
        )
        self.gate = Gate(width)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; valid tokens are neighbours whatever stands between them, others give 0."""
        z = _after(self.persistent, at_front(x, valid))
        y, read = self.attention(z), self.memory(z)
        return back_in_place(self.gate(y, read)[:, len(self.persistent) :], valid)

    def start(self, batch: int) -> State:
        """After the persistent tokens."""
        lasting = self.persistent.expand(batch, -1, -1)
        attention = self.attention.advance(lasting, self.attention.start(batch))[1]
        memory = self.memory.advance(lasting, self.memory.start(batch))[1]
        return State({"attention": attention, "memory": memory}, torch.zeros_like(memory.position))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row."""
        y, attention = self.attention.advance(x, state.nested("attention"))
        read, memory = self.memory.advance(x, state.nested("memory"))
        parts = {"attention": attention, "memory": memory}
        return self.gate(y, read), State(parts, state.position + x.shape[1])


class MemoryAsLayer(nn.Module):
    """MAL: the memory as a layer with a residual, then sliding-window attention, both over p || x.

    Arguments, shapes and state as for `MemoryAsGate`; the window does not hold on to the persistent tokens.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        memory: LongTermMemory,
        *,
        size: int = WINDOW,
        persistent: int = PERSISTENT,
        base: float | None = BASE,
    ) -> None:
        super().__init__()
        self.persistent, self.memory = persistent_tokens(persistent, width), memory
        self.attention = SelfAttention(width, heads, pattern=causal() & window(size), base=base)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; valid tokens are neighbours whatever stands between them, others give 0."""
        z = _after(self.persistent, at_front(x, valid))
        out = self.attention(z + self.memory(z))
        return back_in_place(out[:, len(self.persistent) :], valid)

    def start(self, batch: int) -> State:
        """After the persistent tokens."""
        parts = {"attention": self.attention.start(batch), "memory": self.memory.start(batch)}
        state = State(parts, parts["memory"].position)
        after = self.advance(self.persistent.expand(batch, -1, -1), state)[1]
        return State(after.parts, state.position)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row."""
        read, memory = self.memory.advance(x, state.nested("memory"))
        out, attention = self.attention.advance(x + read, state.nested("attention"))
        parts = {"attention": attention, "memory": memory}
        return out, State(parts, state.position + x.shape[1])


def _after(persistent: Tensor, x: Tensor) -> Tensor:
    return torch.cat([persistent.to(x.dtype).expand(len(x), -1, -1), x], 1)


def _memory(setting: Setting) -> LongTermMemory:
    return LongTermMemory(setting.width, setting.heads, depth=1, chunk=1)


def _deep(setting: Setting) -> LongTermMemory:
    return LongTermMemory(setting.width, setting.heads)


def _context(setting: Setting) -> MemoryAsContext:
    return MemoryAsContext(setting.width, setting.heads, _memory(setting))


def _gate(setting: Setting) -> MemoryAsGate:
    return MemoryAsGate(setting.width, setting.heads, _memory(setting))


def _layer(setting: Setting) -> MemoryAsLayer:
    return MemoryAsLayer(setting.width, setting.heads, _memory(setting))


WHY_NOT = "a memory reads what was written before: a token after the other, of one sequence"
for name, make in {
    "titans_lmm": _memory,
    "titans_lmm_deep": _deep,
    "titans_mac": _context,
    "titans_mag": _gate,
    "titans_mal": _layer,
}.items():
    register_mixer(MixerEntry(name, make, frozenset({"CS"}), stateful=True, padding=True, why_not=WHY_NOT))
