"""What the strip kernel's forward and backward loops share, compiled by `numba`: chunks of keys, and which of
their pairs are computed.
"""

from typing import no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend.decode_vectors import pointer
from attlas.attend.strip_vectors import KEYS, LANES, ROWS, VECTORS, carry, products, widen_row

__all__ = [
    "ALL",
    "CALL",
    "CHUNK",
    "PARTS",
    "WHOLE",
    "constants_of",
    "groups_products",
    "jit",
    "next_chunk",
    "places_of",
    "rows_of",
    "span_of_rows",
    "sum_rows",
    "turn",
]

WHOLE = (
    *("query", "query_batch", "query_head", "query_row"),
    *("key", "key_batch", "key_head", "key_row"),
    *("value", "value_batch", "value_head", "value_row"),
    *("out", "lse", "order", "strips", "runs", "masks", "first", "counter"),
    *("batch", "heads", "kv_heads", "rows", "keys", "width", "value_width", "size"),
    *("grad", "delta", "grad_query", "grad_key", "grad_value", "pieces"),
    *("rule", "constants", "tops"),
)
CALL = np.dtype([*((name, np.int64) for name in WHOLE), ("scale", np.float64), ("power", np.float64)])
"""What a call is told: addresses, strides in numbers, sizes. out and grad_query (B, N, H, .) and lse, delta
(B, H, N) are contiguous; `order`, `strips`, `runs`, `masks` are those of `strips.Strips`; `first` (B, H, 2)
the strips of each head; `counter` an int64 that is 0. Backward: grad (B, N, H, V) of out, contiguous; delta =
sum(grad * out) - grad of lse; grad_key, grad_value (pieces, B, g, M, .) float32 that are 0. rule: one of
`strip_rules`; by one other than SOFTMAX, lse takes sums of weights (forward), tops (B, H, N) the largest of
them, delta is not read, and constants (2 forward, CONSTANTS backward, B, H, N) float32 are the queries'."""

CHUNK = 64  # keys; logits of a chunk take 16 KiB
PARTS = ROWS // LANES  # vectors of queries
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
jit = njit(nogil=True, error_model="numpy")


@jit
@no_type_check
def vectors_products(keys, count, columns, width, found, first, last):
    """`products` for the vectors first..last of queries, as many at a time as registers hold."""
    v = first
    while v < last:
        at = v * LANES * 4
        left = min(last - v, VECTORS)
        if left == 4:
            products(keys, count, columns + at, width, found + at, 4)
        elif left == 3:
            products(keys, count, columns + at, width, found + at, 3)
        elif left == 2:
            products(keys, count, columns + at, width, found + at, 2)
        else:
            products(keys, count, columns + at, width, found + at, 1)
        v += left


@jit
@no_type_check
def sum_rows(out, weights, across, along, rows, count, width, factors):
    """`carry` for all columns."""
    c = 0
    while c < width:
        left = (width - c) // LANES
        at = c * 4
        if left >= 4 and VECTORS == 4:
            carry(out, weights, across, along, rows, count, at, factors, 4)
            c += 4 * LANES
        elif left >= 2:
            carry(out, weights, across, along, rows, count, at, factors, 2)
            c += 2 * LANES
        else:
            carry(out, weights, across, along, rows, count, at, factors, 1)
            c += LANES


@jit
@no_type_check
def _chunk(call, strip, state, found, masks):
    """The next up to CHUNK keys of a strip and their masks: how many, and whether some pair is hidden.

    state: the run to go on with, and how many of its keys are done.
    """
    runs = carray(pointer(call.runs, np.int64(0)), (strip[3], 2))
    sets = carray(pointer(call.masks, np.uint64(0)), strip[3])
    count, hidden = 0, False
    run, done = state[0], state[1]
    while count < CHUNK and run < strip[3]:
        taken = min(runs[run, 1] - done, CHUNK - count)
        mask = sets[run]
        hidden |= mask != ALL
        start = runs[run, 0] + done
        for j in range(taken):
            found[count + j] = start + j
            masks[count + j] = mask
        count += taken
        done += taken
        if done == runs[run, 1]:
            run += 1
            done = 0
    state[0], state[1] = run, done
    return count, hidden


