"""The selective scan's loops, compiled by `numba`: forward, and a backward that goes back over saved states.

A unit of work is LANES channels of one sequence: their state (S, LANES) stays in cache while time runs.
Exponents of CHUNK steps are made at once. What is left does not depend on the number of threads.
Legend: B batch, N steps, S states per channel, D channels.
"""

import sys
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from attlas.attend import decode_ir, decode_vectors
from attlas.attend.decode_ir import FLOATS, load, loop, plus, power_of_two, store
from attlas.attend.decode_vectors import pointer, ticket
from attlas.attend.team import address_of, digest
from attlas.scan.selective_shape import CHUNK

__all__ = ["CALL", "LANES", "compiled"]

LANES = 16  # channels side by side: a cache line of float32
_WIDTH = decode_ir.LANES
_WHOLE = (
    *("u", "delta", "rate", "write", "read", "reset", "start", "out", "last", "states"),
    *("batch", "length", "width", "channels", "counter"),
    *("grad_out", "grad_last", "grad_u", "grad_delta", "grad_rate", "grad_write", "grad_read"),
    *("grad_start", "pieces"),
)
CALL = np.dtype([(name, np.int64) for name in _WHOLE])
"""Addresses of contiguous tensors and sizes. u, delta, out and their gradients (B, N, D); rate (S, D); write
(the matrix B), read (C) (B, N, S); reset 0 or bool (B, N); start, last (B, S, D); states (B, ceil(N / CHUNK),
S, D): at the start of each chunk (forward: 0 or written); counter: an int64 that is 0. Backward: grad_rate
(B, S, D), grad_write and grad_read (pieces, B, N, S) that are 0."""

_LOG2E, _LN2 = 1.4426950408889634, 0.6931471805599453
_MOST = 126.0  # exponents of two above would leave float32's range
# Sums over lanes may be taken in any order; infinities and NaN keep their meaning. numba puts these flags on
# every instruction of a function and of those that it calls: powers of two, which round by adding and taking
# away, need the plain False.
_jit = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_exact = njit(nogil=True, error_model="numpy", fastmath=False)


@intrinsic
@no_type_check
def _powers(typingctx, numbers, count, element):
    """Each of `count` numbers x (a multiple of 8) at the address becomes 2^x."""

    def vectors(context, builder, signature, args):
        with loop(builder, args[1], _WIDTH) as (j, _):
            place = plus(builder, args[0], j, 4)
            store(builder, power_of_two(builder, load(builder, place, FLOATS)), place)
        return context.get_dummy_value()

    def scalars(context, builder, signature, args):
        double = ir.DoubleType()
        power = builder.module.declare_intrinsic("llvm.exp2", [double])
        with loop(builder, args[1]) as (j, _):
            place = plus(builder, args[0], j, 8)
            store(builder, builder.call(power, [load(builder, place, double, 8)]), place, 8)
        return context.get_dummy_value()

    code = vectors if element == types.float32 else scalars
    return types.void(types.int64, types.int64, element), code


@_jit
@no_type_check
def _read_rows(source, count, rows):
    """Rows of up to LANES numbers; lanes without a channel are 0."""
    rows[: len(source)] = 0
    for t in range(len(source)):
        for c in range(count):
            rows[t, c] = source[t, c]


@_exact
@no_type_check
def _decays(delta, rate, steps, decay, reset, element):
    """decay[t, s] = 2^(delta_t rate_s), 0 where the state is reset before the step."""
    width = rate.shape[0]
    for t in range(steps):
        for s in range(width):
            for c in range(LANES):
                power = delta[t, c] * rate[s, c]
                decay[t, s, c] = power if not power > _MOST else _MOST
    _powers(decay.ctypes.data, steps * width * LANES, element)
    for t in range(len(reset)):
        if reset[t]:
            decay[t] = 0


