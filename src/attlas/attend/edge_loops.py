"""Loops over the edges of a graph, compiled by `numba`: softmax attention, forward and backward.

A unit of work is a run of receivers (or senders) with about as many edges as any other, or a part of the edges
of one node that has more; one thread does it in one order, so that nothing depends on the number of threads. A
node's edges are taken BLOCK at a time, all heads at once. Exponents are of two.
Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend import decode_ir, decode_vectors, edge_scores, edge_vectors
from attlas.attend.decode_ir import LANES
from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.edge_scores import (
    ADDITIVE,
    BLOCK,
    CALL,
    DOT,
    LN2,
    LOG2E,
    PRODUCT,
    ROW,
    bend,
    bend_with_slopes,
    jit,
    like,
    listed,
    product_receivers,
    product_senders,
    raw_logits,
    scaled,
)
from attlas.attend.edge_vectors import (
    AHEAD,
    inner,
    largest,
    powers,
    products,
    times,
    weigh,
    weigh_each,
    weighted,
)
from attlas.attend.team import address_of, digest

__all__ = ["compiled"]

_loose = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@jit
@no_type_check
def _head_at(heads, group, width):
    """Bytes at which every query head's numbers begin in a row of heads // group heads."""
    at = np.empty(heads, np.int64)
    for h in range(heads):
        at[h] = h // group * width
    return at


