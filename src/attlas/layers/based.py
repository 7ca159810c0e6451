"""BASED: global linear attention with the Taylor kernel, a small exact window, and gated short convolutions.

Source: Arora et al. 2024, arXiv 2402.18668; HazyResearch/based and HazyResearch/zoology. Legend: B batch,
H heads, N tokens, C width, D width of the features' input.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.attention import SelfAttention
from attlas.layers.inputs import state_before
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.layers.short_conv import ShortConv
from attlas.pattern import causal, window
from attlas.scan import State, Taylor, scan

__all__ = ["GatedConv", "TaylorAttention", "sliding_window"]

FEATURE = 16  # the published width of queries and keys
EPS = 1e-12  # of the official training code; the kernels of flash-linear-attention take 1e-6
PREVIOUS = 128
"""Keys before the query's own in the published language models: window_size 256 becomes (128, 0)."""


class TaylorAttention(nn.Module):
    """Causal attention with weights 1 + z + z^2/2, z = q . k / sqrt(D), over their sum: exp to second order.

    Args:
        width, heads: of the input; values have width / heads columns a head.
        feature: D, the width of queries and keys. eps: added to the sum of weights.

    No biases and no positions. Shapes: (B, N, C) -> (B, N, C). State: (C + H) F numbers with F = 1 + D +
    D (D + 1) / 2 (153 for 16; the published form holds 273 with the same products). Cost: O(N C F).
    """

    def __init__(self, width: int, heads: int, *, feature: int = FEATURE, eps: float = EPS) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"TaylorAttention: width must be a multiple of heads, got {width} and {heads}")
        if feature < 1:
            raise ValueError(f"TaylorAttention: feature must be at least 1, got {feature}")
        self.heads, self.eps = heads, eps
        self.query, self.key = (nn.Linear(width, heads * feature, bias=False) for _ in range(2))
        self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))

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
        query, key, value = (
            make(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for make in (self.query, self.key, self.value)
        )
        mixed, after = scan(
            query, key, value, kernel=Taylor(), normalise=True, eps=self.eps, valid=valid, state=state,
            return_state=True,
        )  # fmt: skip
        return self.out(mixed.transpose(1, 2).flatten(2)), after


def sliding_window(
    width: int, heads: int, *, previous: int = PREVIOUS, base: float | None = 10000.0
) -> SelfAttention:
    """Exact causal attention to the `previous` tokens and the own one: previous + 1 keys, kept in a ring.

    previous: half of the official window_size; the block size of the MQAR suite's mask. base: of rotary
    positions, None: none. ValueError: previous below 1.
    """
    if previous < 1:
        raise ValueError(f"sliding_window: previous must be at least 1 token, got {previous}")
    return SelfAttention(width, heads, pattern=causal() & window(previous + 1), base=base)


class GatedConv(nn.Module):
    """W_out(SiLU(causal depthwise conv(a)) * g) with [a, g] = W_in x: BaseConv of the language models.

    Args:
        taps: of the convolution, which has no bias. expand: W_in gives expand C columns, a and g half each.
        bias: of W_in and W_out.

    Shapes: (B, N, C) -> (B, N, C). State: (taps - 1) expand C / 2 numbers. Cost: 1.5 expand C^2 N.
    """

    def __init__(self, width: int, *, taps: int = 3, expand: int = 4, bias: bool = True) -> None:
        super().__init__()
        if expand < 2 or expand * width % 2:
            raise ValueError(
                f"GatedConv: expand * width must be even and expand >= 2, got {expand} * {width}"
            )
        inner = expand * width // 2
        self.enter, self.leave = nn.Linear(width, 2 * inner, bias=bias), nn.Linear(inner, width, bias=bias)
        self.conv = ShortConv(inner, taps, bias=False, activation=functional.silu)

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding, at the start or at the end."""
        return self.advance(x, self.start(x.shape[0]), valid=valid)[0]

    def start(self, batch: int) -> State:
        """Zeros before the first token."""
        return self.conv.start(batch)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state behind them."""
        carried, gate = self.enter(x).chunk(2, -1)
        carried, after = self.conv.advance(carried, state, valid=valid)
        return self.leave(carried * gate), after


MQAR_PREVIOUS = 16
"""Of the registered mixer: the smaller window of the recall experiments."""


def _linear(setting: Setting) -> nn.Module:
    return TaylorAttention(setting.width, setting.heads)


def _window(setting: Setting) -> nn.Module:
    return sliding_window(setting.width, setting.heads, previous=MQAR_PREVIOUS)


WHY_NOT = "the published layers are causal and read one sequence"

register_mixer(
    MixerEntry("based_linear", _linear, frozenset({"CS"}), stateful=True, padding=True, why_not=WHY_NOT)
)
register_mixer(
    MixerEntry(
        "based_window",
        _window,
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        local=True,
        why_not=WHY_NOT,
    )
)
