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
from attlas.attend.edge_rounds import LN2, jit, like, listed, scratch_of, summed, zero
from attlas.attend.edge_scores import bend, raw_logits
from attlas.attend.team import address_of, digest

__all__ = ["compiled"]

_TEXTS = (
    *(decode_ir, decode_vectors, edge_backward, edge_call, edge_powers, edge_products, edge_rounds),
    *(edge_scores, edge_vectors),
)


@jit
@no_type_check
def forward(call, element):
    """Take units of receivers until none is left: out, tops, lse and states."""
    units = carray(pointer(call.units, np.int64(0)), (call.count, 5))
    first = carray(pointer(call.pointer, np.int64(0)), call.receivers + 1)
    size = carray(pointer(call.tops, element), 1).itemsize
    scratch = scratch_of(call, size)
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.count:
            break
        b, unit = unit // call.count, unit % call.count
        slot, node = units[unit, 4], units[unit, 0]
        if slot >= 0:
            at = (b * call.slots + slot) * call.heads * size
            out, tops = call.part_out + at * call.value_width, call.part_tops + 2 * at
            _receive(call, b, node, units[unit, 2], units[unit, 3], out, tops, scratch, size, element)
            continue
        for i in range(node, units[unit, 1]):
            if first[i + 1] - first[i] <= call.huge:
                at = (b * call.receivers + i) * call.heads * size
                out, tops = call.out + at * call.value_width, call.tops + 2 * at
                _receive(call, b, i, first[i], first[i + 1], out, tops, scratch, size, element)
                _write_lse(tops, call.lse + at, call.heads, element)


@jit
@no_type_check
def _receive(call, b, i, begin, end, out, tops, scratch, size, element):
    """out (H, V) and tops (2, H) of a receiver, over its edges begin .. end."""
    places, logits, _, _, _ = scratch
    found = carray(pointer(tops, element), (2, call.heads))
    tops, totals = found[0], found[1]
    key, value = call.key + b * call.key_batch, call.value + b * call.value_batch
    carried, step = call.value_width // LANES, call.value_width * size
    zero(out, call.heads * call.value_width, element)
    for h in range(call.heads):
        tops[h], totals[h] = -np.inf, 0
    own = call.query + b * call.query_batch + i * call.query_node
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
        if tops[h] > -np.inf or tops[h] != tops[h]:
            times(out + h * step, carried, like(1 / totals[h], element))


@jit
@no_type_check
def _write_lse(tops, lse, heads, element):
    """The lse (H,) that tops (2, H) give; -inf where there are no weights."""
    found, lse = carray(pointer(tops, element), (2, heads)), carray(pointer(lse, element), heads)
    for h in range(heads):
        lse[h] = (found[0, h] + math.log2(found[1, h])) * LN2 if found[1, h] != 0 else -np.inf


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
