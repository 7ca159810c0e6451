"""Deconstructing attention: token mixers that each give up one principle of attention at its parameters.

Source: Xue, Moosavi and Aletras 2025, arXiv 2510.11602. Legend: B batch, H heads, N tokens, C width,
D head width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import L1, Normaliser, Softmax, attend
from attlas.layers.aaren import prefix_softmax
from attlas.layers.inputs import state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.rotary import rotary
from attlas.pattern import Tokens, causal
from attlas.scan import State, Taylor, scan
from attlas.score import Dot, Score

__all__ = ["Approximate", "Asked", "GatedMLP", "NonApproximate", "SourcedAttention"]


class Asked(NamedTuple):
    """A layer's causal map as `attend` and `reduce` take it: query and key (B, H, N, D or 1)."""

    query: Tensor
    key: Tensor
    score: Score
    normaliser: Normaliser


class SourcedAttention(nn.Module):
    """Causal softmax attention whose map comes from a source: Q, K = S W_Q, S W_K, V = X W_V.

    S is x itself for standard attention, the input embeddings for StaticEmbQK, and a stream that does not
    depend on the input for RndEmbQK and FixedSeqQK: of batch 1, so that one map serves all rows.

    base: of rotary positions of Q and K; None: none. Shapes: (B, N, C), source (B or 1, N, C) -> (B, N, C).
    """

    def __init__(self, width: int, heads: int, *, base: float | None = 10000.0) -> None:
        super().__init__()
        _check_heads("SourcedAttention", width, heads)
        self.heads, self.base = heads, base
        self.query, self.key, self.value, self.out = _projections(width)

    def forward(
        self, x: Float[Tensor, "B N C"], source: Float[Tensor, "S N C"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Values of x, mixed by the map of `source` (x itself unless given)."""
        asked = self.asked(x if source is None else source)
        mixed = attend(asked.query, asked.key, _heads(self.value(x), self.heads), pattern=causal())
        return self.out(mixed.transpose(1, 2).flatten(2))

    def asked(self, source: Float[Tensor, "S N C"]) -> Asked:
        """The map, in attend's terms."""
        query, key = (_heads(make(source), self.heads) for make in (self.query, self.key))
        if self.base is not None:
            at = Tokens(source.shape[1]).positions(source.device)
            query, key = (rotary(part, at, base=self.base) for part in (query, key))
        return Asked(query, key, Dot(), Softmax())


class Approximate(nn.Module):
    """Causal attention with weights 1 + s + s^2/2 over their sum, s = q . k / sqrt D: exp to second order.

    A scan with features phi(x) = [1, x / D^(1/4), vec(x x^T) / (sqrt 2 sqrt D)], whose equal products are
    held once. base: of rotary positions of q and k; None: none. Shapes: (B, N, C) -> (B, N, C). State:
    (C + H) (1 + D + D (D + 1) / 2) numbers. Cost: O(N C D^2): no gain on pairs below some D^2 tokens.
    """

    def __init__(self, width: int, heads: int, *, base: float | None = 10000.0) -> None:
        super().__init__()
        _check_heads("Approximate", width, heads)
        self.heads, self.base = heads, base
        self.query, self.key, self.value, self.out = _projections(width)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding."""
        return self.advance(x, None, valid=valid)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        return state_before(self.advance, batch, self.out.weight, self.out.in_features)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        x = _without_padding(x, valid)
        before = None if state is None else state.position
        query, key = self._placed(x, before, valid)
        mixed, after = scan(
            query, key, _heads(self.value(x), self.heads), kernel=Taylor(), normalise=True, valid=valid,
            state=state, return_state=True,
        )  # fmt: skip
        return self.out(mixed.transpose(1, 2).flatten(2)), after

    def asked(self, x: Float[Tensor, "B N C"]) -> Asked:
        """The map, in attend's terms."""
        query, key = self._placed(x, None, None)
        return Asked(query, key, Dot(), L1("taylor"))

    def _placed(self, x: Tensor, before: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key = (_heads(make(x), self.heads) for make in (self.query, self.key))
        if self.base is None:
            return query, key
        # Padding has no place: the state counts the tokens before.
        steps = torch.ones_like(x[..., 0], dtype=torch.bool) if valid is None else valid
        at = steps.long().cumsum(1) - 1 + (0 if before is None else before[:, None])
        return rotary(query, at[:, None], base=self.base), rotary(key, at[:, None], base=self.base)


class NonApproximate(nn.Module):
    """A key's weight without a query: z_j = sum_c SiLU(x_j W_Q)_c (x_j W_K)_c / sqrt D, a number per head.

        o_i = sum_{j <= i} e^{z_j} v_j / sum_{j <= i} e^{z_j}

    Query and key are of the same token, so that rotary positions would cancel. Exact under a running maximum,
    without N x N. Shapes: (B, N, C) -> (B, N, C). State: (D + 2) H numbers. Cost: 4 C^2 N.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads("NonApproximate", width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = _projections(width)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding."""
        return self.advance(x, None, valid=valid)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        return state_before(self.advance, batch, self.out.weight, self.out.in_features)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        x = _without_padding(x, valid)
        value = _heads(self.value(x), self.heads)
        mixed, after = prefix_softmax(self._logit(x).to(value.dtype), value, valid=valid, state=state)
        return self.out(mixed.transpose(1, 2).flatten(2)), after

    def asked(self, x: Float[Tensor, "B N C"]) -> Asked:
        """The map, in attend's terms: every query is 1, the key is its own logit."""
        logit = self._logit(x).unsqueeze(-1)
        return Asked(torch.ones_like(logit), logit, Dot(1.0), Softmax())

    def _logit(self, x: Tensor) -> Tensor:
        """z (B, H, N)."""
        query, key = _heads(functional.silu(self.query(x)), self.heads), _heads(self.key(x), self.heads)
        return (query * key).sum(-1) * query.shape[-1] ** -0.5


class GatedMLP(nn.Module):
    """W_dn(SiLU(x W_gt) * (x W_up)): no mixing of tokens, with the 4 C^2 parameters of attention.

    inner: 4 C / 3 to the nearest whole number, which misses 4 C^2 by less than 1.5 C. Shapes: (B, N, C) ->
    (B, N, C).
    """

    def __init__(self, width: int, *, inner: int | None = None) -> None:
        super().__init__()
        inner = round(4 * width / 3) if inner is None else inner
        if inner < 1:
            raise ValueError(f"GatedMLP: inner must be at least 1, got {inner}")
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Every token by itself."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def _check_heads(owner: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"{owner}: width must be a multiple of heads, got {width} and {heads}")


def _projections(width: int) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    query, key, value, out = (nn.Linear(width, width, bias=False) for _ in range(4))
    return query, key, value, out


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, H, N, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """What stands in padding, NaN too, must not reach a product: its gradient would."""
    return x if valid is None else x.masked_fill(~valid.unsqueeze(-1), 0.0)


WHY_NOT = "the paper's layers are those of a causal language model"


def _approximate(setting: Setting) -> nn.Module:
    return Approximate(setting.width, setting.heads)


def _non_approximate(setting: Setting) -> nn.Module:
    return NonApproximate(setting.width, setting.heads)


for _name, _make in (("approximate", _approximate), ("non_approximate", _non_approximate)):
    register_mixer(MixerEntry(_name, _make, frozenset({"CS"}), stateful=True, padding=True, why_not=WHY_NOT))
