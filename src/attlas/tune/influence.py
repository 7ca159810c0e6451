"""Attention influence: how much the loss would change if one attention edge were deleted.

Shapes: H query heads, G KV heads (H = G * group), N queries, M keys, D key width, V value width,
b the number of `block`-token blocks of a length. MoA, arXiv 2406.14909, section 4.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Workspace", "block_influence", "edge_influence"]

# Elements of one tile buffer: three of them stay near the last-level cache of a small machine (2 MiB each).
TILE_ELEMENTS = 1 << 19


def edge_influence(
    attention: Float[Tensor, "*batch N M"],
    grad: Float[Tensor, "..."],
    *,
    signed: bool = False,
    causal: bool = True,
) -> Float[Tensor, "*batch N M"]:
    """First-order change of the loss when one edge is deleted and the rest of its row is renormalised.

        E_ij = sum_n G_in dA_in = -A_ij (G_ij - sum_n G_in A_in) / (1 - A_ij + eps)

    because deleting (i, j) changes row i by dA_ij = -A_ij and dA_in = A_in A_ij / (1 - A_ij).
    `attention` = A are the weights after softmax, `grad` = G their loss gradient. A row with one single edge
    (row 0 where `causal`, or M = 1) has nothing left to renormalise: E = -G A. Returns |E|, or E if `signed`.

    Computed in float32 at least: A near 1 (sinks) cancels. eps is that of the computing type, as released.
    Cost: about 6 passes over A. Departures: none (the sign is dropped by the released code, not the paper).
    """
    if attention.shape != grad.shape:
        raise ValueError(
            f"attention and grad must have one shape (..., queries, keys), got {tuple(attention.shape)} and "
            f"{tuple(grad.shape)}; pass the weights and their own gradient"
        )
    dtype = torch.promote_types(attention.dtype, torch.float32)
    weights, gradient = attention.to(dtype), grad.to(dtype).clone()
    single = gradient[..., :1, :] * weights[..., :1, :] if causal else None
    if weights.shape[-1] == 1:
        influence = -gradient * weights
    else:
        _influence_(weights.clone(), gradient, (gradient * weights).sum(-1, keepdim=True))
        influence = gradient.neg_()
        if single is not None:
            influence[..., :1, :] = -single
    return influence if signed else influence.abs_()


def _influence_(weights: Tensor, gradient: Tensor, row_mean: Tensor) -> None:
    """In place: gradient <- A (G - sum_n G A) / (1 - A + eps), that is -E; `weights` is used up."""
    gradient.sub_(row_mean).mul_(weights)
    gradient.div_(weights.neg_().add_(1 + torch.finfo(weights.dtype).eps))


class Workspace:
    """Three tile buffers that grow to the largest tile asked for and are reused (fresh pages are slow)."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def tiles(self, *shape: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three uninitialised contiguous tensors of `shape`, of the type and device of `like`."""
        size = math.prod(shape)
        have = self._buffers[0] if self._buffers else None
        if have is None or have.numel() < size or have.dtype != like.dtype or have.device != like.device:
            self._buffers = [like.new_empty(size) for _ in range(3)]
        first, second, third = (buffer[:size].view(shape) for buffer in self._buffers)
        return first, second, third


