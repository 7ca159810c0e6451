"""Combiner: every earlier token is seen, directly or through the summary of its region, in one softmax.

    p(j | i) = w_j                    for a direct key j of i
    p(j | i) = w_R p(j | R)           for j in a region R of i,  p(. | R) = softmax_j(qbar_R . k_j)
    (w_j, w_R) = softmax of (q_i . k_j, q_i . kbar_R) together;  out_i = sum_j w_j v_j + sum_R w_R u_R

with u_R = sum_j p(j | R) v_j; qbar_R and kbar_R pool the region's scaled queries and its keys. Rows of p sum
to 1 and p(j | i) > 0 for all j <= i. No log |R| is added to a region's logit. The summaries of a layer are
computed once, and no n x n matrix is ever formed. Source: arXiv 2107.05768.

Legend: B batch, H query heads, G KV heads, N tokens, D key width, V value width, S tokens of a segment, R
segments. The forms on a grid are in `combiner_axial`.
"""

from collections.abc import Callable
from functools import partial
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.attend import State, attend, merge
from attlas.layers.folds import Folds
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.pattern import Pattern, Tokens, causal, distance, window
from attlas.score import Dot

__all__ = [
    "SCALED",
    "Combiner",
    "check_tokens",
    "fixed",
    "heads_alike",
    "logsparse",
    "max_pool",
    "read",
    "segments_and_nodes",
]

Pool = Callable[[Tensor], Tensor]
Part = tuple[Tensor, State]
SCALED = Dot(1.0)  # The query is scaled before it is pooled, and only there.


def max_pool(x: Tensor) -> Tensor:
    """Element-wise maximum over the tokens, (..., tokens, D) -> (..., D): the paper's pooling."""
    return x.amax(-2)


