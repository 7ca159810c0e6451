"""Aaren: softmax attention of one learned query over every prefix, which is a recurrence of constant size.

Source: Feng et al. 2024, arXiv 2405.13956. Legend: B batch, H heads, N tokens, E head width, C width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.inputs import state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.scan import State, scan

__all__ = ["Aaren", "prefix_softmax"]


def prefix_softmax(
    logit: Float[Tensor, "B H N"],
    value: Float[Tensor, "B H N E"],
    *,
    valid: Bool[Tensor, "B N"] | None = None,
    state: State | None = None,
) -> tuple[Float[Tensor, "B H N E"], State]:
    """out_i = sum_{j <= i} softmax_j(logit_0 .. logit_i) value_j; returns (out, State).

    A logit belongs to its key alone, so that a scan with q = k = 1 and the logits as gates is exact under a
    running maximum. valid: False is no key, output 0. Cost: O(N E); state: E + 2 numbers a head.
    """
    one = torch.ones_like(value[:, :1, :, :1])
    out, after = scan(
        one, one, value, log_gate=logit, normalise=True, valid=valid, state=state, return_state=True
    )
    return out, after


class Aaren(nn.Module):
    """x -> W_o of the heads' attention, by the query W_q c of a learned vector c, to x_1 .. x_i.

        s_i = (W_q c) . (W_k x_i) / sqrt(E),   y_i = W_o sum_{j <= i} softmax_j(s_1 .. s_i) W_v x_j

    The logit of a key does not depend on the token that asks. c starts from N(0, 1/C); bias: of the four
    projections. Shapes: (B, N, C) -> (B, N, C). Cost: 4 C^2 N; state: (E + 2) H numbers, at any length.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"Aaren: width must be a multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.asks = nn.Parameter(torch.randn(width) * width**-0.5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """All prefixes at once; `valid` False marks padding."""
        return self.advance(x, None, valid=valid)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        return state_before(self.advance, batch, self.asks, len(self.asks))

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        query = self.query(self.asks).unflatten(-1, (self.heads, -1))
        key, value = (
            make(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for make in (self.key, self.value)
        )
        logit = torch.einsum("hd,bhnd->bhn", query, key) * query.shape[-1] ** -0.5
        out, after = prefix_softmax(logit, value, valid=valid, state=state)
        return self.out(out.transpose(1, 2).flatten(2)), after


def _make(setting: Setting) -> nn.Module:
    return Aaren(setting.width, setting.heads)


register_mixer(
    MixerEntry(
        "aaren",
        _make,
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        why_not="its query is learned and sees no token: over a whole sequence all outputs would be equal",
    )
)