@jit
@no_type_check
def _spans(masks, groups, hidden, of_groups, of_parts):
    """Which vectors of queries each group of KEYS keys needs, and which groups each vector needs: hulls."""
    of_parts[:, 0], of_parts[:, 1] = groups, 0
    for g in range(groups):
        any_ = ALL
        if hidden:
            any_ = masks[g * KEYS] | masks[g * KEYS + 1] | masks[g * KEYS + 2] | masks[g * KEYS + 3]
        low, high = PARTS, 0
        for v in range(PARTS):
            if (any_ >> np.uint64(v * LANES)) & np.uint64((1 << LANES) - 1):
                low, high = min(low, v), v + 1
        of_groups[g, 0], of_groups[g, 1] = low, high
        for v in range(low, high):
            of_parts[v, 0], of_parts[v, 1] = min(of_parts[v, 0], g), g + 1
    # What lies within a vector's hull has to be computed; a hull of hulls where they do not fit together.
    for g in range(groups):
        low, high = PARTS, 0
        for v in range(PARTS):
            if of_parts[v, 0] <= g < of_parts[v, 1]:
                low, high = min(low, v), v + 1
        of_groups[g, 0], of_groups[g, 1] = low, high
        for v in range(low, high):
            if not of_parts[v, 0] <= g < of_parts[v, 1]:
                of_groups[:groups, 0], of_groups[:groups, 1] = 0, PARTS
                of_parts[:, 0], of_parts[:, 1] = 0, groups
                return


@jit
@no_type_check
def constants_of(call, count, b, h, rows, number, found):
    """found[k, r] = the k-th constant of the r-th of `number` rows; 0 beyond them."""
    given = carray(pointer(call.constants, np.float32(0)), (count, call.batch, call.heads, call.rows))
    found[:] = np.float32(0.0)
    for k in range(count):
        for r in range(number):
            found[k, r] = given[k, b, h, rows[r]]


@jit
@no_type_check
def span_of_rows(masks, count, row, hidden):
    """First and last + 1 of the keys that some of KEYS queries from `row` on see."""
    if not hidden:
        return 0, count
    bits = np.uint64((1 << KEYS) - 1) << np.uint64(row)
    low, high = 0, count
    while low < high and not masks[low] & bits:
        low += 1
    while high > low and not masks[high - 1] & bits:
        high -= 1
    return low, high


@jit
@no_type_check
def turn(rows, count, width, factor, columns):
    """columns[c, r] = factor * rows[r, c]; rows from `count` on are 0."""
    for c in range(width):
        for r in range(count):
            columns[c, r] = rows[r, c] * factor
        for r in range(count, ROWS):
            columns[c, r] = np.float32(0.0)


@jit
@no_type_check
def rows_of(base, step, order, count, width, rows, element, size):
    """Rows of queries (or of gradients) as float32."""
    for r in range(count):
        widen_row(base + order[r] * step * size, rows[r:].ctypes.data, width, element)
    for r in range(count, ROWS):
        rows[r, :] = np.float32(0.0)


@jit
@no_type_check
def places_of(base, step, found, count, padded, size, width, wide, places, element):
    """Addresses of rows of float32 for a chunk's keys: where they lie, or copies of bfloat16 in `wide`."""
    for j in range(count):
        at = base + found[j] * step * size
        if size == 2:
            to = wide[j:].ctypes.data
            widen_row(at, to, width, element)
            at = to
        places[j] = at
    for j in range(count, padded):
        places[j] = places[count - 1]


@jit
@no_type_check
def next_chunk(call, strip, state, found, masks, of_groups, of_parts):
    """`_chunk`, filled up to whole groups, and its `_spans`: (keys, groups, whether some pair is hidden)."""
    count, hidden = _chunk(call, strip, state, found, masks)
    groups = (count + KEYS - 1) // KEYS
    for j in range(count, groups * KEYS):
        masks[j] = np.uint64(0)
        hidden = True
    _spans(masks, groups, hidden, of_groups, of_parts)
    return count, groups, hidden


@jit
@no_type_check
def groups_products(places, columns, width, found, of_groups, groups):
    """`products` of a chunk's keys with the turned rows `columns`, as far as `of_groups` needs them.

    Neighbouring groups that need the same vectors are one call.
    """
    g = 0
    while g < groups:
        low, high = of_groups[g, 0], of_groups[g, 1]
        stop = g + 1
        while stop < groups and of_groups[stop, 0] == low and of_groups[stop, 1] == high:
            stop += 1
        vectors_products(
            places[g * KEYS :].ctypes.data, (stop - g) * KEYS, columns.ctypes.data, width,
            found[g * KEYS :].ctypes.data, low, high,
        )  # fmt: skip
        g = stop
