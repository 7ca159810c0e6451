"""Loops over the edges of a graph, compiled by `numba`: softmax attention, forward; and what is compiled.

A unit of work is a run of receivers (or senders) with about as many edges as any other, or a part of the
edges of one node that has more; one thread does it in one order: nothing depends on the number of threads.
A node's edges are taken BLOCK at a time, all heads at once. Exponents are of two. Legend: as in `edge_call`.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import carray

from attlas.attend import (
    decode_ir,
    decode_vectors,
    edge_backward,
    edge_call,
    edge_powers,
    edge_products,
    edge_rounds,
    edge_scores,
    edge_vectors,
)
from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.edge_backward import backward_receivers, backward_senders
from attlas.attend.edge_call import BLOCK, CALL, LANES, ROW
from attlas.attend.edge_powers import largest, powers, times
from attlas.attend.edge_rounds import LN2, jit, like, listed, own_factor, scaled, scratch_of, summed, zero
from attlas.attend.edge_scores import bend, raw_logits
from attlas.attend.team import address_of, digest

__all__ = ["compiled"]

<<<<<<< HEAD
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
=======
_TEXTS = (
    *(decode_ir, decode_vectors, edge_backward, edge_call, edge_powers, edge_products, edge_rounds),
    *(edge_scores, edge_vectors),
)
>>>>>>> main


@jit
@no_type_check
def forward(call, element):
    """Take units of receivers until none is left: out, lse and states."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    size = carray(pointer(call.lse, element), 1).itemsize
    scratch = scratch_of(call, size)
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot, node = units[unit, 4], units[unit, 0]
        if slot >= 0:
            at = (b * call.slots + slot) * call.heads * size
            out, lse = call.part_out + at * call.value_width, call.part_lse + at
            _receive(call, b, node, units[unit, 2], units[unit, 3], out, lse, scratch, size, element)
            continue
        for i in range(node, units[unit, 1]):
            if first[i + 1] - first[i] <= call.huge:
                at = (b * call.receivers + i) * call.heads * size
                out, lse = call.out + at * call.value_width, call.lse + at
                _receive(call, b, i, first[i], first[i + 1], out, lse, scratch, size, element)


@jit
@no_type_check
def _receive(call, b, i, begin, end, out, lse, scratch, size, element):
    """out (H, V) and lse (H,) of a receiver, over its edges begin .. end."""
    places, own, logits, slopes, _ = scratch
    tops, totals = carray(pointer(lse, element), call.heads), carray(pointer(slopes, element), call.heads)
    key, value = call.key + b * call.key_batch, call.value + b * call.value_batch
    carried, step = call.value_width // LANES, call.value_width * size
    zero(out, call.heads * call.value_width, element)
    for h in range(call.heads):
        tops[h], totals[h] = -np.inf, 0
    address = call.query + b * call.query_batch + i * call.query_node
    scaled(address, call.heads * call.width, own_factor(call), own, element)
    for at in range(begin, end, BLOCK):
        count = min(BLOCK, end - at)
        listed(call, at, count, places)
        length = call.kv_heads * call.width * size
        raw_logits(call, own, key, call.key_node, length, places, at, count, logits, size, element)
        for h in range(call.heads):
            row = logits + h * ROW * size
            bend(call, row, count, element)
            top = largest(row, count, element)
            if not top <= tops[h]:  # also where it is no number
                if totals[h] != 0:
                    factor = like(2.0 ** (tops[h] - top), element)
                    totals[h] *= factor
                    times(out + h * step, carried, factor)
                tops[h] = top
            if tops[h] == -np.inf:
                zero(row, count, element)
            else:
                totals[h] += powers(row, count, tops[h])
        summed(
            call, logits, call.value_columns, call.value_width, call.heads, count, value, call.value_node,
            places, out, size, element,
        )  # fmt: skip
    for h in range(call.heads):
<<<<<<< HEAD
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
=======
        if tops[h] > -np.inf or tops[h] != tops[h]:
            tops[h] = (tops[h] + math.log2(totals[h])) * LN2
            times(out + h * step, carried, like(1 / totals[h], element))
>>>>>>> main


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
    source = digest(*_TEXTS, sys.modules[__name__])
    return address_of(_entries(source)[what, double], CALL)