@_jit
@no_type_check
def _rate(call, first, count, element):
    """(S, LANES) of A log2(e)."""
    whole = carray(pointer(call.rate, element), (call.width, call.channels))
    rate = np.full((call.width, LANES), element)
    for s in range(call.width):
        for c in range(count):
            rate[s, c] = whole[s, first + c] * _LOG2E
    return rate


@_jit
@no_type_check
def _resets(call, b, start, steps):
    """Whether the state is reset before each of some steps; nothing where none ever is."""
    if call.reset == 0:
        return np.empty(0, np.uint8)
    whole = carray(pointer(call.reset, np.uint8(0)), (call.batch, call.length))
    return whole[b, start : start + steps].copy()


@_jit
@no_type_check
def forward(call, element):
    """Take LANES channels of a sequence until none is left: out, last and states."""
    size = (call.batch, call.length, call.channels)
    chunks = (call.length + CHUNK - 1) // CHUNK
    u, delta = carray(pointer(call.u, element), size), carray(pointer(call.delta, element), size)
    out = carray(pointer(call.out, element), size)
    write = carray(pointer(call.write, element), (call.batch, call.length, call.width))
    read = carray(pointer(call.read, element), (call.batch, call.length, call.width))
    begin = carray(pointer(call.start, element), (call.batch, call.width, call.channels))
    last = carray(pointer(call.last, element), (call.batch, call.width, call.channels))
    states = carray(pointer(call.states, element), (call.batch, chunks, call.width, call.channels))
    blocks = (call.channels + LANES - 1) // LANES
    decay = np.full((CHUNK, call.width, LANES), element)
    drive, rates = np.full((CHUNK, LANES), element), np.full((CHUNK, LANES), element)
    hidden, sums = np.full((call.width, LANES), element), np.full(LANES, element)
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * blocks:
            break
        b, first = unit // blocks, unit % blocks * LANES
        count = min(LANES, call.channels - first)
        stop = first + count
        rate = _rate(call, first, count, element)
        _read_rows(begin[b, :, first:stop], count, hidden)
        for chunk in range(chunks):
            start = chunk * CHUNK
            steps = min(CHUNK, call.length - start)
            if call.states != 0:
                states[b, chunk, :, first:stop] = hidden[:, :count]
            _read_rows(delta[b, start : start + steps, first:stop], count, rates)
            _read_rows(u[b, start : start + steps, first:stop], count, drive)
            _decays(rates, rate, steps, decay, _resets(call, b, start, steps), element)
            for t in range(steps):
                for c in range(LANES):
                    drive[t, c] *= rates[t, c]
                    sums[c] = 0
                for s in range(call.width):
                    to, of = write[b, start + t, s], read[b, start + t, s]
                    for c in range(LANES):
                        value = decay[t, s, c] * hidden[s, c] + to * drive[t, c]
                        hidden[s, c] = value
                        sums[c] += of * value
                for c in range(count):
                    out[b, start + t, first + c] = sums[c]
        last[b, :, first:stop] = hidden[:, :count]


