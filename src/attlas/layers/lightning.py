"""Lightning attention: linear attention with a constant decay per head and no denominator.

    o_t = sum_{s <= t} lambda^(t - s) (q_t . k_s) v_s,    lambda = exp(-slope_h),

without 1 / sqrt D. `attlas.scan(q, k, v, log_decay=-slopes)` is Lightning Attention-2 (and the algorithm of
the 2024 paper on TNL): quadratic inside chunks, a state between them. `lightning1` is the tiled, quadratic
form that came before it. Legend: B batch, H heads, N tokens, D key width, E value width, C channels.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from attlas.layers.mixers import MixerEntry, register_mixer
from attlas.scan import State, scan
from attlas.scan.state import wide

__all__ = [
    "LightningAttention",
    "alibi_by_layer",
    "checked_slopes",
    "empty_state",
    "lightning1",
    "linear_by_layer",
    "log_decay_of",
]

REST = 1e-5  # of its slope that the last layer keeps (official code)


def alibi_by_layer(heads: int, layer: int = 0, layers: int = 1) -> tuple[float, ...]:
    """Slopes of the official code: ALiBi's times 1 - l / (L - 1) + 1e-5; the last layer hardly decays.

    ALiBi's: 2^(-8 (h + 1) / H) for H a power of two; otherwise those of the next lower power of two P,
    then every second one of 2 P. A single layer gets the first layer's factor, 1 + 1e-5: the official
    expression divides by 0 there (transformers' MiniMax gives the same). Source: OpenNLPLab's
    lightning-attention and TransNormerLLM. Raises ValueError for a layer that is none of 0 .. layers - 1.
    """
    _check_layer(heads, layer, layers)
    power = 2 ** (heads.bit_length() - 1)
    factor = 1 - layer / max(1, layers - 1) + REST
    first = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * (heads - power), 2)]
    return tuple(slope * factor for slope in (*first, *between))


def linear_by_layer(heads: int, layer: int = 0, layers: int = 1) -> tuple[float, ...]:
    """Slopes as printed in the papers: (8 h / H)(1 - l / L) from h = 0, so that head 0 never decays.

    Source: arXiv 2307.14995 and 2405.17381; their official code has `alibi_by_layer` instead. Raises
    ValueError as that one.
    """
    _check_layer(heads, layer, layers)
    return tuple(8 * head / heads * (1 - layer / layers) for head in range(heads))


def _check_layer(heads: int, layer: int, layers: int) -> None:
    if heads < 1:
        raise ValueError(f"slopes: heads must be at least 1, got {heads}")
    if not 0 <= layer < layers:
        raise ValueError(f"slopes: layer must be one of 0 .. layers - 1, got layer {layer} of {layers}")


def checked_slopes(slopes: Sequence[float], heads: int) -> tuple[float, ...]:
    """One finite slope >= 0 per head as plain numbers: they stay exact where a module is cast to bfloat16."""
    given = tuple(float(slope) for slope in slopes)
    if len(given) != heads or not all(isfinite(slope) and slope >= 0 for slope in given):
        raise ValueError(
            f"slopes must be {heads} finite numbers >= 0, one per head (lambda = exp(-slope)), got {given}"
        )
    return given


def log_decay_of(slopes: tuple[float, ...], x: Tensor) -> Float[Tensor, "H"]:
    """-slopes where `x` is, in the precision of states (float32, float64 for float64)."""
    return -torch.tensor(slopes, dtype=wide(x.dtype), device=x.device)


def empty_state(batch: int, heads: int, features: int, width: int, like: Tensor) -> State:
    """The state of `attlas.scan` before the first token, for a model whose weights are as `like`."""
    sums = torch.zeros(batch, heads, features, width, dtype=wide(like.dtype), device=like.device)
    return State({"sum": sums}, torch.zeros(batch, dtype=torch.int64, device=like.device))


def lightning1(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H N D"],
    value: Float[Tensor, "B H N E"],
    log_decay: Float[Tensor, "H"],
    *,
    tile: int = 64,
) -> Float[Tensor, "B H N E"]:
    """Lightning Attention-1: o_i = sum_{j <= i} [(Q_i K_j^T) * M_ij] V_j over tiles of `tile` tokens.

    log_decay: -slope per head, <= 0, no gradient. Cost: O(N^2 (D + E)) time forward and backward, memory
    O(N (D + E)) and one tile x tile of scores; gradients are tiled alike (once differentiable). A baseline:
    `attlas.scan(query, key, value, log_decay=log_decay)` gives the same in linear time. Every row tile
    carries the decay between its key tiles by Horner's rule, in place of a mask M_ij for each of them.
    Source: arXiv 2307.14995. Raises ValueError for a tile below 1 and a log_decay above 0 or with gradient.
    """
    if tile < 1:
        raise ValueError(f"lightning1: tile must be at least 1 token, got {tile}")
    if log_decay.requires_grad:
        raise ValueError("lightning1 gives log_decay no gradient: detach it, or use attlas.scan")
    if not bool(((log_decay <= 0) & log_decay.isfinite()).all()):
        raise ValueError(
            f"lightning1: log_decay must be <= 0 and finite (-slope per head), got {log_decay.tolist()}"
        )
    wanted = (query.shape[0], len(log_decay), query.shape[2])
    for name, part in (("query", query), ("key", key), ("value", value)):
        if part.shape[:3] != wanted or (name == "key" and part.shape[3] != query.shape[3]):
            raise ValueError(
                f"lightning1: {name} must be (batch, heads, tokens, width) = {(*wanted, '..')} with one "
                f"decay a head and keys as wide as queries, got {tuple(part.shape)}"
            )
    found: Tensor = _Tiles.apply(query, key, value, log_decay, tile)
    return found


class _Tiles(torch.autograd.Function):
    """The tiles, whose gradients are tiles of the same form, for keys and values read from the end."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, tile: int) -> Tensor:
        ctx.save_for_backward(query, key, value, log_decay)
        ctx.tile = tile
        return _tiled(query, key, value, log_decay, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, log_decay = ctx.saved_tensors
        late = [x.flip(2) for x in (query, key, value, grad)]
        d_query = _tiled(grad, value, key, log_decay, ctx.tile)
        d_key = _tiled(late[2], late[3], late[0], log_decay, ctx.tile).flip(2)
        d_value = _tiled(late[1], late[0], late[3], log_decay, ctx.tile).flip(2)
        return d_query, d_key, d_value, None, None


def _tiled(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, tile: int) -> Tensor:
    """sum_{j <= i} lambda^(i - j) (q_i . k_j) v_j; every exponent is <= 0."""
    kind, length = wide(query.dtype), query.shape[2]
    rate = log_decay.to(kind).view(-1, 1, 1)
    step = torch.arange(tile, device=query.device, dtype=kind).view(-1, 1)
    within = (rate * (step - step.T).clamp_min(0)).exp().tril()
    ahead, behind, across = ((rate * power).exp() for power in (step + 1, tile - 1 - step, tile))
    tiles = [[x.to(kind) for x in whole.split(tile, 2)] for whole in (query, key, value)]
    # Only the last tile may be short, and no later one reads it.
    faded = [key * behind for key in tiles[1][:-1]]
    rows = []
    for index, (q, k, v) in enumerate(zip(*tiles, strict=True)):
        count = q.shape[2]
        read, found = q * ahead[:, :count], torch.zeros((), dtype=kind, device=q.device)
        for other in range(index):
            found = across * found + (read @ faded[other].mT) @ tiles[2][other]
        rows.append(found + (q @ k.mT * within[:, :count, :count]) @ v)
    return torch.cat(rows, 2).to(value.dtype) if length else torch.zeros_like(value)


class LightningAttention(nn.Module):
    """x -> W_o (sigmoid(x W_1 W_2) * LayerNorm(o)), o of all heads from q, k, v = SiLU(x W): the TNL layer.

    Args:
        width, heads: of the input; slopes: (H,), `alibi_by_layer(heads, layer, layers)` or
        `linear_by_layer(...)`, default `alibi_by_layer(heads)`; bias: of the projections.

    The LayerNorm is over all heads' channels together, the gate's rank is the head width. Shapes: (B, N,
    width) -> (B, N, width). Cost: (4 + 2 / H) N C^2, and that of `attlas.scan`. State: H D^2 numbers.
    Source: arXiv 2405.17381, the example module of the official operators.
    """

    def __init__(
        self, width: int, heads: int, *, slopes: Sequence[float] | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.width, self.heads = width, heads
        self.slopes = checked_slopes(alibi_by_layer(heads) if slopes is None else slopes, heads)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        head = width // heads
        self.gate = nn.Sequential(nn.Linear(width, head, bias=bias), nn.Linear(head, width, bias=bias))

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; where `valid` is False a token is padding and no step of the decay."""
        return self._advanced(x, None, valid)[0]

    def start(self, batch: int) -> State:
        """The state before the first token."""
        head = self.width // self.heads
        return empty_state(batch, self.heads, head, head, self.out.weight)

    def advance(
        self, x: Float[Tensor, "B N C"], state: State, *, valid: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens, and the state after them."""
        return self._advanced(x, state, valid)

    def _advanced(self, x: Tensor, state: State | None, valid: Tensor | None) -> tuple[Tensor, State]:
        query, key, value = (
            functional.silu(make(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for make in (self.query, self.key, self.value)
        )
        mixed, after = scan(
            query, key, value, log_decay=log_decay_of(self.slopes, x), valid=valid, state=state,
            return_state=True,
        )  # fmt: skip
        normed = self.norm(mixed.transpose(1, 2).flatten(2))
        return self.out(self.gate(x).sigmoid() * normed), after


register_mixer(
    MixerEntry(
        "lightning",
        lambda setting: LightningAttention(setting.width, setting.heads),
        frozenset({"CS"}),
        stateful=True,
        padding=True,
        why_not="the decay runs over the past of one sequence",
    )
)
