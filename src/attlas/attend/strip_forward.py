"""The strip kernel's forward loop, compiled by `numba`: out, and lse or sums of weights.

Legend: B batch, H query heads, N queries, D width, V value width.
"""

from math import log
from typing import no_type_check

import numpy as np
from numba import carray

from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.strip_features import features
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
from attlas.attend.strip_rules import SIGMOID, SOFTMAX, SOFTPLUS
from attlas.attend.strip_vectors import KEYS, LANES, ROWS, exponents, finish

__all__ = ["forward"]

LOG2 = 1.4426950408889634
LN2 = 0.6931471805599453
NOTHING = np.float32(-3.4028234e38)  # the maximum of no logits


@jit
@no_type_check
def _unit(call, unit):
    """(batch row, head, strip) of a unit of work; the last strips first, which see most where causal."""
    first = carray(pointer(call.first, np.int64(0)), (call.batch, call.heads, 2))
    for b in range(call.batch):
        for h in range(call.heads):
            here = first[b, h, 1] - first[b, h, 0]
            if unit < here:
                return b, h, first[b, h, 1] - 1 - unit
            unit -= here
    return -1, 0, 0


@jit
@no_type_check
def _weigh(rule, logits, count, masks, shift, firsts, seconds, tops, totals, power):
    """`features` by a rule that is known now only; its literals are the numbers of the rules."""
    if rule == SIGMOID:
        features(logits, count, masks, shift, firsts, seconds, tops, totals, power, 1)
    elif rule == SOFTPLUS:
        features(logits, count, masks, shift, firsts, seconds, tops, totals, power, 2)
    else:
        features(logits, count, masks, shift, firsts, seconds, tops, totals, power, 3)


@jit
@no_type_check
def forward(call, element):
    """Take strips until none is left: out, and lse or the sums and maxima of weights."""
    group, size = call.heads // call.kv_heads, call.size
    width, value_width = call.width, call.value_width
    strips = carray(pointer(call.strips, np.int64(0)), (1 << 40, 5))
    order = carray(pointer(call.order, np.int64(0)), 1 << 40)
    rows = np.empty((ROWS, width), np.float32)
    columns = np.empty((width, ROWS), np.float32)
    logits = np.empty((CHUNK, ROWS), np.float32)
    wide_keys = np.empty((CHUNK if size == 2 else 0, width), np.float32)
    wide_values = np.empty((CHUNK if size == 2 else 0, value_width), np.float32)
    sums = np.empty((ROWS, value_width), np.float32)
    tops, totals = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    factors, own = np.ones(ROWS, np.float32), np.empty((2, ROWS), np.float32)
    found, masks = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.uint64)
    places, value_places = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    of_groups, of_parts = np.empty((CHUNK // KEYS, 2), np.int64), np.empty((PARTS, 2), np.int64)
    state = np.empty(2, np.int64)
    out_places = np.empty(ROWS, np.int64)
    for r in range(ROWS):
        out_places[r] = sums[r:].ctypes.data
    lse = carray(pointer(call.lse, np.float32(0)), (call.batch, call.heads, call.rows))
    most = carray(pointer(call.tops, np.float32(0)), (call.batch, call.heads, call.rows))
    rule, power = call.rule, np.float32(call.power)
    logit, factor_at, mask_at = logits.ctypes.data, factors.ctypes.data, masks.ctypes.data
    while True:
        b, h, s = _unit(call, ticket(call.counter))
        if b < 0:
            break
        strip = strips[s]
        mine = order[strip[0] : strip[0] + strip[1]]
        count_rows = strip[1]
        base = call.query + (b * call.query_batch + h * call.query_head) * size
        rows_of(base, call.query_row, mine, count_rows, width, rows, element, size)
        turn(rows, count_rows, width, np.float32(call.scale * LOG2), columns)
        key = call.key + (b * call.key_batch + h // group * call.key_head) * size
        value = call.value + (b * call.value_batch + h // group * call.value_head) * size
        sums[:] = np.float32(0.0)
        tops[:], totals[:] = NOTHING, np.float32(0.0)
        if rule != SOFTMAX:
            tops[:] = np.float32(0.0)
            constants_of(call, 2, b, h, mine, count_rows, own)
        state[0], state[1] = strip[2], 0
        while True:
            count, groups, hidden = next_chunk(call, strip, state, found, masks, of_groups, of_parts)
            if count == 0:
                break
            padded = groups * KEYS
            places_of(key, call.key_row, found, count, padded, size, width, wide_keys, places, element)
            places_of(
                value,
                call.value_row,
                found,
                count,
                padded,
                size,
                value_width,
                wide_values,
                value_places,
                element,
            )
            groups_products(places, columns, width, logits, of_groups, groups)
            for v in range(PARTS):
                low, high = of_parts[v, 0] * KEYS, of_parts[v, 1] * KEYS
                at = v * LANES * 4
                if low >= high:
                    factors[v * LANES : (v + 1) * LANES] = np.float32(1.0)
                    continue
                if rule != SOFTMAX:
                    _weigh(
                        rule, logit + low * ROWS * 4 + at, high - low, mask_at + low * 8, v * LANES,
                        own.ctypes.data + at, own[1:].ctypes.data + at, tops.ctypes.data + at,
                        totals.ctypes.data + at, power,
                    )  # fmt: skip
                elif hidden:
                    exponents(
                        logit + low * ROWS * 4 + at, high - low, mask_at + low * 8, v * LANES,
                        tops.ctypes.data + at, totals.ctypes.data + at, factor_at + at, 1,
                    )  # fmt: skip
                else:
                    exponents(
                        logit + low * ROWS * 4 + at, high - low, mask_at + low * 8, v * LANES,
                        tops.ctypes.data + at, totals.ctypes.data + at, factor_at + at, 0,
                    )  # fmt: skip
            for r in range(0, count_rows, KEYS):
                low, high = span_of_rows(masks, padded, r, hidden)
                if low < high:
                    sum_rows(
                        out_places[r:].ctypes.data, logit + low * ROWS * 4 + r * 4, 4, ROWS * 4,
                        value_places[low:].ctypes.data, high - low, value_width, factors[r:].ctypes.data,
                    )  # fmt: skip
        for r in range(count_rows):
            total = totals[r]
            row = mine[r]
            inverse = np.float32(0.0) if total == 0.0 else np.float32(1.0) / total
            if rule == SOFTMAX:
                lse[b, h, row] = -np.inf if total == 0.0 else np.float32(tops[r] * LN2 + log(total))
            else:
                lse[b, h, row], most[b, h, row] = total, tops[r]
                if rule == SIGMOID:
                    inverse = np.float32(1.0)
            to = call.out + ((b * call.rows + row) * call.heads + h) * value_width * size
            finish(out_places[r], inverse, to, value_width, element)