@_jit
@no_type_check
def backward(call, element):
    """Take pieces of a sequence's channels until none is left: the gradients, from the last step back."""
    size = (call.batch, call.length, call.channels)
    chunks = (call.length + CHUNK - 1) // CHUNK
    u, delta = carray(pointer(call.u, element), size), carray(pointer(call.delta, element), size)
    grad_out = carray(pointer(call.grad_out, element), size)
    grad_u = carray(pointer(call.grad_u, element), size)
    grad_delta = carray(pointer(call.grad_delta, element), size)
    narrow = (call.batch, call.length, call.width)
    write, read = carray(pointer(call.write, element), narrow), carray(pointer(call.read, element), narrow)
    state = (call.batch, call.width, call.channels)
    grad_last = carray(pointer(call.grad_last, element), state)
    grad_start = carray(pointer(call.grad_start, element), state)
    grad_rate = carray(pointer(call.grad_rate, element), state)
    states = carray(pointer(call.states, element), (call.batch, chunks, call.width, call.channels))
    pieces = (call.pieces, call.batch, call.length, call.width)
    grad_write = carray(pointer(call.grad_write, element), pieces)
    grad_read = carray(pointer(call.grad_read, element), pieces)
    blocks = (call.channels + LANES - 1) // LANES
    decay = np.full((CHUNK, call.width, LANES), element)
    hidden = np.full((CHUNK + 1, call.width, LANES), element)
    inputs, rates = np.full((CHUNK, LANES), element), np.full((CHUNK, LANES), element)
    slopes, drive = np.full((CHUNK, LANES), element), np.full((CHUNK, LANES), element)
    carried, of_rate = np.full((call.width, LANES), element), np.full((call.width, LANES), element)
    of_drive, of_delta = np.full(LANES, element), np.full(LANES, element)
    while True:
        unit = ticket(call.counter)
        if unit >= call.batch * call.pieces:
            break
        b, piece = unit // call.pieces, unit % call.pieces
        for block in range(piece, blocks, call.pieces):
            first = block * LANES
            count = min(LANES, call.channels - first)
            stop = first + count
            rate = _rate(call, first, count, element)
            _read_rows(grad_last[b, :, first:stop], count, carried)
            of_rate[:] = 0
            for chunk in range(chunks - 1, -1, -1):
                start = chunk * CHUNK
                steps = min(CHUNK, call.length - start)
                end = start + steps
                _read_rows(delta[b, start:end, first:stop], count, rates)
                _read_rows(u[b, start:end, first:stop], count, inputs)
                _read_rows(grad_out[b, start:end, first:stop], count, slopes)
                _decays(rates, rate, steps, decay, _resets(call, b, start, steps), element)
                _read_rows(states[b, chunk, :, first:stop], count, hidden[0])
                for t in range(steps):
                    for c in range(LANES):
                        drive[t, c] = rates[t, c] * inputs[t, c]
                    for s in range(call.width):
                        to = write[b, start + t, s]
                        for c in range(LANES):
                            hidden[t + 1, s, c] = decay[t, s, c] * hidden[t, s, c] + to * drive[t, c]
                for t in range(steps - 1, -1, -1):
                    for c in range(LANES):
                        of_drive[c] = 0
                        of_delta[c] = 0
                    for s in range(call.width):
                        to, of = write[b, start + t, s], read[b, start + t, s]
                        to_write, to_read = element, element
                        for c in range(LANES):
                            slope = carried[s, c] + of * slopes[t, c]
                            to_read += slopes[t, c] * hidden[t + 1, s, c]
                            to_write += drive[t, c] * slope
                            of_drive[c] += to * slope
                            slope *= decay[t, s, c]
                            carried[s, c] = slope
                            slope *= hidden[t, s, c]
                            of_delta[c] += slope * rate[s, c]
                            of_rate[s, c] += slope * rates[t, c]
                        grad_write[piece, b, start + t, s] += to_write
                        grad_read[piece, b, start + t, s] += to_read
                    for c in range(count):
                        grad_u[b, start + t, first + c] = rates[t, c] * of_drive[c]
                        grad_delta[b, start + t, first + c] = inputs[t, c] * of_drive[c] + of_delta[c] * _LN2
            grad_start[b, :, first:stop] = carried[:, :count]
            grad_rate[b, :, first:stop] = of_rate[:, :count]


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
    def backward_float32(call):
        if source:
            backward(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def backward_float64(call):
        if source:
            backward(carray(call, 1)[0], np.float64(0))

    return {
        ("forward", False): forward_float32,
        ("forward", True): forward_float64,
        ("backward", False): backward_float32,
        ("backward", True): backward_float64,
    }


def compiled(what: str, double: bool) -> int:
    """The address of the machine code, a function of the address of a CALL.

    what: "forward" or "backward"; double: float64, else float32.
    """
    source = digest(decode_ir, decode_vectors, sys.modules[__name__])
    return address_of(_entries(source)[what, double], CALL)