def block_influence(
    query: Float[Tensor, "H N D"],
    key: Float[Tensor, "G N D"],
    value: Float[Tensor, "G N V"],
    grad_out: Float[Tensor, "H N V"],
    *,
    scale: float,
    block: int = 64,
    causal: bool = True,
    window: int | None = None,
    valid: int | None = None,
    workspace: Workspace | None = None,
) -> tuple[Float[Tensor, "H b b"], Float[Tensor, "H b b"]]:
    """Sums of |E| and of A over `block` x `block` tiles, for one item and one layer: (influence, attention).

        A = softmax(scale Q K^T + mask),  G = dO V^T,  |E| by `edge_influence`

    `grad_out` = dO is the loss gradient of the attention output (before the output projection). `window` is
    the layer's own sliding window (i - j < window, or |i - j| < window if not `causal`). `valid`: number of
    real tokens, the rest is right padding that neither sees nor is seen nor carries gradient. The last block
    of a length that is no multiple of `block` is a partial sum. Rounded inputs (bf16) are computed in
    float32.

    Cost: 2 N^2 H (D + V) FLOPs if not causal, half if causal, and about 12 passes over tiles; memory is three
    tiles of 2 MiB, never N x N. Rows are complete in a tile, so nothing is carried between tiles.
    """
    heads, length, kv_heads = *query.shape[:2], key.shape[0]
    _check(query, key, value, grad_out, block, window, valid)
    tokens = length if valid is None else valid
    work = workspace if workspace is not None else Workspace()
    dtype = torch.promote_types(query.dtype, torch.float32)
    blocks, group = -(-length // block), heads // kv_heads
    padded = -(-tokens // block) * block
    rows_query = _padded(query, tokens, padded, dtype).mul_(scale).unflatten(0, (kv_heads, group))
    rows_grad = _padded(grad_out, tokens, padded, dtype).unflatten(0, (kv_heads, group))
    columns_key = _padded(key, tokens, padded, dtype).transpose(1, 2).contiguous()
    columns_value = _padded(value, tokens, padded, dtype).transpose(1, 2).contiguous()
    influence = rows_query.new_zeros(kv_heads, group, blocks, blocks)
    attention = torch.zeros_like(influence)
    step = block * max(1, 128 // block)
    for start in range(0, padded, step):
        stop = min(start + step, padded)
        low, high = _key_range(start, stop, padded, block, causal, window)
        hidden = _hidden(start, stop, low, high, tokens, causal, window, query.device)
        together = max(1, TILE_ELEMENTS // (group * (stop - start) * (high - low)))
        for first in range(0, kv_heads, together):
            some = slice(first, min(first + together, kv_heads))
            tile = _tile(
                rows_query[some, :, start:stop],
                columns_key[some, :, low:high],
                columns_value[some, :, low:high],
                rows_grad[some, :, start:stop],
                hidden,
                work,
                alone=stop - start if tokens == 1 or window == 1 else int(causal and start == 0),
                real_rows=tokens - start,
                block=block,
            )
            place = (
                some,
                slice(None),
                slice(start // block, stop // block),
                slice(low // block, high // block),
            )
            influence[place], attention[place] = tile
    return influence.flatten(0, 1), attention.flatten(0, 1)


def _tile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    hidden: list[tuple[int, int, Tensor]],
    work: Workspace,
    *,
    alone: int,
    real_rows: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Pooled |E| and A of complete rows: query, grad_out (G, group, rows, .), key, value (G, ., keys).

    The first `alone` rows see one key only; rows from `real_rows` on are padding.
    """
    kv_heads, group, rows, _ = query.shape
    keys = key.shape[-1]
    shape = (kv_heads, group * rows, keys)
    weights, gradient, product = work.tiles(*shape, like=query)
    torch.bmm(query.reshape(kv_heads, group * rows, -1), key, out=weights)
    split = weights.view(kv_heads, group, rows, keys)
    for low, high, mask in hidden:
        split[..., low:high].masked_fill_(mask, -torch.inf)
    torch.softmax(weights, -1, out=weights)
    split[:, :, real_rows:].zero_()
    torch.bmm(grad_out.reshape(kv_heads, group * rows, -1), value, out=gradient)
    pooled = split.unflatten(-1, (-1, block)).unflatten(2, (-1, block)).sum((3, 5))
    torch.mul(gradient, weights, out=product)
    _influence_(weights, gradient, product.sum(-1, keepdim=True))
    effect = gradient.view_as(split)
    effect[:, :, :alone] = product.view_as(split)[:, :, :alone]
    by_block = effect.unflatten(-1, (-1, block)).unflatten(2, (-1, block))
    return torch.linalg.vector_norm(by_block, ord=1, dim=(3, 5)), pooled


def _padded(tensor: Tensor, tokens: int, padded: int, dtype: torch.dtype) -> Tensor:
    """The first `tokens` tokens in `dtype`, followed by zeros up to `padded`; always a fresh tensor."""
    full = tensor.new_zeros(tensor.shape[0], padded, tensor.shape[2], dtype=dtype)
    full[:, :tokens] = tensor[:, :tokens]
    return full


def _key_range(
    start: int, stop: int, padded: int, block: int, causal: bool, window: int | None
) -> tuple[int, int]:
    """Keys, in whole blocks, that the rows start..stop may see."""
    low, high = 0, stop if causal else padded
    if window is not None:
        low = max(0, start - window + 1) // block * block
        high = min(high, -(-(stop + window - 1) // block) * block)
    return low, high


def _hidden(
    start: int,
    stop: int,
    low: int,
    high: int,
    tokens: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> list[tuple[int, int, Tensor]]:
    """Strips of the tile that hold pairs outside the mask: (first column, last column, True where hidden)."""
    edges: list[tuple[int, int]] = []
    if causal:
        edges.append((start, high))
    elif tokens < high:
        edges.append((max(tokens, low), high))
    if window is not None:
        edges.append((low, min(max(stop - window, low), high)))
        if not causal:
            edges.append((max(min(start + window, high), low), high))
    strips = []
    row = torch.arange(start, stop, device=device)[:, None]
    for first, last in edges:
        if first >= last:
            continue
        column = torch.arange(first, last, device=device)
        mask = column >= tokens if not causal else column > row
        if window is not None:
            mask = mask | ((row - column).abs() >= window)
        # A row of padding keeps its own column, so that softmax never divides by zero; it is dropped later.
        mask = mask & ~((row >= tokens) & (column == row))
        strips.append((first - low, last - low, mask.expand(stop - start, last - first)))
    return strips


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    block: int,
    window: int | None,
    valid: int | None,
) -> None:
    heads, length, kv_heads = *query.shape[:2], key.shape[0]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"query has {heads} heads and key {kv_heads}: query heads must be a multiple of KV heads; "
            "consecutive query heads share one KV head"
        )
    if value.shape[0] != kv_heads:
        raise ValueError(f"value must have the {kv_heads} heads of key, got {value.shape[0]}")
    if grad_out.shape[:2] != query.shape[:2] or grad_out.shape[2] != value.shape[2]:
        raise ValueError(
            f"grad_out must be (heads, tokens, value width) = ({heads}, {length}, {value.shape[2]}), got "
            f"{tuple(grad_out.shape)}; take the gradient of the attention output before its projection"
        )
    if block < 1:
        raise ValueError(f"block must be at least 1 token, got {block}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}; None means no window")
    if valid is not None and not 1 <= valid <= length:
        raise ValueError(f"valid must count the real tokens, 1..{length}, got {valid}")