def fixed(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G N D"],
    value: Float[Tensor, "B G N V"],
    *,
    segment: int,
    is_causal: bool = True,
    pool: Pool = max_pool,
) -> Float[Tensor, "B H N V"]:
    """Direct: the own segment up to i. Regions: all earlier segments, pooled by `pool`.

    is_causal=False: the whole own segment, and *all* segments as regions, the own one too, as in the official
    code. The last segment may be shorter. Cost: O(N (S + N / S)), least at S = sqrt N.
    """
    scaled, own_key, own_value = heads_alike(query, key, value)
    length = query.shape[2]
    grid = Folds.of(query, segment)
    # Only the last segment can be short, and no causal region is.
    whole = (grid.rows - 1 if is_causal else length // segment) * segment
    cuts = [(0, whole, segment)] if is_causal else [(0, whole, segment), (whole, length, length - whole)]
    nodes = [
        _summaries([x[:, :, first:stop] for x in (scaled, own_key, own_value)], size, pool)
        for first, stop, size in cuts
        if first < stop
    ]
    if not nodes:
        nodes = [(own_key[:, :, :0], own_value[:, :, :0])]
    node_key, node_value = (torch.cat(parts, 2) for parts in zip(*nodes, strict=True))
    return segments_and_nodes(
        query, key, value, node_key=node_key, node_value=node_value, segment=segment, is_causal=is_causal
    )


def segments_and_nodes(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G N D"],
    value: Float[Tensor, "B G N V"],
    *,
    node_key: Float[Tensor, "B H R D"],
    node_value: Float[Tensor, "B H R V"],
    segment: int,
    is_causal: bool = True,
) -> Float[Tensor, "B H N V"]:
    """One softmax over the own segment and over one node of every segment: what `fixed` does with summaries.

    Causal: the own segment up to i and the nodes of earlier segments, of which the last segment has none, so
    that R = ceil(N / S) - 1; else the whole own segment and all R = ceil(N / S) nodes.
    """
    query, key, value = heads_alike(query, key, value)
    grid = Folds.of(query, segment)
    nodes = grid.rows - 1 if is_causal else grid.rows
    check_tokens("node_key", node_key, (*query.shape[:2], nodes, query.shape[3]))
    check_tokens("node_value", node_value, (*query.shape[:2], nodes, value.shape[3]))
    rows = [grid.fold(x) for x in (query, key, value)]
    valid = None
    if grid.padding and not is_causal:
        seen = torch.ones(grid.rows, segment, dtype=torch.bool, device=query.device)
        seen[-1, -grid.padding :] = False
        valid = grid.seen(seen)
    own = read(rows, causal() if is_causal else None, valid)
    if not nodes:
        return grid.unfold(own[0])
    # One copy of the nodes per column of the grid takes as much as the keys; one per segment could be n^2.
    columns = [grid.turned(rows[0]), *(x.repeat_interleave(segment, 0) for x in (node_key, node_value))]
    earlier = read(columns, distance(1) if is_causal else None)
    return grid.unfold(merge([own, grid.turned_part(earlier)])[0])


def logsparse(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G N D"],
    value: Float[Tensor, "B G N V"],
    *,
    pool: Pool = max_pool,
) -> Float[Tensor, "B H N V"]:
    """Direct: i itself. Regions: for every set bit l of i the aligned block of 2^l tokens that ends where the
    lower bits of i begin, [((i >> l) - 1) 2^l, (i >> l) 2^l); a block of one token is that token.

    Causal. Cost: O(N log N).
    """
    query, key, value = heads_alike(query, key, value)
    length = query.shape[2]
    at = torch.arange(length, device=query.device)
    extra = []
    for level in range((length - 1).bit_length()):
        size, whole = 1 << level, (length - 1) >> level
        nodes, carried = key, value
        if level:
            nodes, carried = _summaries([x[:, :, : whole * size] for x in (query, key, value)], size, pool)
        region = at >> level
        mine = (region - 1).clamp(min=0)
        logit = (query * nodes[:, :, mine]).sum(-1, keepdim=True)
        absent = (region % 2 == 0)[:, None]
        extra.append((logit.masked_fill(absent, -torch.inf), carried[:, :, mine]))
    return attend(query, key, value, score=SCALED, pattern=window(1), extra=extra)


class Combiner(nn.Module):
    """x -> W_o mix(W_q x, W_k x, W_v x), heads side by side in the width: Combiner's attention layer.

    mix: (query, key, value) -> out, all (B, H, N, D): `partial(fixed, segment=128)`, `logsparse`,
    `partial(axial_mixture, segment=128)`.

    Shapes: (B, N, width) -> (B, N, width). Cost: 4 width^2 N for the projections plus that of `mix`.
    """

    def __init__(self, width: int, heads: int, mix: Callable[..., Tensor], *, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"combiner width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.mix = heads, mix
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The mixed tokens, projected."""
        parts = (self.split(make(x)) for make in (self.query, self.key, self.value))
        return self.out(self.mixed(x, *parts).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, H, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mixed(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`mix` of the heads; a form that needs the input `x` as well overrides it."""
        return self.mix(query, key, value)


def _summaries(parts: list[Tensor], size: int, pool: Pool) -> tuple[Tensor, Tensor]:
    """(kbar, u), (B, H, blocks, D) and (B, H, blocks, V), of blocks of `size` tokens of query, key, value."""
    grid = Folds.of(parts[0], size)
    q, k, v = (grid.fold(x) for x in parts)
    carried = attend(pool(q).unsqueeze(2), k, v, score=SCALED).squeeze(2)
    kbar, u = (x.unflatten(0, (grid.batch, grid.rows)).transpose(1, 2) for x in (pool(k), carried))
    return kbar, u


def read(parts: list[Tensor], pattern: Pattern | None, valid: Tensor | None = None) -> Part:
    """What scaled queries read from keys and values, with its state for `merge`; tokens count from 0."""
    query, key, value = parts
    q_at, k_at = Tokens(query.shape[2]), Tokens(key.shape[2], valid=valid)
    return attend(query, key, value, score=SCALED, pattern=pattern, q_at=q_at, k_at=k_at, return_state=True)


def check_tokens(name: str, given: Tensor, wanted: tuple[int, ...]) -> None:
    """ValueError where `given` has another shape: folds would fill up missing tokens with zeros."""
    if given.shape != wanted:
        raise ValueError(
            f"combiner: {name} must have shape (batch, heads, tokens, width) = {wanted} to fit the query, "
            f"got {tuple(given.shape)}"
        )


def heads_alike(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scaled query, and keys and values of every query head: summaries belong to query heads.

    ValueError: tokens, heads or widths that do not fit.
    """
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or not query.shape[2]:
        raise ValueError(
            "combiner: query, key and value must have axes (batch, heads, tokens, width) and at least 1 "
            f"token, got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    batch, heads, length, width = query.shape
    kv_heads = key.shape[1]
    if not kv_heads or heads % kv_heads:
        raise ValueError(
            "combiner: the number of query heads must be a multiple of the number of key heads, got "
            f"{heads} and {kv_heads}"
        )
    check_tokens("key", key, (batch, kv_heads, length, width))
    check_tokens("value", value, (batch, kv_heads, length, value.shape[3]))
    group = heads // kv_heads
    if group > 1:
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    return query * query.shape[-1] ** -0.5, key, value


SEGMENT = 8
"""Tokens of a segment of the registered mixer where no length is given; else the root of the length."""


def _entry(setting: Setting) -> nn.Module:
    segment = SEGMENT if setting.length is None else max(1, isqrt(setting.length))
    return Combiner(setting.width, setting.heads, partial(fixed, segment=segment, is_causal=setting.causal))


def _entry_logsparse(setting: Setting) -> nn.Module:
    return Combiner(setting.width, setting.heads, logsparse)


_ACROSS = "the regions of a row are parts of its own sequence"
register_mixer(MixerEntry("combiner_fixed", _entry, frozenset({"NS", "CS"}), why_not=_ACROSS))
register_mixer(MixerEntry("combiner_logsparse", _entry_logsparse, frozenset({"CS"}), why_not=_ACROSS))
