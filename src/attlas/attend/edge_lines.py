"""The loops of `edge_loops` in float32 for rows of whole vectors: the same sums, several times as fast.

A node's edges are taken head by head: products with the rows of its neighbours, weights, sums of rows.
Exponents are of two. Legend: as in `edge_loops`.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend import decode_ir, decode_vectors, edge_loops, edge_vectors
from attlas.attend.decode_ir import LANES
from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.edge_loops import CALL
from attlas.attend.edge_vectors import AHEAD, powers, products, weighted
from attlas.attend.team import address_of, digest

__all__ = ["LANES", "compiled"]

_LOG2E, _LN2 = 1.4426950408889634, 0.6931471805599453
_NUMBER = np.float32(0)
_LEAST = np.float32(-np.inf)
# Powers of two round by adding and taking away: no reassociation here (numba's flags reach into intrinsics).
_jit = njit(nogil=True, error_model="numpy", fastmath=False)
_loose = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_jit
@no_type_check
def _list(address, first, count, places):
    """The neighbours of a node, and AHEAD more rows that can be read."""
    listed = carray(pointer(address + 8 * first, np.int64(0)), count)
    for e in range(count):
        places[e] = listed[e]
    for e in range(count, count + AHEAD):
        places[e] = places[count - 1]


@_loose
@no_type_check
def _scaled(address, width, factor, own):
    """A row times a factor."""
    row = carray(pointer(address, _NUMBER), width)
    for d in range(width):
        own[d] = row[d] * factor


@_loose
@no_type_check
def _total(numbers, count):
    total = _NUMBER
    for e in range(count):
        total += numbers[e]
    return total


@_jit
@no_type_check
def _sum(weights, count, base, stride, places, out, width):
    """weighted() over a whole row, up to four vectors at a time."""
    at = 0
    while at + 4 * LANES <= width:
        weighted(weights, count, base + 4 * at, stride, places, out + 4 * at, 4)
        at += 4 * LANES
    if at + 2 * LANES <= width:
        weighted(weights, count, base + 4 * at, stride, places, out + 4 * at, 2)
        at += 2 * LANES
    if at < width:
        weighted(weights, count, base + 4 * at, stride, places, out + 4 * at, 1)


@_jit
@no_type_check
def _softmax(logits, count):
    """2^(logit - largest) in place (0 behind the last), lse in natural units, and one over the sum."""
    top = _LEAST
    for e in range(count):
        if not logits[e] <= top:  # also where it is no number
            top = logits[e]
    if top == _LEAST:
        logits[:count] = 0
        return top, _NUMBER
    powers(logits.ctypes.data, count, top)
    total = _total(logits, count)
    return np.float32((top + math.log2(total)) * _LN2), np.float32(1) / total


@_jit
@no_type_check
def forward(call):
    """Take runs of receivers until none is left: out and lse."""
    starts = carray(pointer(call.starts, np.int64(0)), call.pieces + 1)
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    lse = carray(pointer(call.lse, _NUMBER), (call.batch, call.receivers, call.heads))
    out = carray(pointer(call.out, _NUMBER), (call.batch, call.receivers, call.heads, call.value_width))
    places, own = np.empty(call.most + AHEAD, np.int64), np.empty(call.width, np.float32)
    logits = np.empty(call.most + 2 * LANES, np.float32)
    group, factor = call.heads // call.kv_heads, np.float32(call.scale * _LOG2E)
    row, carried = 4 * call.width, 4 * call.value_width
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for i in range(starts[piece], starts[piece + 1]):
            count = first[i + 1] - first[i]
            if count == 0:
                out[b, i] = 0
                lse[b, i] = _LEAST
                continue
            _list(call.other, first[i], count, places)
            for h in range(call.heads):
                g = b * call.senders * call.kv_heads + h // group
                _scaled(
                    call.query + ((b * call.receivers + i) * call.heads + h) * row, call.width, factor, own
                )
                products(
                    own.ctypes.data, call.width // LANES, call.key + g * row, call.kv_heads * row,
                    places.ctypes.data, count, logits.ctypes.data,
                )  # fmt: skip
                lse[b, i, h], share = _softmax(logits, count)
                mine = out[b, i, h]
                _sum(
                    logits.ctypes.data, count, call.value + g * carried, call.kv_heads * carried,
                    places.ctypes.data, mine.ctypes.data, call.value_width,
                )  # fmt: skip
                for d in range(call.value_width):
                    mine[d] *= share


@_jit
@no_type_check
def backward_receivers(call):
    """Take runs of receivers until none is left: the gradient of the queries."""
    starts = carray(pointer(call.starts, np.int64(0)), call.pieces + 1)
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    rows = (call.batch, call.receivers, call.heads)
    lse, delta = carray(pointer(call.lse, _NUMBER), rows), carray(pointer(call.delta, _NUMBER), rows)
    grad_query = carray(pointer(call.grad_query, _NUMBER), (*rows, call.width))
    places, own = np.empty(call.most + AHEAD, np.int64), np.empty(call.width, np.float32)
    logits = np.empty(call.most + 2 * LANES, np.float32)
    slopes = np.empty(call.most + 2 * LANES, np.float32)
    group, factor = call.heads // call.kv_heads, np.float32(call.scale * _LOG2E)
    row, carried = 4 * call.width, 4 * call.value_width
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for i in range(starts[piece], starts[piece + 1]):
            count = first[i + 1] - first[i]
            if count == 0:
                grad_query[b, i] = 0
                continue
            _list(call.other, first[i], count, places)
            for h in range(call.heads):
                if lse[b, i, h] == _LEAST:
                    grad_query[b, i, h] = 0
                    continue
                g = b * call.senders * call.kv_heads + h // group
                at = (b * call.receivers + i) * call.heads + h
                _scaled(call.query + at * row, call.width, factor, own)
                products(
                    own.ctypes.data, call.width // LANES, call.key + g * row, call.kv_heads * row,
                    places.ctypes.data, count, logits.ctypes.data,
                )  # fmt: skip
                products(
                    call.grad_out + at * carried, call.value_width // LANES, call.value + g * carried,
                    call.kv_heads * carried, places.ctypes.data, count, slopes.ctypes.data,
                )  # fmt: skip
                powers(logits.ctypes.data, count, np.float32(lse[b, i, h] * _LOG2E))
                _slopes(logits, slopes, count, delta[b, i, h], np.float32(call.scale))
                _sum(
                    slopes.ctypes.data, count, call.key + g * row, call.kv_heads * row,
                    places.ctypes.data, grad_query[b, i, h].ctypes.data, call.width,
                )  # fmt: skip


@_loose
@no_type_check
def _slopes(weights, slopes, count, delta, scale):
    for e in range(count):
        slopes[e] = weights[e] * (slopes[e] - delta) * scale


@_loose
@no_type_check
def _shifted(logits, slopes, count, places, lse, delta, h):
    """Logits less the lse of their receivers, slopes less their delta."""
    for e in range(count):
        end = lse[places[e], h]
        logits[e] = logits[e] - end * np.float32(_LOG2E) if end != _LEAST else end
        slopes[e] -= delta[places[e], h]


@_jit
@no_type_check
def backward_senders(call):
    """Take runs of senders until none is left: the gradients of keys and values."""
    starts = carray(pointer(call.starts, np.int64(0)), call.pieces + 1)
    first = carray(pointer(call.pointer, np.int64(0)), call.senders + 1)
    rows = (call.batch, call.receivers, call.heads)
    lse, delta = carray(pointer(call.lse, _NUMBER), rows), carray(pointer(call.delta, _NUMBER), rows)
    keys = (call.batch, call.senders, call.kv_heads)
    grad_key = carray(pointer(call.grad_key, _NUMBER), (*keys, call.width))
    grad_value = carray(pointer(call.grad_value, _NUMBER), (*keys, call.value_width))
    places, own = np.empty(call.most + AHEAD, np.int64), np.empty(call.width, np.float32)
    logits = np.empty(call.most + 2 * LANES, np.float32)
    slopes = np.empty(call.most + 2 * LANES, np.float32)
    found = np.empty(max(call.width, call.value_width), np.float32)
    group, factor = call.heads // call.kv_heads, np.float32(call.scale * _LOG2E)
    row, carried = 4 * call.width, 4 * call.value_width
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for j in range(starts[piece], starts[piece + 1]):
            grad_key[b, j] = 0
            grad_value[b, j] = 0
            count = first[j + 1] - first[j]
            if count == 0:
                continue
            _list(call.other, first[j], count, places)
            for h in range(call.heads):
                g = h // group
                at = (b * call.senders + j) * call.kv_heads + g
                of = b * call.receivers * call.heads + h
                _scaled(call.key + at * row, call.width, factor, own)
                products(
                    own.ctypes.data, call.width // LANES, call.query + of * row, call.heads * row,
                    places.ctypes.data, count, logits.ctypes.data,
                )  # fmt: skip
                products(
                    call.value + at * carried, call.value_width // LANES, call.grad_out + of * carried,
                    call.heads * carried, places.ctypes.data, count, slopes.ctypes.data,
                )  # fmt: skip
                _shifted(logits, slopes, count, places, lse[b], delta[b], h)
                powers(logits.ctypes.data, count, _NUMBER)
                _slopes(logits, slopes, count, _NUMBER, np.float32(call.scale))
                _sum(
                    slopes.ctypes.data, count, call.query + of * row, call.heads * row,
                    places.ctypes.data, found.ctypes.data, call.width,
                )  # fmt: skip
                for d in range(call.width):
                    grad_key[b, j, g, d] += found[d]
                _sum(
                    logits.ctypes.data, count, call.grad_out + of * carried, call.heads * carried,
                    places.ctypes.data, found.ctypes.data, call.value_width,
                )  # fmt: skip
                for d in range(call.value_width):
                    grad_value[b, j, g, d] += found[d]


def _entries(source: str) -> dict[str, Callable[[Any], None]]:
    """The functions to compile. numba's cache on disk looks at their own text and at `source` only."""

    @no_type_check
    def lines_forward(call):
        if source:
            forward(carray(call, 1)[0])

    @no_type_check
    def lines_receivers(call):
        if source:
            backward_receivers(carray(call, 1)[0])

    @no_type_check
    def lines_senders(call):
        if source:
            backward_senders(carray(call, 1)[0])

    return {"forward": lines_forward, "receivers": lines_receivers, "senders": lines_senders}


def compiled(what: str) -> int:
    """The address of the machine code, a function of the address of a CALL; as in `edge_loops`."""
    source = digest(decode_ir, decode_vectors, edge_loops, edge_vectors, sys.modules[__name__])
    return address_of(_entries(source)[what], CALL)
