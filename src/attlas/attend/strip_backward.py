"""The strip kernel's backward loop, compiled by `numba`: gradients of query, key and value.

Legend: B batch, H query heads, G KV heads, N queries, D width, V value width.
"""

from typing import no_type_check

import numpy as np
from numba import carray

from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.strip_features import slopes
from attlas.attend.strip_parts import (
    CHUNK,
    PARTS,
    constants_of,
    groups_products,
    jit,
    next_chunk,
    places_of,
    rows_of,
    span_of_rows,
    sum_rows,
    turn,
)
from attlas.attend.strip_rules import CONSTANTS, SIGMOID, SOFTMAX, SOFTPLUS
from attlas.attend.strip_vectors import KEYS, LANES, ROWS, differences, finish

__all__ = ["backward"]

LOG2 = 1.4426950408889634


@jit
@no_type_check
def _sloped(rule, logits, grads, count, masks, shift, constants, power):
    """`slopes` by a rule that is known now only; its literals are the numbers of the rules."""
    if rule == SIGMOID:
        slopes(logits, grads, count, masks, shift, constants, power, 1)
    elif rule == SOFTPLUS:
        slopes(logits, grads, count, masks, shift, constants, power, 2)
    else:
        slopes(logits, grads, count, masks, shift, constants, power, 3)


