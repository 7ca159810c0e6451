"""Logits of the edges of one node, compiled: what the loops along edges know of scores.

Every form is the same from either end of an edge: a node's own row and the gathered rows of its neighbours,
each with a table of the bytes at which the heads begin. Logits are in powers of two. Legend: `edge_call`.
"""

from typing import no_type_check

import numpy as np
from numba import carray

from attlas.attend.decode_vectors import pointer
from attlas.attend.edge_call import ADDITIVE, DOT, LANES, ROW
from attlas.attend.edge_powers import times
from attlas.attend.edge_products import product_logits
from attlas.attend.edge_rounds import LOG2E, jit, like
from attlas.attend.edge_vectors import products

__all__ = ["bend", "bend_with_slopes", "raw_logits"]


@jit
@no_type_check
def raw_logits(call, own, base, stride, length, places, first, count, logits, size, element):
    """Logits of edges first .. first + count before they are bent, in powers of two.

    own: the node's row; length: bytes of a neighbour's row. Bit for bit the same from either end: weights of
    the second backward pass belong to the tops of the first.
    """
    if call.form == DOT:
        products(
            own, call.own_at, base, call.base_at, call.heads, call.width // LANES, stride, length, places,
            count, logits, ROW * size, element,
        )  # fmt: skip
        for h in range(call.heads):
            factor = like(call.scale * LOG2E, element)
            times(logits + h * ROW * size, (count + LANES - 1) // LANES, factor)
    elif call.form == ADDITIVE:
        _additive_logits(call, own, base, stride, places, count, logits, size, element)
    else:
        product_logits(call, own, base, stride, places, first, count, logits, element)
    if call.bias:
        _add_bias(call, first, count, logits, element)
    found = carray(pointer(logits, element), (call.heads, ROW))
    for h in range(call.heads):
        for e in range(count, (count + LANES - 1) // LANES * LANES):
            found[h, e] = -np.inf


@jit
@no_type_check
def _additive_logits(call, own, base, stride, places, count, logits, size, element):
    listing, found = (
        carray(pointer(places, np.int64(0)), count),
        carray(pointer(logits, element), (call.heads, ROW)),
    )
    own_at = carray(pointer(call.own_at, np.int64(0)), call.heads)
    base_at = carray(pointer(call.base_at, np.int64(0)), call.heads)
    factor = like(LOG2E, element)
    for h in range(call.heads):
        mine = carray(pointer(own + own_at[h], element), 1)[0]
        for e in range(count):
            one = carray(pointer(base + listing[e] * stride + base_at[h], element), 1)[0]
            found[h, e] = (mine + one) * factor


@jit
@no_type_check
def _add_bias(call, first, count, logits, element):
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    bias = carray(pointer(call.bias, element), (call.edges, call.bias_heads))
    found = carray(pointer(logits, element), (call.heads, ROW))
    factor = like(LOG2E, element)
    for h in range(call.heads):
        column = h if call.bias_heads > 1 else 0
        for e in range(count):
            found[h, e] += bias[order[first + e], column] * factor


@jit
@no_type_check
def bend(call, logits, count, element):
    """The negative side of an additive score, and limits."""
    found = carray(pointer(logits, element), count)
    if call.form == ADDITIVE:
        slope = like(call.slope, element)
        for e in range(count):
            x = found[e]
            found[e] = x if x > 0 else x * slope
    if call.limited:
        low, high = like(call.low * LOG2E, element), like(call.high * LOG2E, element)
        for e in range(count):
            x = found[e]
            if x != -np.inf:
                found[e] = low if x < low else high if x > high else x


@jit
@no_type_check
def bend_with_slopes(call, logits, slopes, count, element):
    """`bend`, and the derivative of each, in `slopes`."""
    found, slopes = carray(pointer(logits, element), count), carray(pointer(slopes, element), count)
    for e in range(count):
        slopes[e] = 1
    if call.form == ADDITIVE:
        slope = like(call.slope, element)
        for e in range(count):
            if not found[e] > 0:
                found[e] *= slope
                slopes[e] = slope
    if call.limited:
        low, high = like(call.low * LOG2E, element), like(call.high * LOG2E, element)
        for e in range(count):
            x = found[e]
            if x < low or x > high:
                slopes[e] = 0
                if x != -np.inf:
                    found[e] = low if x < low else high
