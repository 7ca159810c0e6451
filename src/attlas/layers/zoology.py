"""The gated convolution of Zoology: a linear map times a convolution over time, short or of any length.

Legend: B batch, N tokens, C width, L the longest length. The hybrid with attended rows is in `sparse_rows`.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.short_conv import ShortConv
from attlas.scan import State

__all__ = ["BaseConv", "ImplicitConv", "causal_convolution"]

TAPS, FEATURES, HIDDEN = 3, 3, 16


def causal_convolution(x: Float[Tensor, "B N C"], taps: Float[Tensor, "N C"]) -> Float[Tensor, "B N C"]:
    """y_t = sum_{s <= t} taps_s x_{t - s}, channel by channel, by FFT of 2 N points: O(N log N C).

    In float32 for lower precisions; the result has x's type.
    """
    count, kind = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    # Time last: transforms along the last axis run over memory in order.
    spectrum = torch.fft.rfft(x.mT.to(kind), n=2 * count) * torch.fft.rfft(taps.mT.to(kind), n=2 * count)
    return torch.fft.irfft(spectrum, n=2 * count)[..., :count].mT.to(x.dtype)


class ImplicitConv(nn.Module):
    """x -> h * x + x with a filter of any length that a small MLP of the lag makes.

        h_s = W_2 relu(W_1 z_s + b_1) + b_2,  z_s = (s / (L - 1), cos(w_s f), -sin(w_s f)), w_s = 2 pi s / L

    Args:
        width: channels; length: L, the longest sequence; the features are scaled by it. features: of z, odd;
        hidden: of the MLP.

    The frequencies f are 1e-4 .. b - 1 for b = (features - 1) / 2 bands, as in the official code (for b = 1
    the one of 1e-4, next to a constant). Cost: O(N log N C). State: all inputs so far, which is what such
    a filter needs. Raises ValueError for sequences beyond L.
    """

    features: Tensor

    def __init__(self, width: int, length: int, *, features: int = FEATURES, hidden: int = HIDDEN) -> None:
        super().__init__()
        if features < 3 or features % 2 == 0:
            raise ValueError(f"features must be odd and at least 3: time, cosines and sines; got {features}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.width, self.length = width, length
        self.filter = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))
        bands = (features - 1) // 2
        lag = torch.arange(length, dtype=torch.float64)
        angle = (2 * math.pi * lag / length)[:, None] * torch.linspace(
            1e-4, bands - 1, bands, dtype=torch.float64
        )
        time = (lag / max(1, length - 1))[:, None]
        described = torch.cat([time, angle.cos(), -angle.sin()], 1)
        self.register_buffer("features", described.to(torch.get_default_dtype()), persistent=False)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; padding counts as zeros."""
        x = x if valid is None else x.masked_fill(~valid[..., None], 0.0)
        return self._convolve(x) + x

    def start(self, batch: int) -> State:
        """No input yet."""
        weight = self.features
        past = torch.zeros(batch, 0, self.width, dtype=weight.dtype, device=weight.device)
        return State({"past": past}, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens, O(T log T C) for T tokens so far, and the state with them."""
        joined = torch.cat([state["past"].to(x.dtype), x], 1)
        y = self._convolve(joined)[:, joined.shape[1] - x.shape[1] :] + x
        return y, State({"past": joined}, state.position + x.shape[1])

    def _convolve(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.length:
            raise ValueError(
                f"the implicit filter is made for length {self.length}, got {x.shape[1]} tokens; make it "
                "longer"
            )
        return causal_convolution(x, self.filter(self.features[: x.shape[1]]))


class BaseConv(nn.Module):
    """x -> (x W + b) ⊙ conv(x) + x.

    conv is a causal depthwise convolution over time: `ShortConv(width, 3)` unless given, or `ImplicitConv`,
    which has a skip of its own. The published model alternates the two over its layers, without an MLP and
    without positions: layers of three taps alone see only a few tokens.

    Shapes: (B, N, width) -> (B, N, width). Cost: N width^2 and the convolution's. Source: Arora et al. 2023,
    arXiv 2312.04927, HazyResearch/zoology mixers/base_conv.py.
    """

    def __init__(self, width: int, conv: ShortConv | ImplicitConv | None = None) -> None:
        super().__init__()
        self.conv = ShortConv(width, TAPS) if conv is None else conv
        self.linear = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; padding counts as zeros."""
        return self.linear(x) * self.conv(x, valid=valid) + x

    def start(self, batch: int) -> State:
        """The convolution's."""
        return self.conv.start(batch)

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens and the state after them."""
        convolved, state = self.conv.advance(x, state)
        return self.linear(x) * convolved + x, state


def _long(setting: Setting) -> BaseConv:
    if setting.length is None:
        raise ValueError("mixer base_conv_long needs a length: its filter is a function of lag / length")
    return BaseConv(setting.width, ImplicitConv(setting.width, setting.length))


_WHY_NOT = "a convolution over time is causal and mixes one sequence with itself"
register_mixer(
    MixerEntry(
        "base_conv",
        lambda setting: BaseConv(setting.width),
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        local=True,
        why_not=_WHY_NOT,
    )
)
register_mixer(
    MixerEntry("base_conv_long", _long, frozenset({"CS"}), stateful=True, padding=True, why_not=_WHY_NOT)
)
