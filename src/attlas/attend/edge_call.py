"""One call of the compiled loops along edges: what it is given, and how it runs in torch's threads.

Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

import ctypes
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.attend.edge_units import Units
from attlas.attend.team import machine_code, run

__all__ = ["ADDITIVE", "AHEAD", "BLOCK", "CALL", "DOT", "LANES", "PRODUCT", "ROW", "run_loop"]

DOT, ADDITIVE, PRODUCT = 0, 1, 2
"""Forms: q . k scale + bias; leaky_relu(q + k + bias); sum of q k e scale. Each may be limited."""
LANES = 8
"""Numbers of a vector; heads are padded with zeros to a whole number of them."""
AHEAD = 16
"""Rows between one in use and the one asked for."""
BLOCK = 256
"""Edges of a node that are taken at a time: their rows stay in the second-level cache."""
ROW = BLOCK + LANES
ALONE = 4096
"""Edges and nodes below which a second thread is not worth its call."""

_ADDRESSES = (
    *("units", "pointer", "other", "order", "query", "key", "value", "bias", "edge", "out", "lse", "state"),
    *("tops", "part_out", "part_tops", "grad_out", "grad_lse", "ends", "grad_state"),
    *("grad_query", "grad_key", "grad_value", "grad_bias", "grad_edge"),
    *("part_query", "part_key", "part_value", "counter", "scratch"),
    *("own_at", "base_at", "own_value_at", "base_value_at", "columns", "value_columns"),
)
_SIZES = (
    *("count", "slots", "huge", "form", "batch", "heads", "kv_heads", "receivers", "senders", "edges"),
    *("width", "value_width", "bias_heads", "limited", "scratch_size", "terms"),
    *("query_batch", "query_node", "key_batch", "key_node", "value_batch", "value_node"),
)
CALL = np.dtype(
    [
        *((name, np.int64) for name in _ADDRESSES + _SIZES),
        *((name, np.float64) for name in ("scale", "slope", "low", "high")),
    ]
)
"""Addresses of tensors (0: there is none), sizes, and numbers of the form.

units (count, 5): first node and the one behind the last, first edge and the one behind the last, and a
slot: of a part of the edges of one node, which goes to the row `slot` of a part_ tensor, else -1 (all edges
of the nodes; a node of more than `huge` edges is left out). pointer, other, order: edges sorted by
receiver, or by sender in the backward of keys and values. query (B, R, H, D), key (B, S, G, D), value (B,
S, G, V): heads lie together, ..._batch and ..._node are bytes between batches and nodes; all else is
contiguous, node-major. bias (E, bias_heads), edge (E, H, D). tops (B, R, 2, H): the largest logit of a
receiver, in powers of two, and the sum of the powers above it, which give weights exactly where lse would
round them. ends (B, R, 3, H): what senders need of a receiver, its top (inf where there are no weights),
one over its sum, and its delta, grad_out . out - grad_lse. ..._at (H,): bytes at which each head begins in
a row of the nodes of the loop (own) and of neighbours (base); columns (terms, 2, vectors): for each vector
of a sum, bytes of its weights and of its gathered numbers. scratch: `scratch_size` bytes for each thread.
limited: whether low and high count. counter: units and threads that have begun, 0."""


def run_loop(
    what: str,
    units: Units,
    edges: tuple[Tensor, Tensor, Tensor],
    numbers: tuple[int, float, float, float, float],
    **tensors: Tensor | None,
) -> None:
    """Run one of the loops over the sorted edges in all of torch's threads."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    if query is None or key is None or value is None:
        raise ValueError("attention along edges: it takes queries, keys and values")
    kind, scale, slope, low, high = numbers
    bias = tensors.get("bias")
    counter = (ctypes.c_int64 * 2)(0, 0)
    work = (edges[1].numel() + edges[0].numel()) * query.shape[0]
    threads = 1 if work < ALONE else torch.get_num_threads()
    tables, terms = _tables(what, query, key, value)
    scratch = query.new_empty(threads, _scratch_size(query), dtype=torch.uint8)
    sizes: dict[str, float] = {
        "count": len(units.table), "slots": units.slots, "huge": units.huge, "form": kind,
        "batch": query.shape[0], "heads": query.shape[2], "kv_heads": key.shape[2],
        "receivers": query.shape[1], "senders": key.shape[1], "edges": edges[1].numel(),
        "width": query.shape[3], "value_width": value.shape[3],
        "bias_heads": 0 if bias is None else bias.shape[1], "limited": low > -np.inf or high < np.inf,
        "counter": ctypes.addressof(counter), "scratch_size": scratch.shape[1], "terms": terms,
        "scale": scale, "slope": slope, "low": low, "high": high,
    }  # fmt: skip
    for name, part in (("query", query), ("key", key), ("value", value)):
        sizes[f"{name}_batch"], sizes[f"{name}_node"] = (part.itemsize * step for step in part.stride()[:2])
    call = np.zeros(1, CALL)
    held = tensors | dict(zip(("pointer", "other", "order"), edges, strict=True))
    held |= tables | {"units": units.table, "scratch": scratch}
    for name, number in sizes.items():
        call[name] = number
    for name, tensor in held.items():
        call[name] = 0 if tensor is None else tensor.data_ptr()
    run(_code(what, query.dtype == torch.float64), call.ctypes.data, threads)


def _tables(what: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[dict[str, Tensor], int]:
    """Where heads and vectors begin in rows of either end of an edge, in bytes; the sums of a head."""
    heads, kv_heads, size = query.shape[2], key.shape[2], query.itemsize
    each = torch.arange(heads)
    shared = each // (heads // kv_heads)
    from_senders = what == "senders"
    own, base = (shared, each) if from_senders else (each, shared)
    tables = {}
    for name, width in (("", key.shape[3]), ("value_", value.shape[3])):
        tables[f"own_{name}at"], tables[f"base_{name}at"] = own * (width * size), base * (width * size)
        begin = torch.arange(width // LANES) * (LANES * size)
        ends = torch.stack(
            [(each * (ROW * size))[:, None] + 0 * begin, (base * (width * size))[:, None] + begin]
        )
        # Sums of a sender's head go over all query heads that share it: one after the other.
        cut = ends.unflatten(1, (kv_heads, -1)).movedim(2, 0) if from_senders else ends[None]
        tables[f"{name}columns"] = cut.reshape(len(cut), 2, -1).contiguous()
    return tables, heads // kv_heads if from_senders else 1


def _scratch_size(query: Tensor) -> int:
    """Bytes that a thread works in, a whole number of cache lines."""
    heads = query.shape[2]
    numbers = (2 * heads + 1) * ROW + 3 * heads
    return ((8 * (BLOCK + AHEAD) + numbers * query.itemsize) // 64 + 2) * 64


def _code(what: str, double: bool) -> tuple[int, Any]:
    from attlas.attend import edge_loops

    return machine_code(("edges", what, double), partial(edge_loops.compiled, what, double))
