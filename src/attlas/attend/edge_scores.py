"""Logits of the edges of one node, compiled: what the loops along edges know of scores.

Every form is the same from either end of an edge: a node's own row and the gathered rows of its neighbours, each
with a table of the bytes at which the heads begin. Logits are in powers of two.
Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

from typing import no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend.decode_ir import LANES
from attlas.attend.decode_vectors import pointer
from attlas.attend.edge_vectors import AHEAD, products

__all__ = [
    "ADDITIVE", "BLOCK", "CALL", "DOT", "LN2", "LOG2E", "PRODUCT", "ROW", "bend", "bend_with_slopes", "like",
    "listed",
    "product_receivers", "product_senders", "raw_logits", "scaled",
]  # fmt: skip

DOT, ADDITIVE, PRODUCT = 0, 1, 2
"""Forms: q . k scale + bias; leaky_relu(q + k + bias); sum of q k e scale. All may be limited to low .. high."""
BLOCK = 256
"""Edges of a node that are taken at a time: their rows stay in the second-level cache."""
ROW = BLOCK + LANES
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453

_ADDRESSES = (
    *("units", "pointer", "other", "order", "query", "key", "value", "bias", "edge", "out", "lse", "state"),
    *("part_out", "part_lse", "grad_out", "grad_lse", "ends", "grad_state"),
    *("grad_query", "grad_key", "grad_value", "grad_bias", "grad_edge"),
    *("part_query", "part_key", "part_value", "counter"),
)
_SIZES = (
    *("count", "slots", "huge", "form", "batch", "heads", "kv_heads", "receivers", "senders", "edges"),
    *("width", "value_width", "bias_heads", "limited"),
    *("query_batch", "query_node", "key_batch", "key_node", "value_batch", "value_node"),
)
CALL = np.dtype(
    [
        *((name, np.int64) for name in _ADDRESSES + _SIZES),
        *((name, np.float64) for name in ("scale", "slope", "low", "high")),
    ]
)
"""Addresses of tensors (0: there is none), sizes, and numbers of the form.