@jit
@no_type_check
def backward(call, element):
    """Take pieces of a KV head's strips until none is left: gradients of query, key and value."""
    group, size = call.heads // call.kv_heads, call.size
    width, value_width = call.width, call.value_width
    strips = carray(pointer(call.strips, np.int64(0)), (1 << 40, 5))
    order = carray(pointer(call.order, np.int64(0)), 1 << 40)
    first = carray(pointer(call.first, np.int64(0)), (call.batch, call.heads, 2))
    lse = carray(pointer(call.lse, np.float32(0)), (call.batch, call.heads, call.rows))
    delta = carray(pointer(call.delta, np.float32(0)), (call.batch, call.heads, call.rows))
    rows, grads = np.empty((ROWS, width), np.float32), np.empty((ROWS, value_width), np.float32)
    columns, grad_columns = np.empty((width, ROWS), np.float32), np.empty((value_width, ROWS), np.float32)
    logits, inner = np.empty((CHUNK, ROWS), np.float32), np.empty((CHUNK, ROWS), np.float32)
    wide_keys = np.empty((CHUNK if size == 2 else 0, width), np.float32)
    wide_values = np.empty((CHUNK if size == 2 else 0, value_width), np.float32)
    sums = np.empty((ROWS, width), np.float32)
    tops, deltas = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    ones = np.ones(ROWS, np.float32)
    found, masks = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.uint64)
    places, value_places = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    key_grads, value_grads = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    nowhere = np.empty(max(width, value_width), np.float32)
    of_groups, of_parts = np.empty((CHUNK // KEYS, 2), np.int64), np.empty((PARTS, 2), np.int64)
    state = np.empty(2, np.int64)
    row_places, grad_places, sum_places = (
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.int64),
        np.empty(ROWS, np.int64),
    )
    for r in range(ROWS):
        row_places[r], grad_places[r] = rows[r:].ctypes.data, grads[r:].ctypes.data
        sum_places[r] = sums[r:].ctypes.data
    logit, slope, mask_at = logits.ctypes.data, inner.ctypes.data, masks.ctypes.data
    own, rule, power = np.empty((CONSTANTS, ROWS), np.float32), call.rule, np.float32(call.power)
    one_at = ones.ctypes.data
    units = call.batch * call.kv_heads * call.pieces
    while True:
        unit = ticket(call.counter)
        if unit >= units:
            break
        piece = unit % call.pieces
        b, kv = unit // call.pieces // call.kv_heads, unit // call.pieces % call.kv_heads
        key = call.key + (b * call.key_batch + kv * call.key_head) * size
        value = call.value + (b * call.value_batch + kv * call.value_head) * size
        part = ((piece * call.batch + b) * call.kv_heads + kv) * call.keys
        grad_key, grad_value = call.grad_key + part * width * 4, call.grad_value + part * value_width * 4
        for h in range(kv * group, (kv + 1) * group):
            for s in range(first[b, h, 0] + piece, first[b, h, 1], call.pieces):
                strip = strips[s]
                mine = order[strip[0] : strip[0] + strip[1]]
                count_rows = strip[1]
                base = call.query + (b * call.query_batch + h * call.query_head) * size
                rows_of(base, call.query_row, mine, count_rows, width, rows, element, size)
                turn(rows, count_rows, width, np.float32(call.scale * LOG2), columns)
                base = call.grad + (b * call.rows * call.heads + h) * value_width * size
                rows_of(base, call.heads * value_width, mine, count_rows, value_width, grads, element, size)
                turn(grads, count_rows, value_width, np.float32(1.0), grad_columns)
                tops[:], deltas[:] = np.float32(np.inf), np.float32(0.0)
                if rule == SOFTMAX:
                    for r in range(count_rows):
                        top = lse[b, h, mine[r]] * np.float32(LOG2)
                        # A row without keys: all its weights become 0.
                        tops[r] = np.float32(np.inf) if top == -np.inf else top
                        deltas[r] = delta[b, h, mine[r]]
                else:
                    constants_of(call, CONSTANTS, b, h, mine, count_rows, own)
                sums[:] = np.float32(0.0)
                state[0], state[1] = strip[2], 0
                while True:
                    count, groups, hidden = next_chunk(call, strip, state, found, masks, of_groups, of_parts)
                    if count == 0:
                        break
                    padded = groups * KEYS
                    places_of(
                        key, call.key_row, found, count, padded, size, width, wide_keys, places, element
                    )
                    places_of(
                        value, call.value_row, found, count, padded, size, value_width, wide_values,
                        value_places, element,
                    )  # fmt: skip
                    for j in range(count):
                        key_grads[j] = grad_key + found[j] * width * 4
                        value_grads[j] = grad_value + found[j] * value_width * 4
                    for j in range(count, padded):
                        key_grads[j] = value_grads[j] = nowhere.ctypes.data
                    groups_products(places, columns, width, logits, of_groups, groups)
                    groups_products(value_places, grad_columns, value_width, inner, of_groups, groups)
                    for v in range(PARTS):
                        low, high = of_parts[v, 0] * KEYS, of_parts[v, 1] * KEYS
                        at = low * ROWS * 4 + v * LANES * 4
                        if low >= high:
                            continue
                        if rule != SOFTMAX:
                            _sloped(
                                rule, logit + at, slope + at, high - low, mask_at + low * 8, v * LANES,
                                own[:, v * LANES :].ctypes.data, power,
                            )  # fmt: skip
                        elif hidden:
                            differences(
                                logit + at, slope + at, high - low, mask_at + low * 8, v * LANES,
                                tops[v * LANES :].ctypes.data, deltas[v * LANES :].ctypes.data, 1,
                            )  # fmt: skip
                        else:
                            differences(
                                logit + at, slope + at, high - low, mask_at + low * 8, v * LANES,
                                tops[v * LANES :].ctypes.data, deltas[v * LANES :].ctypes.data, 0,
                            )  # fmt: skip
                    for r in range(0, count_rows, KEYS):
                        low, high = span_of_rows(masks, padded, r, hidden)
                        if low < high:
                            sum_rows(
                                sum_places[r:].ctypes.data, slope + low * ROWS * 4 + r * 4, 4, ROWS * 4,
                                places[low:].ctypes.data, high - low, width, one_at,
                            )  # fmt: skip
                    for g in range(groups):
                        low, high = of_groups[g, 0] * LANES, min(of_groups[g, 1] * LANES, count_rows)
                        if low >= high:
                            continue
                        at = g * KEYS * ROWS * 4 + low * 4
                        sum_rows(
                            value_grads[g * KEYS :].ctypes.data, logit + at, ROWS * 4, 4,
                            grad_places[low:].ctypes.data, high - low, value_width, one_at,
                        )  # fmt: skip
                        sum_rows(
                            key_grads[g * KEYS :].ctypes.data, slope + at, ROWS * 4, 4,
                            row_places[low:].ctypes.data, high - low, width, one_at,
                        )  # fmt: skip
                for r in range(count_rows):
                    to = call.grad_query + ((b * call.rows + mine[r]) * call.heads + h) * width * size
                    finish(sum_places[r], np.float32(call.scale), to, width, element)
