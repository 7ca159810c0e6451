"""The layers of TransNormerLLM: decayed linear attention, normalised after mixing and gated linearly.

Legend: B batch, H heads, N tokens, D head width, F features of a key, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.lightning import alibi_by_layer, checked_slopes, empty_state, log_decay_of
from attlas.layers.mixers import MixerEntry, register_mixer
from attlas.scan import LRPE, Identity, Kernel, State, scan
from attlas.scan.state import wide

__all__ = ["SGLU", "SRMSNorm", "Sweep", "TransNormerBlock", "TransNormerMixer", "lrpe_angles", "origin"]

Sweep = Callable[..., Any]
"""sweep(q, k, v, log_decay=, kernel=, valid=, state=, return_state=True): `attlas.scan`, or `origin`."""


class SRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32 or better, without a learned scale.

    Source: TransNormerLLM, arXiv 2307.14995; eps as in its code.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Rows of root mean square 1."""
        return functional.rms_norm(x.to(wide(x.dtype)), (self.width,), eps=self.eps).to(x.dtype)


class SGLU(nn.Module):
    """x -> (x V * x U) W, a gated unit without activation, C -> inner -> C, no biases.

    inner: 8 C / 3 rounded unless given (2816 for C = 1024 in the official configuration). Cost: 3 N C inner.
    """

    def __init__(self, width: int, inner: int | None = None) -> None:
        super().__init__()
        inner = round(8 * width / 3) if inner is None else inner
        self.left, self.right = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Both halves multiplied, projected back."""
        return self.out(self.left(x) * self.right(x))


def lrpe_angles(heads: int, width: int) -> Float[Tensor, "H 1 D"]:
    """theta at the start of training: 10000^(-2 j / (H D)), j running on from head to head."""
    channels = heads * width
    return (10000 ** (-2 / channels * torch.arange(channels))).view(heads, 1, width)


class TransNormerMixer(nn.Module):
    """x -> W_o (u * SRMSNorm(o)): o_t = sum_{s <= t} lambda^(t - s) (q_t . k_s) v_s of q, k = Swish(x W).

    v and u = x W_u are not activated; the norm is over all heads' channels together. With `lrpe` the product
    is sum_c q_c k_c cos((t - s) theta_c), theta (H, 1, D) learned.

    Args:
        width, heads: of the input; hidden: channels of all heads together, `width` unless given.
        slopes: (H,), lambda = exp(-slope), default `alibi_by_layer(heads)`.
        lrpe: positions as well, which the model has in its first layer only.

    Shapes: (B, N, width) -> (B, N, width). Cost: 5 N C hidden, and that of `attlas.scan`. State: hidden D
    numbers, twice as many with `lrpe`, and the position. Source: arXiv 2307.14995; the official code makes q,
    k, v and u by one matrix, and keeps the position in the module.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        slopes: Sequence[float] | None = None,
        lrpe: bool = False,
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        if hidden % heads:
            raise ValueError(
                f"hidden (width unless given) must be a multiple of heads, got {hidden} and {heads}"
            )
        self.heads = heads
        self.slopes = checked_slopes(alibi_by_layer(heads) if slopes is None else slopes, heads)
        self.project = nn.Linear(width, 3 * hidden, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.norm: nn.Module = SRMSNorm(hidden)
        self.out = nn.Linear(hidden, width, bias=False)
        self.theta = nn.Parameter(lrpe_angles(heads, hidden // heads)) if lrpe else None

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; where `valid` is False a token is padding and no step of the decay."""
        return self._advanced(x, None, valid, scan)[0]

    def start(self, batch: int) -> State:
        """The state before the first token."""
        head = self.out.in_features // self.heads
        features = head if self.theta is None else 2 * head
        return empty_state(batch, self.heads, features, head, self.out.weight)

    def advance(
        self,
        x: Float[Tensor, "B N C"],
        state: State,
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        sweep: Sweep = scan,
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens, and the state after them. sweep: `origin` for the form that overflows."""
        return self._advanced(x, state, valid, sweep)

    def gated(self, mixed: Tensor, x: Tensor) -> Tensor:
        """u * SRMSNorm(o)."""
        return self.gate(x) * self.norm(mixed)

    def _advanced(
        self, x: Tensor, state: State | None, valid: Tensor | None, sweep: Sweep
    ) -> tuple[Tensor, State]:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1)
        )
        kernel: Kernel = Identity() if self.theta is None else LRPE(self.theta)
        mixed, after = sweep(
            functional.silu(query), functional.silu(key), value, log_decay=log_decay_of(self.slopes, x),
            kernel=kernel, valid=valid, state=state, return_state=True,
        )  # fmt: skip
        return self.out(self.gated(mixed.transpose(1, 2).flatten(2), x)), after


class TransNormerBlock(nn.Module):
    """x <- x + mixer(SRMSNorm x), then x <- x + mlp(SRMSNorm x); mlp: `SGLU` unless given."""

    def __init__(self, width: int, mixer: nn.Module, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.before_mixer = SRMSNorm(width)
        self.mixer: Any = mixer
        self.before_mlp, self.mlp = SRMSNorm(width), SGLU(width) if mlp is None else mlp

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Both residual steps."""
        return self._finished(x + self.mixer(self.before_mixer(x), valid=valid))

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, **named: Any
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """Both steps for the next N tokens; the state is the mixer's, which gets what is `named`."""
        mixed, state = self.mixer.advance(self.before_mixer(x), state, **named)
        return self._finished(x + mixed), state

    def _finished(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.before_mlp(x))


def origin(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H N D"],
    value: Float[Tensor, "B H N E"],
    *,
    log_decay: Float[Tensor, "H"],
    state: State,
    kernel: Kernel | None = None,
    valid: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Float[Tensor, "B H N E"], State]:
    """The textbook inference: KV_t = KV_{t-1} + lambda^-t k_t v_t^T, o_t = lambda^t q_t KV_t.

    Stands in for `attlas.scan`, whose robust form KV_t = lambda KV_{t-1} + k_t v_t^T is the same in exact
    arithmetic; in float32 lambda^-t overflows after 88 / slope tokens. Here to show that: decode with `scan`.
    It starts from the empty state of `start`, and goes on from its own. Source: "origin inference"
    of arXiv 2307.14995. Raises ValueError for padding, and for a state that `scan` left after some tokens.
    """
    if valid is not None:
        raise ValueError("origin inference takes no padding: valid must be None; use attlas.scan")
    kernel = Identity() if kernel is None else kernel
    kind = wide(query.dtype)
    places = state.position[:, None] + torch.arange(query.shape[2], device=query.device)
    q, k = (kernel.features(x.to(kind), places) for x in (query, key))
    grown = _grown(state, (*k.shape[:2], k.shape[-1], value.shape[-1]), k)
    rows = []
    for index in range(query.shape[2]):
        power = (places[:, index].to(kind) + 1).view(-1, 1, 1, 1) * log_decay.to(kind).view(-1, 1, 1)
        grown = grown + (-power).exp() * k[:, :, index, :, None] * value[:, :, index, None, :].to(kind)
        rows.append((power.exp() * (q[:, :, index, None, :] @ grown)).squeeze(2))
    return torch.stack(rows, 2).to(value.dtype), State({"grown": grown}, places[:, -1] + 1)


def _grown(state: State, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if "grown" in state.parts:
        return state["grown"]
    if bool(state.position.any()):
        raise ValueError(
            "origin inference starts from an empty state or goes on from its own, got a state of attlas.scan "
            f"after {int(state.position.max())} tokens"
        )
    return like.new_zeros(shape)


register_mixer(
    MixerEntry(
        "transnormer",
        lambda setting: TransNormerMixer(setting.width, setting.heads, lrpe=True),
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        why_not="the decay runs over the past of one sequence",
    )
)
