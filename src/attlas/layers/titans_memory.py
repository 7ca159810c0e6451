"""The neural long-term memory of Titans as a layer: projections, factors per token, `memory`, a gated output.

    q, k, v = silu(conv(x W_Q)), silu(conv(x W_K)), silu(conv(x W_V)),   q and k of length 1 in each head
    alpha, eta = sigmoid(x w + b),   theta = largest sigmoid(x w + b)
    out = (norm(M_t(q_t)) * silu(x W_G)) W_O

Legend: B batch, H heads, N tokens, C width, D width of a head.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.short_conv import ShortConv
from attlas.scan import MemoryRule, State, memory, recall, start_memory
from attlas.scan.state import wide

__all__ = ["LongTermMemory", "at_front", "back_in_place"]

SMALL = 0.02
"""Standard deviation of the last layer of an initial memory: it begins almost empty."""


class LongTermMemory(nn.Module):
    """LMM: a memory of each head that learns key -> value as it reads; no attention.

    Args:
        width, heads: of the tokens; every head has a memory of its own.
        depth: layers of the memory, L_M; hidden: their width, 2 width / heads unless given.
        chunk: tokens whose gradients are taken at the same weights; 1: the sequential rule.
        taps: of the short convolutions.
        largest: bound of theta; default 1 for a linear memory (which overwrites a unit key at 1/2), else
            2 / hidden. It begins at largest / (2 chunk), where a chunk of equal keys converges.

    Shapes: (B, N, width) -> (B, N, width). Cost: see `memory`. State: weights and momentum of the memories,
    for chunk > 1 also the weights of the chunk's start, and the past of three convolutions. Source: arXiv
    2501.00663; the bounds, the starting values and silu in the gate are ours.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        depth: int = 2,
        hidden: int | None = None,
        chunk: int = 16,
        taps: int = 4,
        largest: float | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if depth < 1:
            raise ValueError(f"a memory needs a depth of at least 1 layer, got {depth}")
        head = width // heads
        hidden = 2 * head if hidden is None else hidden
        self.heads, self.chunk = heads, chunk
        self.largest = largest if largest is not None else 1.0 if depth == 1 else 2.0 / hidden
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.query_conv, self.key_conv, self.value_conv = (
            ShortConv(width, taps, activation=functional.silu) for _ in range(3)
        )
        self.factors = nn.Linear(width, 3 * heads)
        with torch.no_grad():
            # For every token alpha near 0, eta near 0.1, and theta where a chunk of equal keys converges.
            starts = torch.tensor([-4.0, -2.0, -math.log(2 * chunk - 1)])
            self.factors.bias.copy_(starts.repeat_interleave(heads))
            self.factors.weight.zero_()
        widths = [head, *[hidden] * (depth - 1), head]
        self.initial = nn.ParameterList(
            torch.randn(heads, *pair) * _spread(layer, depth, pair[0])
            for layer, pair in enumerate(pairwise(widths))
        )
        self.norm = nn.RMSNorm(head, eps=1e-6)
        self.gate, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    @property
    def rule(self) -> MemoryRule:
        """The memory with its learned initial weights."""
        return MemoryRule(tuple(self.initial))

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; valid tokens are neighbours whatever stands between them, others give 0."""
        packed = at_front(x, valid)
        return back_in_place(self.advance(packed, self.start(len(x)))[0], valid)

    def start(self, batch: int) -> State:
        """The learned initial memory, and nothing before the first token."""
        fresh = start_memory(self.rule, batch, chunk=self.chunk, dtype=wide(self.initial[0].dtype))
        convs = {name: conv.start(batch) for name, conv in self._convs().items()}
        return State({"memory": fresh, **convs}, fresh.position)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """Write the next N tokens and read at each after it was written."""
        made, convs = {}, {}
        for name, conv in self._convs().items():
            made[name], convs[name] = conv.advance(getattr(self, name)(x), state.nested(name))
        query, key, value = (self._by_head(part) for part in made.values())
        alpha, eta, theta = self.factors(x).sigmoid().transpose(1, 2).chunk(3, dim=1)
        reads, fast = memory(
            self.rule, _unit(query), _unit(key), value, alpha, eta, self.largest * theta,
            chunk=self.chunk, state=state.nested("memory"), return_state=True,
        )  # fmt: skip
        return self._finish(reads, x), State({"memory": fast, **convs}, fast.position)

    def recall(
        self, x: Float[Tensor, "B N C"], past: State, fast: State
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """Read for N tokens what a memory holds, and write nothing.

        fast: the part "memory" of a state; past: its part "query", the past of the queries' convolution,
        returned as it stands after x.
        """
        query, past = self.query_conv.advance(self.query(x), past)
        return self._finish(recall(self.rule, _unit(self._by_head(query)), fast), x), past

    def _convs(self) -> dict[str, ShortConv]:
        return {"query": self.query_conv, "key": self.key_conv, "value": self.value_conv}

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _finish(self, reads: Tensor, x: Tensor) -> Tensor:
        """Normalisation and linear gate before the output projection."""
        normal = self.norm(reads.to(self.norm.weight.dtype)).transpose(1, 2).flatten(2)
        out: Tensor = self.out(normal * functional.silu(self.gate(x)))
        return out


def _spread(layer: int, depth: int, inputs: int) -> float:
    """Standard deviation of a layer's initial weights: unit keys give pre-activations of variance 1."""
    if layer == depth - 1:
        return SMALL
    return 1.0 if layer == 0 else inputs**-0.5


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=-1, eps=1e-6)


def at_front(x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N C"]:
    """Valid tokens of every row moved to its front, in order, zeros behind them."""
    if valid is None:
        return x
    return x.masked_fill(~valid[..., None], 0.0).take_along_dim(_order(valid)[..., None], 1)


def back_in_place(x: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N C"]:
    """The inverse of `at_front`, with zeros at invalid tokens."""
    if valid is None:
        return x
    back = _order(valid).argsort(1)
    return x.take_along_dim(back[..., None], 1).masked_fill(~valid[..., None], 0.0)


def _order(valid: Tensor) -> Tensor:
    return (~valid).to(torch.int8).argsort(dim=1, stable=True)
