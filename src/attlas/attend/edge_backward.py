"""Backward loops over the edges of a graph, compiled: gradients at receivers, then at senders.

Weights are computed again from the logits and tops. Legend: as in `edge_call`.
"""

from typing import no_type_check

import numpy as np
from numba import carray

from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.edge_call import ADDITIVE, BLOCK, DOT, LANES, ROW
from attlas.attend.edge_powers import inner, times, weigh, weigh_each
from attlas.attend.edge_products import product_receivers, product_senders
from attlas.attend.edge_rounds import (
    jit,
    like,
    listed,
    multiplied,
    scratch_of,
    summed,
    totals_of,
    zero,
)
from attlas.attend.edge_scores import bend_with_slopes, raw_logits
from attlas.attend.edge_vectors import products

__all__ = ["backward_receivers", "backward_senders"]


@jit
@no_type_check
def backward_receivers(call, element):
    """Take units of receivers until none is left: the gradients of queries, biases and edges, and ends."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    size = carray(pointer(call.tops, element), 1).itemsize
    scratch, row = scratch_of(call, size), call.heads * call.width * size
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot, node = units[unit, 4], units[unit, 0]
        if slot >= 0:
            grad = call.part_query + (b * call.slots + slot) * row
            _receive_back(call, b, node, units[unit, 2], units[unit, 3], grad, scratch, size, element)
            continue
        for i in range(node, units[unit, 1]):
            if first[i + 1] - first[i] <= call.huge:
                grad = call.grad_query + (b * call.receivers + i) * row
                _receive_back(call, b, i, first[i], first[i + 1], grad, scratch, size, element)


@jit
@no_type_check
def _receive_back(call, b, i, begin, end, grad, scratch, size, element):
    """grad (H, D): the gradient of one query, over edges begin .. end; those of the edges and ends beside."""
    places, logits, slopes, bends, mine = scratch
    key, value = call.key + b * call.key_batch, call.value + b * call.value_batch
    number = (b * call.receivers + i) * call.heads
    ends = carray(pointer(mine, element), (3, call.heads))
    bent = call.form == ADDITIVE or call.limited
    zero(grad, call.heads * call.width, element)
    _write_ends(call, number, ends, size, element)
    if begin == carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)[i]:
        # One thread writes them, also where the edges of a receiver are cut.
        shared = carray(pointer(call.ends + 3 * number * size, element), (3, call.heads))
        for c in range(3):
            for h in range(call.heads):
                shared[c, h] = ends[c, h]
    query = call.query + b * call.query_batch + i * call.query_node
    for at in range(begin, end, BLOCK):
        count = min(BLOCK, end - at)
        listed(call, at, count, places)
        length = call.kv_heads * call.width * size
        raw_logits(call, query, key, call.key_node, length, places, at, count, logits, size, element)
        products(
            call.grad_out + number * call.value_width * size, call.own_value_at, value, call.base_value_at,
            call.heads, call.value_width // LANES, call.value_node, call.kv_heads * call.value_width * size,
            places, count, slopes, ROW * size, element,
        )  # fmt: skip
        for h in range(call.heads):
            row = h * ROW * size
            if bent:
                bend_with_slopes(call, logits + row, bends, count, element)
            weigh(logits + row, slopes + row, count, ends[0, h], ends[1, h], ends[2, h])
            if bent:
                multiplied(slopes + row, bends, count, element)
        if call.grad_bias:
            _bias_gradient(call, at, count, slopes, element)
        if call.form == DOT:
            summed(
                call, slopes, call.columns, call.width, call.heads, count, key, call.key_node, places, grad,
                size, element,
            )  # fmt: skip
        elif call.form == ADDITIVE:
            totals_of(call, slopes, count, grad, 1, element)
        else:
            product_receivers(call, query, key, places, at, count, slopes, grad, element)
    if call.form == DOT:
        times(grad, call.heads * call.width // LANES, like(call.scale, element))


@jit
@no_type_check
def _write_ends(call, number, ends, size, element):
    """The ends of a receiver."""
    vectors = call.value_width // LANES
    tops = carray(pointer(call.tops + 2 * number * size, element), (2, call.heads))
    for h in range(call.heads):
        row = (number + h) * call.value_width * size
        none = tops[1, h] == 0
        ends[0, h] = np.inf if none else tops[0, h]
        ends[1, h] = 0 if none else 1 / tops[1, h]
        ends[2, h] = inner(call.out + row, call.grad_out + row, vectors, element)
    if call.grad_lse:
        less = carray(pointer(call.grad_lse + number * size, element), call.heads)
        for h in range(call.heads):
            ends[2, h] -= less[h]


@jit
@no_type_check
def _bias_gradient(call, first, count, slopes, element):
    """Slopes to the graph's order; one column takes the sum over heads."""
    order = carray(pointer(call.order, np.int64(0)), call.edges)
    grad = carray(pointer(call.grad_bias, element), (call.edges, call.bias_heads))
    rows = carray(pointer(slopes, element), (call.heads, ROW))
    for e in range(count):
        at = order[first + e]
        for c in range(call.bias_heads):
            grad[at, c] = 0
        for h in range(call.heads):
            grad[at, h if call.bias_heads > 1 else 0] += rows[h, e]


