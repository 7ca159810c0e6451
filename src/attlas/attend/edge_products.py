"""Products of queries, keys and features of edges, compiled: logits, states and gradients.

The vector q k e s of an edge is its state, the sum of it its logit. Legend: as in `edge_call`.
"""

from typing import no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend.decode_vectors import pointer
from attlas.attend.edge_call import ROW
from attlas.attend.edge_powers import triple
from attlas.attend.edge_rounds import LOG2E, jit, like

__all__ = ["product_logits", "product_receivers", "product_senders"]

_loose = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_loose
@no_type_check
def _state(own, row, edge, scale, state):
    for d in range(len(own)):
        state[d] = own[d] * row[d] * edge[d] * scale


@jit
@no_type_check
def product_logits(call, own, base, stride, places, first, count, logits, element):
    """Also the state, in the order of the graph, if there is a place for it."""
    width, shape = call.width, (call.edges, call.heads, call.width)
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    listing, found = (
        carray(pointer(places, np.int64(0)), count),
        carray(pointer(logits, element), (call.heads, ROW)),
    )
    edge, state = carray(pointer(call.edge, element), shape), carray(pointer(call.state, element), shape)
    own_at = carray(pointer(call.own_at, np.int64(0)), call.heads)
    base_at = carray(pointer(call.base_at, np.int64(0)), call.heads)
    scale, factor = like(call.scale, element), like(call.scale * LOG2E, element)
    size = found.itemsize
    for e in range(count):
        at = order[first + e]
        for h in range(call.heads):
            mine, row = own + own_at[h], base + listing[e] * stride + base_at[h]
            features = call.edge + (at * call.heads + h) * width * size
            found[h, e] = triple(mine, row, features, width, element) * factor
            if call.state:
                mine, row = carray(pointer(mine, element), width), carray(pointer(row, element), width)
                _state(mine, row, edge[at, h], scale, state[at, h])


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
def product_receivers(call, query, key, places, first, count, slopes, grad_query, element):
    """Gradients of a query (H, D), and of the edges that end at it."""
    width, shape = call.width, (call.edges, call.heads, call.width)
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    listing, slope = (
        carray(pointer(places, np.int64(0)), count),
        carray(pointer(slopes, element), (call.heads, ROW)),
    )
    edge, grad_edge = (
        carray(pointer(call.edge, element), shape),
        carray(pointer(call.grad_edge, element), shape),
    )
    grad_state = carray(pointer(call.grad_state, element), shape)
    base_at = carray(pointer(call.base_at, np.int64(0)), call.heads)
    own = carray(pointer(query, element), (call.heads, width))
    grad = carray(pointer(grad_query, element), (call.heads, width))
    scale = like(call.scale, element)
    for e in range(count):
        at = order[first + e]
        for h in range(call.heads):
            row = carray(pointer(key + listing[e] * call.key_node + base_at[h], element), width)
            if call.grad_state:
                _triple_slopes(
                    slope[h, e], grad_state[at, h], scale, own[h], row, edge[at, h], grad[h], grad_edge[at, h]
                )
            else:
                _triple_slopes_alone(slope[h, e], scale, own[h], row, edge[at, h], grad[h], grad_edge[at, h])


@jit
@no_type_check
def product_senders(call, query, places, first, count, slopes, grad_key, element):
    """The gradient of a key (G, D)."""
    width, shape = call.width, (call.edges, call.heads, call.width)
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    listing, slope = (
        carray(pointer(places, np.int64(0)), count),
        carray(pointer(slopes, element), (call.heads, ROW)),
    )
    edge, grad_state = (
        carray(pointer(call.edge, element), shape),
        carray(pointer(call.grad_state, element), shape),
    )
    grad = carray(pointer(grad_key, element), (call.kv_heads, width))
    group, scale = call.heads // call.kv_heads, like(call.scale, element)
    for e in range(count):
        at = order[first + e]
        rows = carray(pointer(query + listing[e] * call.query_node, element), (call.heads, width))
        for h in range(call.heads):
            if call.grad_state:
                _triple_sender(slope[h, e], grad_state[at, h], scale, rows[h], edge[at, h], grad[h // group])
            else:
                _triple_sender_alone(slope[h, e], scale, rows[h], edge[at, h], grad[h // group])