@jit
@no_type_check
def _columns(heads, terms, shared, width, size):
    """For every vector of a row of `heads` heads: bytes at which its weights and its gathered numbers begin.

    Head a is a sum of `terms` sums, of the weights h = a * terms + term and the numbers of head h // shared.
    """
    per = width // LANES
    at = np.empty((terms, 2, heads * per), np.int64)
    for a in range(heads):
        for term in range(terms):
            h = a * terms + term
            for c in range(per):
                at[term, 0, a * per + c] = h * ROW * size
                at[term, 1, a * per + c] = (h // shared * width + c * LANES) * size
    return at


@jit
@no_type_check
def _sum(weights, columns, count, base, stride, places, out, element):
    """out += the weighted sums of gathered rows, up to eight vectors at a time."""
    numbers, rows, total = weights.ctypes.data, places.ctypes.data, columns.shape[2]
    size = weights.itemsize * LANES
    for term in range(len(columns)):
        of, begin = columns[term, 0].ctypes.data, columns[term, 1].ctypes.data
        at = 0
        while at + 8 <= total:
            weighted(
                numbers, of + 8 * at, count, base, begin + 8 * at, stride, rows, out + size * at, 8, element
            )
            at += 8
        while at + 2 <= total:
            weighted(
                numbers, of + 8 * at, count, base, begin + 8 * at, stride, rows, out + size * at, 2, element
            )
            at += 2
        if at < total:
            weighted(
                numbers, of + 8 * at, count, base, begin + 8 * at, stride, rows, out + size * at, 1, element
            )


@jit
@no_type_check
def _own_factor(call):
    """What a node's own row is multiplied by before logits are taken."""
    if call.form == DOT:
        return call.scale * LOG2E
    return call.scale if call.form == PRODUCT else 1.0


@jit
@no_type_check
def forward(call, element):
    """Take units of receivers until none is left: out, lse and states."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    rows, parts = (call.batch, call.receivers, call.heads), (call.batch, call.slots, call.heads)
    lse, part_lse = carray(pointer(call.lse, element), rows), carray(pointer(call.part_lse, element), parts)
    out = carray(pointer(call.out, element), (*rows, call.value_width))
    part_out = carray(pointer(call.part_out, element), (*parts, call.value_width))
    group, size = call.heads // call.kv_heads, lse.itemsize
    scratch = (
        np.empty(BLOCK + AHEAD, np.int64),
        np.empty(call.heads * call.width, lse.dtype),
        np.empty((call.heads, ROW), lse.dtype),
        np.empty((2, call.heads), lse.dtype),
        _head_at(call.heads, 1, call.width * size),
        _head_at(call.heads, group, call.width * size),
        _columns(call.heads, 1, group, call.value_width, size),
    )
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot = units[unit, 4]
        if slot >= 0:
            ends = units[unit, 2], units[unit, 3]
            _receive(call, b, units[unit, 0], ends, part_out[b, slot], part_lse[b, slot], scratch, element)
            continue
        for i in range(units[unit, 0], units[unit, 1]):
            if first[i + 1] - first[i] <= call.huge:
                _receive(call, b, i, (first[i], first[i + 1]), out[b, i], lse[b, i], scratch, element)


@jit
@no_type_check
def _receive(call, b, i, ends, out, lse, scratch, element):
    """out (H, V) and lse (H,) of a receiver, over some of its edges."""
    places, own, logits, running, own_at, key_at, columns = scratch
    tops, totals = running[0], running[1]
    size, key, carried = own.itemsize, call.key + b * call.key_batch, call.value_width // LANES
    out[:] = 0
    tops[:] = -np.inf
    totals[:] = 0
    address = call.query + b * call.query_batch + i * call.query_node
    scaled(address, call.heads * call.width, _own_factor(call), own)
    for begin in range(ends[0], ends[1], BLOCK):
        count = min(BLOCK, ends[1] - begin)
        listed(call, begin, count, places)
        length = call.kv_heads * call.width * size
        raw_logits(call, own, own_at, key, key_at, call.key_node, length, places, begin, count, logits)
        for h in range(call.heads):
            bend(call, logits[h], count)
            top = largest(logits[h].ctypes.data, count, element)
            if not top <= tops[h]:  # also where it is no number
                if totals[h] != 0:
                    factor = like(2.0 ** (tops[h] - top), element)
                    totals[h] *= factor
                    times(out[h].ctypes.data, carried, factor)
                tops[h] = top
            if tops[h] == -np.inf:
                logits[h, :count] = 0
            else:
                totals[h] += powers(logits[h].ctypes.data, count, tops[h])
        value = call.value + b * call.value_batch
        _sum(logits, columns, count, value, call.value_node, places, out.ctypes.data, element)
    for h in range(call.heads):
        if tops[h] == -np.inf:
            lse[h] = -np.inf
        else:
            lse[h] = (tops[h] + math.log2(totals[h])) * LN2
            times(out[h].ctypes.data, carried, like(1 / totals[h], element))


@jit
@no_type_check
def backward_receivers(call, element):
    """Take units of receivers until none is left: the gradients of queries, biases and edges, and delta."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    rows, parts = (call.batch, call.receivers, call.heads), (call.batch, call.slots, call.heads)
    grad_query = carray(pointer(call.grad_query, element), (*rows, call.width))
    part_query = carray(pointer(call.part_query, element), (*parts, call.width))
    group, size = call.heads // call.kv_heads, grad_query.itemsize
    scratch = (
        np.empty(BLOCK + AHEAD, np.int64),
        np.empty(call.heads * call.width, grad_query.dtype),
        np.empty((call.heads, ROW), grad_query.dtype),
        np.empty((call.heads, ROW), grad_query.dtype),
        np.empty(ROW, grad_query.dtype),
        _head_at(call.heads, 1, call.width * size),
        _head_at(call.heads, group, call.width * size),
        _head_at(call.heads, 1, call.value_width * size),
        _head_at(call.heads, group, call.value_width * size),
        _columns(call.heads, 1, group, call.width, size),
    )
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot = units[unit, 4]
        if slot >= 0:
            ends = units[unit, 2], units[unit, 3]
            _receive_back(call, b, units[unit, 0], ends, part_query[b, slot], scratch, element)
            continue
        for i in range(units[unit, 0], units[unit, 1]):
            if first[i + 1] - first[i] <= call.huge:
                _receive_back(call, b, i, (first[i], first[i + 1]), grad_query[b, i], scratch, element)


@jit
@no_type_check
def _receive_back(call, b, i, edges, grad, scratch, element):
    """grad (H, D): the gradient of one query, over some of its edges; those of the edges and delta beside."""
    places, own, logits, slopes, bends, own_at, key_at, out_at, value_at, columns = scratch
    size, key, value = own.itemsize, call.key + b * call.key_batch, call.value + b * call.value_batch
    at = (b * call.receivers + i) * call.heads
    ends = carray(pointer(call.ends + 2 * at * size, element), (2, call.heads))
    bent = call.form == ADDITIVE or call.limited
    grad[:] = 0
    _write_ends(call, at, ends, element)
    address = call.query + b * call.query_batch + i * call.query_node
    scaled(address, call.heads * call.width, _own_factor(call), own)
    for begin in range(edges[0], edges[1], BLOCK):
        count = min(BLOCK, edges[1] - begin)
        listed(call, begin, count, places)
        length = call.kv_heads * call.width * size
        raw_logits(call, own, own_at, key, key_at, call.key_node, length, places, begin, count, logits)
        length = call.kv_heads * call.value_width * size
        products(
            call.grad_out + at * call.value_width * size, out_at.ctypes.data, value, value_at.ctypes.data,
            call.heads, call.value_width // LANES, call.value_node, length, places.ctypes.data, count,
            slopes.ctypes.data, ROW * size, element,
        )  # fmt: skip
        for h in range(call.heads):
            if bent:
                bend_with_slopes(call, logits[h], bends, count)
            weigh(logits[h].ctypes.data, slopes[h].ctypes.data, count, ends[0, h], ends[1, h])
            if bent:
                _multiplied(slopes[h], bends, count)
        if call.grad_bias:
            _bias_gradient(call, begin, count, slopes)
        if call.form == DOT:
            _sum(slopes, columns, count, key, call.key_node, places, grad.ctypes.data, element)
        elif call.form == ADDITIVE:
            for h in range(call.heads):
                grad[h, 0] += _total(slopes[h], count)
        else:
            scaled(address, call.heads * call.width, 1.0, own)
            product_receivers(call, own, key, key_at, places, begin, count, slopes, grad)
            scaled(address, call.heads * call.width, call.scale, own)
    if call.form == DOT:
        times(grad.ctypes.data, call.heads * call.width // LANES, like(call.scale, element))


@jit
@no_type_check
def _write_ends(call, at, ends, element):
    """The ends of a receiver."""
    size, vectors = ends.itemsize, call.value_width // LANES
    lse = carray(pointer(call.lse + at * size, element), call.heads)
    for h in range(call.heads):
        row = (at + h) * call.value_width * size
        ends[0, h] = np.inf if lse[h] == -np.inf else lse[h] * LOG2E
        ends[1, h] = inner(call.out + row, call.grad_out + row, vectors, element)
    if call.grad_lse:
        less = carray(pointer(call.grad_lse + at * size, element), call.heads)
        for h in range(call.heads):
            ends[1, h] -= less[h]


@_loose
@no_type_check
def _total(numbers, count):
    total = numbers[0] * 0
    for e in range(count):
        total += numbers[e]
    return total


@_loose
@no_type_check
def _multiplied(numbers, factors, count):
    for e in range(count):
        numbers[e] *= factors[e]


@jit
@no_type_check
def _bias_gradient(call, first, count, slopes):
    """Slopes to the graph's order; one column takes the sum over heads."""
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    grad = carray(pointer(call.grad_bias, slopes[0, 0]), (call.edges, call.bias_heads))
    for e in range(count):
        at = order[first + e]
        grad[at] = 0
        for h in range(call.heads):
            grad[at, h if call.bias_heads > 1 else 0] += slopes[h, e]


@jit
@no_type_check
def backward_senders(call, element):
    """Take units of senders until none is left: the gradients of keys and values."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.senders + 1)
    rows, parts = (call.batch, call.senders, call.kv_heads), (call.batch, call.slots, call.kv_heads)
    grad_key = carray(pointer(call.grad_key, element), (*rows, call.width))
    part_key = carray(pointer(call.part_key, element), (*parts, call.width))
    grad_value = carray(pointer(call.grad_value, element), (*rows, call.value_width))
    part_value = carray(pointer(call.part_value, element), (*parts, call.value_width))
    group, size = call.heads // call.kv_heads, grad_key.itemsize
    scratch = (
        np.empty(BLOCK + AHEAD, np.int64),
        np.empty(call.kv_heads * call.width, grad_key.dtype),
        np.empty((call.heads, ROW), grad_key.dtype),
        np.empty((call.heads, ROW), grad_key.dtype),
        np.empty(ROW, grad_key.dtype),
        _head_at(call.heads, group, call.width * size),
        _head_at(call.heads, 1, call.width * size),
        _head_at(call.heads, group, call.value_width * size),
        _head_at(call.heads, 1, call.value_width * size),
        _columns(call.kv_heads, group, 1, call.width, size),
        _columns(call.kv_heads, group, 1, call.value_width, size),
    )
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot = units[unit, 4]
        if slot >= 0:
            ends = units[unit, 2], units[unit, 3]
            grads = part_key[b, slot], part_value[b, slot]
            _send_back(call, b, units[unit, 0], ends, grads, scratch, element)
            continue
        for j in range(units[unit, 0], units[unit, 1]):
            if first[j + 1] - first[j] <= call.huge:
                grads = grad_key[b, j], grad_value[b, j]
                _send_back(call, b, j, (first[j], first[j + 1]), grads, scratch, element)


@jit
@no_type_check
def _send_back(call, b, j, ends, grads, scratch, element):
    """The gradients (G, D), (G, V) of one key and value, over some of its edges."""
    places, own, logits, slopes, bends, own_at, query_at, value_at, grad_at, columns, carried_columns = (
        scratch
    )
    grad_key, grad_value = grads
    size, group = own.itemsize, call.heads // call.kv_heads
    query = call.query + b * call.query_batch
    stride = call.heads * call.value_width * size
    grad_out = call.grad_out + b * call.receivers * stride
    apart = call.heads * size
    weighing = call.ends + b * call.receivers * 2 * apart
    bent = call.form == ADDITIVE or call.limited
    grad_key[:] = 0
    grad_value[:] = 0
    address = call.key + b * call.key_batch + j * call.key_node
    scaled(address, call.kv_heads * call.width, _own_factor(call), own)
    carried = call.value + b * call.value_batch + j * call.value_node
    for begin in range(ends[0], ends[1], BLOCK):
        count = min(BLOCK, ends[1] - begin)
        listed(call, begin, count, places)
        length = call.heads * call.width * size
        raw_logits(call, own, own_at, query, query_at, call.query_node, length, places, begin, count, logits)
        products(
            carried, value_at.ctypes.data, grad_out, grad_at.ctypes.data, call.heads,
            call.value_width // LANES, stride, stride, places.ctypes.data, count, slopes.ctypes.data,
            ROW * size, element,
        )  # fmt: skip
        for h in range(call.heads):
            if bent:
                bend_with_slopes(call, logits[h], bends, count)
            weigh_each(
                logits[h].ctypes.data, slopes[h].ctypes.data, count, places.ctypes.data, weighing + h * size,
                2 * apart, apart, element,
            )  # fmt: skip
            if bent:
                _multiplied(slopes[h], bends, count)
        _sum(logits, carried_columns, count, grad_out, stride, places, grad_value.ctypes.data, element)
        if call.form == DOT:
            _sum(slopes, columns, count, query, call.query_node, places, grad_key.ctypes.data, element)
        elif call.form == ADDITIVE:
            for h in range(call.heads):
                grad_key[h // group, 0] += _total(slopes[h], count)
        else:
            product_senders(call, query, places, begin, count, slopes, grad_key)
    if call.form == DOT:
        times(grad_key.ctypes.data, call.kv_heads * call.width // LANES, like(call.scale, element))


def _entries(source: str) -> dict[tuple[str, bool], Callable[[Any], None]]:
    """The functions to compile. numba's cache on disk looks at their own text and at `source` only."""

    @no_type_check
    def forward_float32(call):
        if source:
            forward(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def forward_float64(call):
        if source:
            forward(carray(call, 1)[0], np.float64(0))

    @no_type_check
    def receivers_float32(call):
        if source:
            backward_receivers(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def receivers_float64(call):
        if source:
            backward_receivers(carray(call, 1)[0], np.float64(0))

    @no_type_check
    def senders_float32(call):
        if source:
            backward_senders(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def senders_float64(call):
        if source:
            backward_senders(carray(call, 1)[0], np.float64(0))

    return {
        ("forward", False): forward_float32,
        ("forward", True): forward_float64,
        ("receivers", False): receivers_float32,
        ("receivers", True): receivers_float64,
        ("senders", False): senders_float32,
        ("senders", True): senders_float64,
    }


def compiled(what: str, double: bool) -> int:
    """The address of the machine code, a function of the address of a CALL.

    what: "forward", "receivers" or "senders" (the two backward passes); double: float64, else float32.
    """
    source = digest(decode_ir, decode_vectors, edge_scores, edge_vectors, sys.modules[__name__])
    return address_of(_entries(source)[what, double], CALL)