units (count, 5): first node and the one behind the last, first edge and the one behind the last, and a slot: of a
part of the edges of one node, which goes to the row `slot` of a part_ tensor, else -1 (all edges of the nodes;
one of more than `huge` edges is left out). pointer, other, order: edges sorted by receiver, or by sender in the
backward of keys and values. query (B, R, H, D), key (B, S, G, D), value (B, S, G, V): heads lie together,
..._batch and ..._node are bytes between batches and nodes; all else is contiguous, node-major. bias
(E, bias_heads), edge (E, H, D). ends (B, R, 2, H): what the senders need of a receiver, its lse in powers of two
(inf where there are no weights) and its delta, grad_out . out - grad_lse. limited: whether low and high count. counter: 0."""

jit = njit(nogil=True, error_model="numpy", fastmath=False)
_loose = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@jit
@no_type_check
def like(number, element):
    """The number in the type of `element`."""
    return type(element)(number)


@jit
@no_type_check
def listed(call, first, count, places):
    """The neighbours along `count` edges, and AHEAD more rows that can be read."""
    readable = min(count + AHEAD, call.edges - first)
    numbers = carray(pointer(call.other + 8 * first, np.int64(0)), readable)
    for e in range(readable):
        places[e] = numbers[e]
    for e in range(readable, count + AHEAD):
        places[e] = numbers[readable - 1]


@_loose
@no_type_check
def scaled(address, width, factor, own):
    """A row times a factor."""
    row, factor = carray(pointer(address, own[0]), width), like(factor, own[0])
    for d in range(width):
        own[d] = row[d] * factor


@_loose
@no_type_check
def _triple(own, row, edge, state):
    total = own[0] * 0
    for d in range(len(own)):
        state[d] = own[d] * row[d] * edge[d]
        total += state[d]
    return total


@_loose
@no_type_check
def _triple_sum(own, row, edge):
    total = own[0] * 0
    for d in range(len(own)):
        total += own[d] * row[d] * edge[d]
    return total


@jit
@no_type_check
def raw_logits(call, own, own_at, base, base_at, stride, length, places, first, count, logits):
    """Logits of edges first .. first + count before they are bent, in powers of two.

    own: the node's row times `scale` (in powers of two already for DOT); own_at, base_at: bytes of each head.
    """
    element, size = own[0], own.itemsize
    if call.form == DOT:
        products(
            own.ctypes.data, own_at.ctypes.data, base, base_at.ctypes.data, call.heads, call.width // LANES,
            stride, length, places.ctypes.data, count, logits.ctypes.data, ROW * size, element,
        )  # fmt: skip
    elif call.form == ADDITIVE:
        for h in range(call.heads):
            mine = own[own_at[h] // size]
            for e in range(count):
                one = carray(pointer(base + places[e] * stride + base_at[h], element), 1)[0]
                logits[h, e] = (mine + one) * like(LOG2E, element)
    else:
        _product_logits(call, own, own_at, base, base_at, stride, places, first, count, logits)
    if call.bias:
        _add_bias(call, first, count, logits)
    for h in range(call.heads):
        for e in range(count, (count + LANES - 1) // LANES * LANES):
            logits[h, e] = -np.inf


@jit
@no_type_check
def _add_bias(call, first, count, logits):
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    bias = carray(pointer(call.bias, logits[0, 0]), (call.edges, call.bias_heads))
    factor = like(LOG2E, logits[0, 0])
    for h in range(call.heads):
        column = h if call.bias_heads > 1 else 0
        for e in range(count):
            logits[h, e] += bias[order[first + e], column] * factor


@jit
@no_type_check
def _product_logits(call, own, own_at, base, base_at, stride, places, first, count, logits):
    """Also the state, in the order of the graph, if there is a place for it."""
    element, width = own[0], call.width
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    edge = carray(pointer(call.edge, element), (call.edges, call.heads, width))
    state = carray(pointer(call.state, element), (call.edges, call.heads, width))
    for e in range(count):
        at = order[first + e]
        for h in range(call.heads):
            begin = own_at[h] // own.itemsize
            mine = own[begin : begin + width]
            row = carray(pointer(base + places[e] * stride + base_at[h], element), width)
            if call.state:
                logits[h, e] = _triple(mine, row, edge[at, h], state[at, h]) * LOG2E
            else:
                logits[h, e] = _triple_sum(mine, row, edge[at, h]) * LOG2E


@jit
@no_type_check
def bend(call, logits, count):
    """The negative side of an additive score, and limits."""
    if call.form == ADDITIVE:
        slope = like(call.slope, logits[0])
        for e in range(count):
            x = logits[e]
            logits[e] = x if x > 0 else x * slope
    if call.limited:
        low, high = like(call.low * LOG2E, logits[0]), like(call.high * LOG2E, logits[0])
        for e in range(count):
            x = logits[e]
            if x != -np.inf:
                logits[e] = low if x < low else high if x > high else x


@jit
@no_type_check
def bend_with_slopes(call, logits, slopes, count):
    """`bend`, and the derivative of each, in `slopes`."""
    slopes[:count] = 1
    if call.form == ADDITIVE:
        slope = like(call.slope, logits[0])
        for e in range(count):
            if not logits[e] > 0:
                logits[e] *= slope
                slopes[e] = slope
    if call.limited:
        low, high = like(call.low * LOG2E, logits[0]), like(call.high * LOG2E, logits[0])
        for e in range(count):
            x = logits[e]
            if x < low or x > high:
                slopes[e] = 0
                if x != -np.inf:
                    logits[e] = low if x < low else high


@_loose
@no_type_check
def _triple_slopes(slope, grad_state, scale, own, row, edge, grad_own, grad_edge):
    for d in range(len(own)):
        one = (slope + grad_state[d]) * scale * row[d]
        grad_own[d] += one * edge[d]
        grad_edge[d] = one * own[d]


@_loose
@no_type_check
def _triple_slopes_alone(slope, scale, own, row, edge, grad_own, grad_edge):
    for d in range(len(own)):
        one = slope * scale * row[d]
        grad_own[d] += one * edge[d]
        grad_edge[d] = one * own[d]


@_loose
@no_type_check
def _triple_sender(slope, grad_state, scale, row, edge, grad_own):
    for d in range(len(row)):
        grad_own[d] += (slope + grad_state[d]) * scale * row[d] * edge[d]


@_loose
@no_type_check
def _triple_sender_alone(slope, scale, row, edge, grad_own):
    for d in range(len(row)):
        grad_own[d] += slope * scale * row[d] * edge[d]


@jit
@no_type_check
def product_receivers(call, own, key, key_at, places, first, count, slopes, grad_query):
    """Gradients of a query (H, D), and of the edges that end at it; own: the query itself."""
    element, width = own[0], call.width
    shape = (call.edges, call.heads, width)
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    edge, grad_edge = (
        carray(pointer(call.edge, element), shape),
        carray(pointer(call.grad_edge, element), shape),
    )
    grad_state = carray(pointer(call.grad_state, element), shape)
    scale = like(call.scale, element)
    for e in range(count):
        at = order[first + e]
        for h in range(call.heads):
            mine = own[h * width : (h + 1) * width]
            row = carray(pointer(key + places[e] * call.key_node + key_at[h], element), width)
            if call.grad_state:
                _triple_slopes(
                    slopes[h, e], grad_state[at, h], scale, mine, row, edge[at, h], grad_query[h],
                    grad_edge[at, h],
                )  # fmt: skip
            else:
                _triple_slopes_alone(
                    slopes[h, e], scale, mine, row, edge[at, h], grad_query[h], grad_edge[at, h]
                )


@jit
@no_type_check
def product_senders(call, query, places, first, count, slopes, grad_key):
    """The gradient of a key (G, D)."""
    element, width = slopes[0, 0], call.width
    shape = (call.edges, call.heads, width)
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    edge, grad_state = (
        carray(pointer(call.edge, element), shape),
        carray(pointer(call.grad_state, element), shape),
    )
    group = call.heads // call.kv_heads
    scale = like(call.scale, element)
    for e in range(count):
        at = order[first + e]
        rows = carray(pointer(query + places[e] * call.query_node, element), (call.heads, width))
        for h in range(call.heads):
            if call.grad_state:
                _triple_sender(
                    slopes[h, e], grad_state[at, h], scale, rows[h], edge[at, h], grad_key[h // group]
                )
            else:
                _triple_sender_alone(slopes[h, e], scale, rows[h], edge[at, h], grad_key[h // group])
