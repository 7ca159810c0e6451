"""Checkpoints that keep a G1 gate inside the query projection: where its rows stand.

"official" (qiuzh20/gated_attention, arXiv 2505.06708): per KV head, the queries of its group, then their
gates; elementwise (E rows a gate) or headwise (one row). "qwen3-next" (transformers' Qwen3NextAttention): per
query head, its E query rows, then its E gate rows.
Legend: H query heads, G KV heads, E head width, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LAYOUTS", "fuse_gate", "split_gate"]

LAYOUTS = ("official", "qwen3-next")


def split_gate(
    fused: Float[Tensor, "rows *C"], *, heads: int, kv_heads: int, head_width: int, layout: str
) -> tuple[Float[Tensor, "HE *C"], Float[Tensor, "gates *C"]]:
    """(query rows (H E, C), gate rows (H E, C) or (H, C)) of a fused projection, each head by head.

    fused: the weight of `q_proj`, (2 H E, C) elementwise or (H E + H, C) headwise, or its bias without C. The
    parts are the weights of `SelfAttention.query` and of a `Gate` at G1. ValueError: rows that do not fit.
    """
    _check(layout, heads, kv_heads)
    rows, query_rows = fused.shape[0], heads * head_width
    if rows == 2 * query_rows:
        width = head_width
    elif rows == query_rows + heads and layout == "official":
        width = 1
    else:
        also = f" or {query_rows + heads} (headwise)" if layout == "official" else ""
        raise ValueError(
            f"a query projection with a gate in the layout {layout!r} has {2 * query_rows} rows (elementwise)"
            f"{also} for {heads} heads of width {head_width}, got {rows}"
        )
    units = kv_heads if layout == "official" else heads
    size = heads // units
    query, gate = fused.unflatten(0, (units, -1)).split([size * head_width, size * width], 1)
    return query.flatten(0, 1), gate.flatten(0, 1)


def fuse_gate(
    query: Float[Tensor, "HE *C"],
    gate: Float[Tensor, "gates *C"],
    *,
    heads: int,
    kv_heads: int,
    head_width: int,
    layout: str,
) -> Float[Tensor, "rows *C"]:
    """The inverse of `split_gate`."""
    _check(layout, heads, kv_heads)
    fits = (heads * head_width, heads) if layout == "official" else (heads * head_width,)
    if query.shape[0] != heads * head_width or gate.shape[0] not in fits:
        raise ValueError(
            f"the layout {layout!r} takes {heads * head_width} query rows and "
            f"{' or '.join(map(str, fits))} gate rows for {heads} heads of width {head_width}, got "
            f"{query.shape[0]} and {gate.shape[0]}"
        )
    units = kv_heads if layout == "official" else heads
    return torch.cat([part.unflatten(0, (units, -1)) for part in (query, gate)], 1).flatten(0, 1)


def _check(layout: str, heads: int, kv_heads: int) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"gate layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