@jit
@no_type_check
def backward_senders(call, element):
    """Take units of senders until none is left: the gradients of keys and values."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.senders + 1)
    size = carray(pointer(call.tops, element), 1).itemsize
    scratch = scratch_of(call, size)
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot, node = units[unit, 4], units[unit, 0]
        if slot >= 0:
            at = (b * call.slots + slot) * call.kv_heads * size
            keys, values = call.part_key + at * call.width, call.part_value + at * call.value_width
            _send_back(call, b, node, units[unit, 2], units[unit, 3], keys, values, scratch, size, element)
            continue
        for j in range(node, units[unit, 1]):
            if first[j + 1] - first[j] <= call.huge:
                at = (b * call.senders + j) * call.kv_heads * size
                keys, values = call.grad_key + at * call.width, call.grad_value + at * call.value_width
                _send_back(call, b, j, first[j], first[j + 1], keys, values, scratch, size, element)


@jit
@no_type_check
def _send_back(call, b, j, begin, end, grad_key, grad_value, scratch, size, element):
    """The gradients (G, D), (G, V) of one key and value, over edges begin .. end."""
    places, logits, slopes, bends, _ = scratch
    query, apart = call.query + b * call.query_batch, call.heads * size
    stride = apart * call.value_width
    grad_out, ends = call.grad_out + b * call.receivers * stride, call.ends + b * call.receivers * 3 * apart
    bent = call.form == ADDITIVE or call.limited
    zero(grad_key, call.kv_heads * call.width, element)
    zero(grad_value, call.kv_heads * call.value_width, element)
    own = call.key + b * call.key_batch + j * call.key_node
    for at in range(begin, end, BLOCK):
        count = min(BLOCK, end - at)
        listed(call, at, count, places)
        length = call.heads * call.width * size
        raw_logits(call, own, query, call.query_node, length, places, at, count, logits, size, element)
        products(
            call.value + b * call.value_batch + j * call.value_node, call.own_value_at, grad_out,
            call.base_value_at, call.heads, call.value_width // LANES, stride, stride, places, count, slopes,
            ROW * size, element,
        )  # fmt: skip
        for h in range(call.heads):
            row = h * ROW * size
            if bent:
                bend_with_slopes(call, logits + row, bends, count, element)
            weigh_each(logits + row, slopes + row, count, places, ends + h * size, 3 * apart, apart, element)
            if bent:
                multiplied(slopes + row, bends, count, element)
        summed(
            call, logits, call.value_columns, call.value_width, call.kv_heads, count, grad_out, stride,
            places, grad_value, size, element,
        )  # fmt: skip
        if call.form == DOT:
            summed(
                call, slopes, call.columns, call.width, call.kv_heads, count, query, call.query_node, places,
                grad_key, size, element,
            )  # fmt: skip
        elif call.form == ADDITIVE:
            totals_of(call, slopes, count, grad_key, call.heads // call.kv_heads, element)
        else:
            product_senders(call, query, places, at, count, slopes, grad_key, element)
    if call.form == DOT:
        times(grad_key, call.kv_heads * call.width // LANES, like(call.scale, element))
