"""Mamba as a token mixer (arXiv 2312.00752): a selective scan behind a short convolution, gated.

Legend: B batch, N tokens, C width, E = expand C channels, S states per channel, R rank of the step sizes.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.short_conv import ShortConv
from attlas.scan import State, selective_scan
from attlas.scan.state import wide

__all__ = ["BiMamba", "Mamba", "SelectiveSSM"]

STEPS = (1e-3, 1e-1)
"""Step sizes at the start: log-uniform between these."""
LEAST_STEP = 1e-4


class SelectiveSSM(nn.Module):
    """u -> selective_scan(u, delta(u), A, B(u), C(u), D): the scan with the projections that steer it.

        (r_t, B_t, C_t) = W_x u_t,  delta_t = softplus(W_dt r_t + b_dt),  A = -exp(A_log)

    Args:
        channels: E; states: S; rank: R. backend: as in `selective_scan`.
        log_rate: A_log of another scan to share, (E, S); else an own one, log(1 .. S) in every channel.

    Published initialisation: D = 1; softplus(b_dt) log-uniform in [1e-3, 0.1], at least 1e-4; W_dt uniform
    within R^-1/2; W_x as nn.Linear. Shapes: (B, N, E) -> (B, N, E). Cost: N E (2 R + 4 S + 9 S).
    """

    def __init__(
        self,
        channels: int,
        *,
        states: int = 16,
        rank: int,
        log_rate: nn.Parameter | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if min(channels, states, rank) < 1:
            raise ValueError(
                f"selective scan: channels, states and rank must be at least 1, got {channels}, {states}, "
                f"{rank}"
            )
        if log_rate is not None and tuple(log_rate.shape) != (channels, states):
            raise ValueError(
                f"selective scan: log_rate must be ({channels}, {states}), got {tuple(log_rate.shape)}"
            )
        self.states, self.rank, self.backend = states, rank, backend
        self.steer = nn.Linear(channels, rank + 2 * states, bias=False)
        self.step = nn.Linear(rank, channels)
        rates = torch.arange(1, states + 1, dtype=torch.float32).log().expand(channels, -1)
        self.log_rate = nn.Parameter(rates.clone()) if log_rate is None else log_rate
        self.skip = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        low, high = (math.log(one) for one in STEPS)
        first = torch.exp(torch.rand(channels) * (high - low) + low).clamp(min=LEAST_STEP)
        with torch.no_grad():
            # The inverse of softplus.
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))

    def forward(
        self,
        u: Float[Tensor, "B N E"],
        z: Float[Tensor, "B N E"] | None = None,
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        reset: Bool[Tensor, "B N"] | None = None,
        state: State | None = None,
    ) -> tuple[Float[Tensor, "B N E"], State]:
        """The outputs, times silu(z) where given, and the state after the last token."""
        steer, write, read = self.steer(u).split((self.rank, self.states, self.states), -1)
        rate = -torch.exp(self.log_rate.to(wide(self.log_rate.dtype)))
        found = selective_scan(
            u, functional.linear(steer, self.step.weight), rate, write, read, self.skip, z,
            delta_bias=self.step.bias, valid=valid, reset=reset, state=state, return_state=True,
            backend=self.backend,
        )  # fmt: skip
        return found  # type: ignore[return-value]

    def start(self, batch: int) -> State:
        """Zeros before the first token."""
        like = self.log_rate
        hidden = torch.zeros(batch, *like.shape, dtype=wide(like.dtype), device=like.device)
        return State({"hidden": hidden}, torch.zeros(batch, dtype=torch.int64, device=like.device))


class Mamba(nn.Module):
    """The block of Mamba, causal: out(SSM(silu(conv(u))) * silu(z)) with (u, z) = in(x).

    Args:
        width: C; states: S; expand: E / C; taps: of the causal depthwise convolution; rank: R, by default
            C / 16 rounded up.
        out: False leaves the last projection to the caller: outputs have E channels.
        log_rate: A_log to share with another block. backend: as in `selective_scan`.

    Projections have no bias, the convolution has one. Shapes: (B, N, C) -> (B, N, C or E). State:
    E (S + taps - 1) numbers per sequence, however long. Source: state-spaces/mamba, mamba_simple.py.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int = 16,
        expand: int = 2,
        taps: int = 4,
        rank: int | None = None,
        out: bool = True,
        log_rate: nn.Parameter | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        channels = expand * width
        self.into = nn.Linear(width, 2 * channels, bias=False)
        self.conv = ShortConv(channels, taps, activation=functional.silu)
        self.scan = SelectiveSSM(
            channels,
            states=states,
            rank=-(-width // 16) if rank is None else rank,
            log_rate=log_rate,
            backend=backend,
        )
        self.out = nn.Linear(channels, width, bias=False) if out else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        reset: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """The whole sequence from an empty past; a row that is not valid gives 0 and changes nothing.

        reset: where one of several sequences begins that lie behind one another in a row.
        """
        return self.advance(x, self.start(x.shape[0]), valid=valid, reset=reset)[0]

    def start(self, batch: int) -> State:
        """Before the first token."""
        parts = {"conv": self.conv.start(batch), "scan": self.scan.start(batch)}
        return State(parts, parts["scan"].position)

    def advance(
        self,
        x: Float[Tensor, "B N C"],
        state: State,
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        reset: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N E"], State]:
        """The next N tokens of every row, and the state after them."""
        u, z = self.into(x).chunk(2, -1)
        u, past = self.conv.advance(u, state.nested("conv"), valid=valid, reset=reset)
        found, hidden = self.scan(u, z, valid=valid, reset=reset, state=state.nested("scan"))
        return self.out(found), State({"conv": past, "scan": hidden}, hidden.position)


class BiMamba(nn.Module):
    """Both directions: W_out (f(x) + reversed b(reversed x)), f and b of own weights and one A.

    With norm a LayerNorm of the input, which both directions and their gates read. Arguments as for `Mamba`.
    Shapes: (B, N, C) -> (B, N, C). Source: GMN, arXiv 2402.08678, with W_1 of both directions and W_out as
    two projections, as there.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int = 16,
        expand: int = 2,
        taps: int = 4,
        rank: int | None = None,
        norm: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        shape = {"states": states, "expand": expand, "taps": taps, "rank": rank}
        self.ahead = Mamba(width, **shape, backend=backend)  # type: ignore[arg-type]
        self.back = Mamba(width, **shape, log_rate=self.ahead.scan.log_rate, backend=backend)  # type: ignore[arg-type]
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        reset: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Every token from all valid ones of its sequence; a row that is not valid gives 0."""
        x = self.norm(x)
        reverse = None if valid is None else valid.flip(1)
        # Backwards a sequence begins where the next one's first token has just been read.
        ends = None if reset is None else torch.cat([reset[:, 1:], reset[:, :1]], 1).flip(1)
        behind = self.back(x.flip(1), valid=reverse, reset=ends).flip(1)
        return self.out(self.ahead(x, valid=valid, reset=reset) + behind)

    def last(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """The last row of `forward(x)`: backwards it is the first, which reads the last token alone."""
        x = self.norm(x)
        return self.out(self.ahead(x)[:, -1] + self.back(x[:, -1:])[:, 0])


def _made(setting: Setting) -> nn.Module:
    return Mamba(setting.width) if setting.causal else BiMamba(setting.width)


register_mixer(
    MixerEntry(
        "mamba",
        _made,
        frozenset({"NS", "CS"}),
        stateful=True,
        padding=True,
        why_not="a selective scan reads one sequence: there are no queries to another one",
    )
)
