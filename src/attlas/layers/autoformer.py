"""Autoformer's layers: auto-correlation in the place of attention, and progressive decomposition.

Source: Wu et al. 2021, arXiv 2106.13008. Legend: L length of the queries, S of the context, k lags, K kernel.
"""

import math
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.inputs import check_tokens
from attlas.layers.mixers import MixerEntry, Setting, register_mixer

__all__ = [
    "AutoCorrelation",
    "AutoformerDecoderLayer",
    "AutoformerEncoderLayer",
    "Decomposition",
    "SeasonalNorm",
    "auto_correlation",
    "choose_lags",
    "lag_correlation",
    "moving_average",
]

Shared = Literal["batch", "sample", "channel"]


def lag_correlation(
    query: Float[Tensor, "B H L D"], key: Float[Tensor, "B H L D"], *, shared: Shared = "sample"
) -> Float[Tensor, "B h L d"]:
    """R(tau) = sum_t q(t + tau) k(t), the indices modulo L, of every lag tau = 0 .. L - 1.

    shared "sample" or "batch": averaged over heads and channels, (B, 1, L, 1), before the one inverse
    transform; "channel": (B, H, L, D). Float32 inside for narrower types. Cost: O(H D L log L).
    """
    wide = query.dtype if query.dtype in (torch.float32, torch.float64) else torch.float32
    spectrum = torch.fft.rfft(query.to(wide), dim=2) * torch.fft.rfft(key.to(wide), dim=2).conj()
    if shared != "channel":
        spectrum = spectrum.mean((1, 3), keepdim=True)
    return torch.fft.irfft(spectrum, n=query.shape[2], dim=2)


def choose_lags(
    correlation: Float[Tensor, "B h L d"], factor: float = 1.0, *, shared: Shared = "sample"
) -> tuple[Int[Tensor, "b h k d"], Float[Tensor, "B h k d"]]:
    """The k = floor(factor ln L) lags of the largest correlation, and the softmax of their correlations.

    shared "batch": one set of lags from the mean over the batch, each sample with weights of its own. k is at
    least 1 and at most L (the official code has no lag at all, and output 0, where factor ln L < 1).
    """
    length = correlation.shape[2]
    count = min(length, max(1, int(factor * math.log(length))))
    ranked = correlation.mean(0, keepdim=True) if shared == "batch" else correlation
    lags = ranked.topk(count, dim=2).indices
    found = correlation.gather(2, lags.expand(len(correlation), -1, -1, -1))
    return lags, found.softmax(2)


def auto_correlation(
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S E"],
    *,
    factor: float = 1.0,
    shared: Shared = "sample",
    aligned: bool = False,
) -> Float[Tensor, "B H L E"]:
    """out(t) = sum_i w_i value((t + tau_i) mod L) over the few lags at which query and key correlate most.

    shared: lags of each "sample", of the whole "batch" (as the official code trains), or of each head and
    "channel". Keys and values are filled up with zeros to L where S < L, and cut to the first L otherwise.
    aligned: value((t - tau_i) mod L), the token that the correlation points to; the official code reads the
    other way and lets the network adapt. Not causal. No gradient through the choice of lags.

    Cost: O(L log L) for the correlations and k rolls of the values; with lags of the batch no roll is copied,
    with the others gradients keep k rolled values.
    """
    length = query.shape[2]
    if shared == "channel" and value.shape[3] != query.shape[3]:
        raise ValueError(
            f"lags per channel need values as wide as the keys, got {value.shape[3]} and {query.shape[3]}"
        )
    key, value = (_fitted(part, length) for part in (key, value))
    lags, weights = choose_lags(lag_correlation(query, key, shared=shared), factor, shared=shared)
    weights = weights.to(value.dtype)
    twice = torch.cat([value, value], 2)
    out = torch.zeros_like(value)
    for place in range(lags.shape[2]):
        lag = lags[:, :, place : place + 1]
        lag = (length - lag) % length if aligned else lag
        out = out + weights[:, :, place : place + 1] * _rolled(twice, lag, length)
    return out


def _fitted(part: Tensor, length: int) -> Tensor:
    """The first `length` tokens, zeros where there are fewer."""
    return functional.pad(part[:, :, :length], (0, 0, 0, max(0, length - part.shape[2])))


def _rolled(twice: Tensor, lag: Int[Tensor, "b h 1 d"], length: int) -> Tensor:
    """value((t + lag) mod L) out of two periods of it: a view for one lag, else gathered."""
    if lag.numel() == 1:
        return twice.narrow(2, int(lag), length)
    at = torch.arange(length, device=lag.device)[:, None] + lag
    batch, heads, _, width = twice.shape
    return twice.gather(2, at.expand(batch, heads, length, width))


