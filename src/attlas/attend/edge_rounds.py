"""Steps that all loops along edges share, compiled: a thread's memory, rows, neighbours, weighted sums.

Memory is passed by address: numba counts references of arrays, in every step. Legend: as in `edge_call`.
"""

from typing import no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.edge_call import AHEAD, BLOCK, LANES, ROW
from attlas.attend.edge_vectors import weighted

__all__ = [
    "LN2", "LOG2E", "jit", "like", "listed", "multiplied", "scratch_of", "summed", "totals_of", "zero",
]  # fmt: skip

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453

# Powers of two round by adding and taking away: no reassociation here (numba's flags reach into intrinsics).
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
    found = carray(pointer(places, np.int64(0)), count + AHEAD)
    for e in range(readable):
        found[e] = numbers[e]
    for e in range(readable, count + AHEAD):
        found[e] = numbers[readable - 1]


@jit
@no_type_check
def summed(call, weights, columns, width, heads, count, base, stride, places, out, size, element):
    """out += the weighted sums of gathered rows of `heads` heads, up to eight vectors at a time."""
    per, total, step = width // LANES, heads * width // LANES, size * LANES
    plain = call.heads == call.kv_heads and total % 8 == 0
    for term in range(call.terms):
        of = columns + 16 * total * term
        begin = of + 8 * total
        at = 0
        while at + 8 <= total:
            o, b, x = of + 8 * at, begin + 8 * at, out + step * at
            if plain and per == 1:
                weighted(weights, o, count, base, b, stride, places, x, 8, 1, ROW, element)
            elif plain and per == 2:
                weighted(weights, o, count, base, b, stride, places, x, 8, 2, ROW, element)
            elif plain and per % 8 == 0:
                weighted(weights, o, count, base, b, stride, places, x, 8, 8, ROW, element)
            else:
                weighted(weights, o, count, base, b, stride, places, x, 8, 0, ROW, element)
            at += 8
        while at + 2 <= total:
            o, b, x = of + 8 * at, begin + 8 * at, out + step * at
            weighted(weights, o, count, base, b, stride, places, x, 2, 0, ROW, element)
            at += 2
        if at < total:
            o, b, x = of + 8 * at, begin + 8 * at, out + step * at
            weighted(weights, o, count, base, b, stride, places, x, 1, 0, ROW, element)


@jit
@no_type_check
def zero(address, count, element):
    row = carray(pointer(address, element), count)
    for d in range(count):
        row[d] = 0


@jit
@no_type_check
def scratch_of(call, size):
    """This thread's memory: places, logits and slopes by head, derivatives of a head, a receiver's ends."""
    places = call.scratch + ticket(call.counter + 8) * call.scratch_size
    logits = places + 8 * (BLOCK + AHEAD)
    slopes = logits + call.heads * ROW * size
    bends = slopes + call.heads * ROW * size
    return places, logits, slopes, bends, bends + ROW * size


@_loose
@no_type_check
def _total(numbers, count):
    total = numbers[0] * 0
    for e in range(count):
        total += numbers[e]
    return total


@jit
@no_type_check
def totals_of(call, slopes, count, grad, group, element):
    """The gradient of the node scores (H / group,) of an additive score."""
    rows = carray(pointer(slopes, element), (call.heads, ROW))
    found = carray(pointer(grad, element), call.heads // group)
    for h in range(call.heads):
        found[h // group] += _total(rows[h], count)


@_loose
@no_type_check
def multiplied(numbers, factors, count, element):
    found, more = carray(pointer(numbers, element), count), carray(pointer(factors, element), count)
    for e in range(count):
        found[e] *= more[e]
