"""Loops over the edges of a graph, compiled by `numba`: softmax attention, forward and backward.

A unit of work is a run of receivers (or senders) with about as many edges as any other; a node's edges are
taken in one order by one thread, so that nothing depends on the number of threads. Tensors are node-major,
(B, nodes, heads, width): all heads of a node lie together.
Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import carray, njit

from attlas.attend import decode_vectors
from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.team import address_of, digest

__all__ = ["CALL", "compiled"]

_WHOLE = (
    *("starts", "pieces", "pointer", "other", "query", "key", "value", "out", "lse"),
    *("grad_out", "delta", "grad_query", "grad_key", "grad_value"),
    *(
        "batch",
        "heads",
        "kv_heads",
        "receivers",
        "senders",
        "edges",
        "width",
        "value_width",
        "most",
        "counter",
    ),
)
CALL = np.dtype([*((name, np.int64) for name in _WHOLE), ("scale", np.float64)])
"""Addresses of contiguous tensors and sizes. starts (pieces + 1,): the nodes where pieces of work begin;
pointer, other: of the edges sorted by receiver, or by sender in the backward of keys and values; most: edges
of the node that has most; out (B, R, H, V); lse, delta (B, R, H) in the type of the numbers; counter: 0."""

_jit = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_jit
@no_type_check
def _inputs(call, element):
    """query, key and value as arrays."""
    query = carray(pointer(call.query, element), (call.batch, call.receivers, call.heads, call.width))
    key = carray(pointer(call.key, element), (call.batch, call.senders, call.kv_heads, call.width))
    value = carray(pointer(call.value, element), (call.batch, call.senders, call.kv_heads, call.value_width))
    return query, key, value


@_jit
@no_type_check
def _edges(call, nodes):
    """starts, pointer and other as arrays."""
    starts = carray(pointer(call.starts, np.int64(0)), call.pieces + 1)
    first = carray(pointer(call.pointer, np.int64(0)), nodes + 1)
    return starts, first, carray(pointer(call.other, np.int64(0)), call.edges)


@_jit
@no_type_check
def _slopes(call, element):
    """grad_out, lse and delta as arrays."""
    rows = (call.batch, call.receivers, call.heads)
    grad_out = carray(pointer(call.grad_out, element), (*rows, call.value_width))
    return grad_out, carray(pointer(call.lse, element), rows), carray(pointer(call.delta, element), rows)


@_jit
@no_type_check
def _product(one, two, element):
    total = element
    for d in range(len(one)):
        total += one[d] * two[d]
    return total


@_jit
@no_type_check
def forward(call, element):
    """Take runs of receivers until none is left: out and lse."""
    query, key, value = _inputs(call, element)
    starts, first, senders = _edges(call, call.receivers)
    out = carray(pointer(call.out, element), (call.batch, call.receivers, call.heads, call.value_width))
    lse = carray(pointer(call.lse, element), (call.batch, call.receivers, call.heads))
    logits, total = np.empty((call.most, call.heads), query.dtype), np.empty(call.heads, query.dtype)
    group = call.heads // call.kv_heads
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for i in range(starts[piece], starts[piece + 1]):
            begin, count = first[i], first[i + 1] - first[i]
            for e in range(count):
                j = senders[begin + e]
                for h in range(call.heads):
                    logits[e, h] = _product(query[b, i, h], key[b, j, h // group], element) * call.scale
            for h in range(call.heads):
                total[h] = _weights(logits, h, count, lse[b, i], element)
            out[b, i] = 0
            for e in range(count):
                j = senders[begin + e]
                for h in range(call.heads):
                    weight, carried = logits[e, h], value[b, j, h // group]
                    for d in range(call.value_width):
                        out[b, i, h, d] += weight * carried[d]
            for h in range(call.heads):
                for d in range(call.value_width):
                    out[b, i, h, d] *= total[h]


@_jit
@no_type_check
def _weights(logits, h, count, lse, element):
    """exp(logit - largest) in place, lse, and one over their sum (0 without edges)."""
    top = element - np.inf
    for e in range(count):
        if not logits[e, h] <= top:  # also where it is no number
            top = logits[e, h]
    if top == -np.inf:
        lse[h] = top
        for e in range(count):
            logits[e, h] = 0
        return element
    total = element
    for e in range(count):
        logits[e, h] = math.exp(logits[e, h] - top)
        total += logits[e, h]
    lse[h] = top + math.log(total)
    return (element + 1) / total


@_jit
@no_type_check
def _gradients(call, element):
    """grad_out, lse and delta as arrays."""
    rows = (call.batch, call.receivers, call.heads)
    grad_out = carray(pointer(call.grad_out, element), (*rows, call.value_width))
    return grad_out, carray(pointer(call.lse, element), rows), carray(pointer(call.delta, element), rows)


@_jit
@no_type_check
def backward_receivers(call, element):
    """Take runs of receivers until none is left: the gradient of the queries."""
    query, key, value = _inputs(call, element)
    starts, first, senders = _edges(call, call.receivers)
    grad_out, lse, delta = _gradients(call, element)
    grad_query = carray(pointer(call.grad_query, element), query.shape)
    group = call.heads // call.kv_heads
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for i in range(starts[piece], starts[piece + 1]):
            grad_query[b, i] = 0
            for e in range(first[i], first[i + 1]):
                j = senders[e]
                for h in range(call.heads):
                    if lse[b, i, h] == -np.inf:
                        continue
                    g = h // group
                    logit = _product(query[b, i, h], key[b, j, g], element) * call.scale
                    weight = math.exp(logit - lse[b, i, h])
                    slope = _product(grad_out[b, i, h], value[b, j, g], element) - delta[b, i, h]
                    slope *= weight * call.scale
                    for d in range(call.width):
                        grad_query[b, i, h, d] += slope * key[b, j, g, d]


@_jit
@no_type_check
def backward_senders(call, element):
    """Take runs of senders until none is left: the gradients of keys and values."""
    query, key, value = _inputs(call, element)
    starts, first, receivers = _edges(call, call.senders)
    grad_out, lse, delta = _gradients(call, element)
    grad_key = carray(pointer(call.grad_key, element), key.shape)
    grad_value = carray(pointer(call.grad_value, element), value.shape)
    group = call.heads // call.kv_heads
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for j in range(starts[piece], starts[piece + 1]):
            grad_key[b, j] = 0
            grad_value[b, j] = 0
            for e in range(first[j], first[j + 1]):
                i = receivers[e]
                for h in range(call.heads):
                    if lse[b, i, h] == -np.inf:
                        continue
                    g = h // group
                    logit = _product(query[b, i, h], key[b, j, g], element) * call.scale
                    weight = math.exp(logit - lse[b, i, h])
                    slope = _product(grad_out[b, i, h], value[b, j, g], element) - delta[b, i, h]
                    slope *= weight * call.scale
                    for d in range(call.width):
                        grad_key[b, j, g, d] += slope * query[b, i, h, d]
                    for d in range(call.value_width):
                        grad_value[b, j, g, d] += weight * grad_out[b, i, h, d]


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
    source = digest(decode_vectors, sys.modules[__name__])
    return address_of(_entries(source)[what, double], CALL)
