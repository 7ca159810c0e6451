"""The mixers that the dynamical-systems view (DSF) compares: linear and normalised attention, qLSTM.

Source: Sieber et al. 2024, arXiv 2405.15731; IntelligentControlSystems/dsf-mqar. Legend: B batch, H heads,
N tokens, C width, D width of a query, E channels of the qLSTM.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.inputs import state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.short_conv import ShortConv
from attlas.scan import Affine, Kernel, State, elu1, prefix, scan
from attlas.scan.state import wide

__all__ = ["QLSTM", "LinearAttention", "NormalisedLinear"]


class LinearAttention(nn.Module):
    """y_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j)): weights over their sum.

    Args:
        width, heads: of the input; values have C / H columns a head.
        key_width: columns of all queries together, C unless given: the state grows with it.
        kernel: phi, elu + 1 unless given; its features have to be positive.
        causal: sums over j <= i, as a recurrence; else over all j, also those of a `context`.

    Projections have biases, as in the official code. Shapes: (B, N, C) -> (B, N, C). State: H F (C / H + 1)
    numbers for F features. Cost: 2 N F C. Sources: arXiv 2006.16236, 2405.15731.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        kernel: Kernel | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.kernel = elu1() if kernel is None else kernel
        if not self.kernel.positive:
            raise ValueError(
                f"LinearAttention divides by a sum of weights: kernel must be positive, got {self.kernel}"
            )
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = _projections(width, heads, key_width)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B M C"] | None = None,
        *,
        valid: Bool[Tensor, "B _"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence, or x with keys and values of `context`; `valid` False marks padding of those.

        Raises ValueError: causal with a context.
        """
        if self.causal and context is None:
            return self.advance(x, None, valid=valid)[0]
        if self.causal:
            raise ValueError("LinearAttention: a context needs causal=False; its places mean nothing for x")
        seen = x if context is None else context
        query, key, value = (
            _split(make(given), self.heads)
            for make, given in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        places = (torch.arange(part.shape[1], device=x.device)[None] for part in (x, seen))
        phi, psi = (self.kernel.features(part, at) for part, at in zip((query, key), places, strict=True))
        if valid is not None:
            psi = psi.masked_fill(~valid[:, None, :, None], 0.0)
        total = (phi @ psi.sum(2).unsqueeze(-1)).clamp_min(torch.finfo(phi.dtype).tiny)
        return self.out(_joined(phi @ (psi.mT @ value) / total))

    def start(self, batch: int) -> State:
        """Before the first token."""
        return _empty(self, batch)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        query, key, value = (_split(make(x), self.heads) for make in (self.query, self.key, self.value))
        mixed, after = scan(
            query, key, value, kernel=self.kernel, normalise=True, valid=valid, state=state, return_state=True
        )
        return self.out(_joined(mixed)), after


class NormalisedLinear(nn.Module):
    """y_i = exp(-log eta_i) q_i^T sum_{j<=i} k_j v_j^T, log eta_i = W_eta x_i, one number a head.

    The source's "normalised attention": raw queries and keys, unscaled, and a learned normaliser of the
    present input in place of the sum of weights. The state is kept undivided and log eta is never
    exponentiated into it: H_i / eta_i would need the ratio of two normalisers at every step.

    Args: as for `LinearAttention`. Shapes: (B, N, C) -> (B, N, C). State: key_width C / H numbers. Cost:
    2 N C key_width / H. Source: arXiv 2405.15731, official MHNA.
    """

    def __init__(self, width: int, heads: int, *, key_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = _projections(width, heads, key_width)
        self.log_eta = nn.Linear(width, heads)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding."""
        return self.advance(x, None, valid=valid)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        return _empty(self, batch)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State | None, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them; None: the first ones."""
        query, key, value = (_split(make(x), self.heads) for make in (self.query, self.key, self.value))
        mixed, after = scan(query, key, value, valid=valid, state=state, return_state=True)
        scale = (-self.log_eta(x).to(wide(x.dtype))).exp().mT.unsqueeze(-1)
        return self.out(_joined((mixed * scale).to(x.dtype))), after


class QLSTM(nn.Module):
    """An LSTM whose gates see the input alone, so that it is a linear recurrence of its channels.

        (g, u) = W x, u = conv(u), (f, i, o) = W_gates u + b
        h_t = sigmoid(f_t) h_{t-1} + sigmoid(i_t) u_t,  y = W_o (gelu(g) * sigmoid(o) * h)

    Args:
        expand: E / C. taps: of the causal depthwise convolution, with bias and no activation.
        reversed_gate: sigmoid(-f)^relu(alpha) in place of sigmoid(f), alpha one learned number, 1 at first:
            exp(-alpha softplus(f)), the form of Mamba's transition.

    W and W_o have no bias; matrices start normal with the standard deviation of inputs^-1/2. Shapes:
    (B, N, C) -> (B, N, C). State: E (1 + taps - 1) numbers. Source: arXiv 2405.15731, official qLSTM.
    """

    def __init__(self, width: int, *, expand: int = 2, taps: int = 4, reversed_gate: bool = False) -> None:
        super().__init__()
        channels = expand * width
        if channels < 1:
            raise ValueError(f"QLSTM: expand and width must be at least 1, got {expand} and {width}")
        self.enter = nn.Linear(width, 2 * channels, bias=False)
        self.conv = ShortConv(channels, taps)
        self.gates = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, width, bias=False)
        self.alpha = nn.Parameter(torch.ones(())) if reversed_gate else None
        for layer in (self.enter, self.gates, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence from an empty past; a row that is not valid gives 0."""
        return self.advance(x, self.start(x.shape[0]), valid=valid)[0]

    def start(self, batch: int) -> State:
        """Zeros before the first token."""
        like, past = self.out.weight, self.conv.start(batch)
        hidden = torch.zeros(batch, like.shape[1], dtype=wide(like.dtype), device=like.device)
        return State({"conv": past, "hidden": hidden}, past.position)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them."""
        gate, u = self.enter(x).chunk(2, -1)
        u, past = self.conv.advance(u, state.nested("conv"), valid=valid)
        forget, inward, outward = self.gates(u).chunk(3, -1)
        carried, new = self.carried(forget), (inward.sigmoid() * u).to(state["hidden"].dtype)
        if valid is not None:
            carried = carried.masked_fill(~valid[..., None], 1.0)
            new = new.masked_fill(~valid[..., None], 0.0)
        before = (torch.ones_like(state["hidden"]), state["hidden"])
        (_, hidden), (_, last) = prefix(Affine(), (carried, new), dim=1, state=before)
        mixed = functional.gelu(gate) * (outward.sigmoid() * hidden.to(x.dtype))
        if valid is not None:
            mixed = mixed.masked_fill(~valid[..., None], 0.0)
        return self.out(mixed), State({"conv": past, "hidden": last}, past.position)

    def carried(self, forget: Float[Tensor, "*N E"]) -> Float[Tensor, "*N E"]:
        """The transition of a forget logit: what of a channel remains, between 0 and 1."""
        forget = forget.to(wide(forget.dtype))
        if self.alpha is None:
            return forget.sigmoid()
        return (-functional.relu(self.alpha) * functional.softplus(forget)).exp()


def _projections(
    width: int, heads: int, key_width: int | None
) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    keys = width if key_width is None else key_width
    if heads < 1 or width % heads or keys % heads or keys < heads:
        raise ValueError(
            f"width and key_width must be multiples of heads, got {width} and {keys} for {heads} heads"
        )
    sizes = ((width, keys), (width, keys), (width, width), (width, width))
    query, key, value, out = (nn.Linear(*size) for size in sizes)
    return query, key, value, out


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def _empty(module: LinearAttention | NormalisedLinear, batch: int) -> State:
    """The state behind a token that does not count."""
    return state_before(module.advance, batch, module.out.weight, module.out.in_features)


def _linear(setting: Setting) -> nn.Module:
    return LinearAttention(setting.width, setting.heads, causal=setting.causal and not setting.cross)


def _normalised(setting: Setting) -> nn.Module:
    return NormalisedLinear(setting.width, setting.heads)


def _qlstm(setting: Setting) -> nn.Module:
    return QLSTM(setting.width)


def _reversed(setting: Setting) -> nn.Module:
    return QLSTM(setting.width, reversed_gate=True)


FORWARD = "a system in time runs forward over one sequence"

register_mixer(
    MixerEntry(
        "linear", _linear, frozenset({"NS", "CS", "NC", "CC"}), stateful=True, padding=True, permutes=True
    )
)
for name, make in (("normalised_linear", _normalised), ("qlstm", _qlstm), ("qlstm_reversed", _reversed)):
    register_mixer(MixerEntry(name, make, frozenset({"CS"}), stateful=True, padding=True, why_not=FORWARD))