class AutoCorrelation(nn.Module):
    """x -> W_o auto_correlation(W_q x, W_k c, W_v c) with c = x or another sequence; projections with bias.

    Args: width, heads; factor and aligned as in `auto_correlation`; training: how lags are shared in training
    mode, "batch" as in the official code; in evaluation mode each sample has its own.

    Shapes: (B, L, width) [, (B, S, width)] -> (B, L, width). Raises ValueError for heads that do not divide
    the width, a factor that is not above 0, an unknown `training`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        factor: float = 1.0,
        aligned: bool = False,
        training: str = "batch",
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if not factor > 0:
            raise ValueError(f"factor must be above 0 (it makes floor(factor ln L) lags), got {factor}")
        if training not in get_args(Shared):
            raise ValueError(f"training must be one of {', '.join(get_args(Shared))}, got {training!r}")
        self.heads, self.factor, self.aligned = heads, factor, aligned
        self.shared = cast(Shared, training)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, tokens, width / heads)."""
        context = x if context is None else context
        made = (self.query(x), self.key(context), self.value(context))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        return query, key, value

    def forward(
        self, x: Float[Tensor, "B L C"], context: Float[Tensor, "B S C"] | None = None
    ) -> Float[Tensor, "B L C"]:
        """Aggregated series."""
        check_tokens("auto-correlation", x=x, context=context)
        shared: Shared = self.shared if self.training else "sample"
        found = auto_correlation(
            *self.project(x, context), factor=self.factor, shared=shared, aligned=self.aligned
        )
        return self.out(found.transpose(1, 2).flatten(2))


def moving_average(x: Float[Tensor, "B L C"], kernel: int = 25) -> Float[Tensor, "B L C"]:
    """Mean over `kernel` steps around each one, the ends repeated beyond themselves; kernel is odd."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the moving average's kernel must be odd, so that it has a middle, got {kernel}")
    side = kernel // 2
    padded = functional.pad(x.transpose(1, 2), (side, side), mode="replicate")
    return functional.avg_pool1d(padded, kernel, stride=1).transpose(1, 2)


class Decomposition(nn.Module):
    """x -> (seasonal = x - trend, trend = moving average of x)."""

    def __init__(self, kernel: int = 25) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "B L C"]) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B L C"]]:
        """Both parts; they add up to x."""
        trend = moving_average(x, self.kernel)
        return x - trend, trend


class SeasonalNorm(nn.Module):
    """LayerNorm, minus its mean over time: a seasonal part has no level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        """Normalised, of mean 0 over time."""
        found = self.norm(x)
        return found - found.mean(1, keepdim=True)


class _FeedForward(nn.Sequential):
    """Two pointwise maps without bias around GELU, dropout after each."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, inner, bias=False), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(inner, width, bias=False), nn.Dropout(dropout),
        )  # fmt: skip


class AutoformerEncoderLayer(nn.Module):
    """x <- seasonal(x + mixer(x)); x <- seasonal(x + ff(x)). Trends are dropped.

    mixer: (B, L, width) -> the same, `AutoCorrelation` in the source; inner: of the feed-forward part, 4
    times the width by default; kernel: of the moving average.
    """

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        *,
        inner: int | None = None,
        kernel: int = 25,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.mixer, self.dropout = mixer, nn.Dropout(dropout)
        self.feed = _FeedForward(width, 4 * width if inner is None else inner, dropout)
        self.decompose = Decomposition(kernel)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        """The seasonal part."""
        x, _ = self.decompose(x + self.dropout(self.mixer(x)))
        x, _ = self.decompose(x + self.feed(x))
        return x


class AutoformerDecoderLayer(nn.Module):
    """Self, cross and feed-forward steps, each followed by a decomposition whose trend is accumulated.

    forward(x (B, N, width), context (B, S, width)) -> (seasonal (B, N, width), trend (B, N, channels)): the
    three trends go through one circular convolution of 3 steps without bias to the output's channels.
    """

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        cross: nn.Module,
        *,
        channels: int,
        inner: int | None = None,
        kernel: int = 25,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.mixer, self.cross, self.dropout = mixer, cross, nn.Dropout(dropout)
        self.feed = _FeedForward(width, 4 * width if inner is None else inner, dropout)
        self.decompose = Decomposition(kernel)
        self.trend = nn.Conv1d(width, channels, 3, padding=1, padding_mode="circular", bias=False)

    def forward(
        self, x: Float[Tensor, "B N C"], context: Float[Tensor, "B S C"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N channels"]]:
        """Seasonal part, and what the trend gains."""
        x, first = self.decompose(x + self.dropout(self.mixer(x)))
        x, second = self.decompose(x + self.dropout(self.cross(x, context)))
        x, third = self.decompose(x + self.feed(x))
        return x, self.trend((first + second + third).transpose(1, 2)).transpose(1, 2)


def _make(setting: Setting) -> nn.Module:
    return AutoCorrelation(setting.width, setting.heads)


register_mixer(
    MixerEntry(
        "autocorrelation",
        _make,
        frozenset({"NS", "NC"}),
        differentiable="almost",
        shares=True,
        why_not="every step reads steps before and after it: the correlation wraps around the whole series",
    )
)
