"""Vector steps of attention along edges, as LLVM code: products with gathered rows, and their weighted sums.

Rows are float32, a whole number of vectors of LANES long; `places` are int64 row numbers, at least AHEAD more
than `count` of them, so that rows can be asked for before they are needed.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import (
    FLOAT,
    FLOATS,
    INT,
    LANES,
    LONG,
    constant,
    load,
    loop,
    multiply_add,
    plus,
    power_of_two,
    splat,
    store,
    typed,
    variables,
)
from attlas.attend.decode_vectors import sums_of_four

__all__ = ["AHEAD", "TOGETHER", "powers", "products", "weighted"]

TOGETHER = 4
"""Rows whose products are taken at once."""
AHEAD = 12
"""Rows between one in use and the one asked for."""


def _row(builder: Any, base: Any, places: Any, index: Any, stride: Any) -> Any:
    place = load(builder, plus(builder, places, index, 8), LONG, 8)
    return builder.add(base, builder.mul(place, stride))


def _ask(builder: Any, address: Any) -> None:
    place = typed(builder, address, ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [place.type, INT, INT, INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, INT(0), INT(3), INT(1)])


@intrinsic
@no_type_check
def products(typingctx, own, vectors, base, stride, places, count, found):
    """found[e] = own . row[places[e]] for e < count rounded up to TOGETHER."""

    def code(context, builder, signature, args):
        own, vectors, base, stride, places, count, found = args
        sums = variables(builder, TOGETHER)
        with loop(builder, count, TOGETHER) as (e, _):
            rows = [_row(builder, base, places, builder.add(e, LONG(k)), stride) for k in range(TOGETHER)]
            for k in range(TOGETHER):
                _ask(builder, _row(builder, base, places, builder.add(e, LONG(AHEAD - TOGETHER + k)), stride))
            for one in sums:
                builder.store(constant(FLOATS, 0.0), one)
            with loop(builder, vectors) as (c, _):
                mine = load(builder, plus(builder, own, c, 4 * LANES), FLOATS)
                for row, one in zip(rows, sums, strict=True):
                    part = load(builder, plus(builder, row, c, 4 * LANES), FLOATS)
                    builder.store(multiply_add(builder, mine, part, builder.load(one)), one)
            four = sums_of_four(builder, [builder.load(one) for one in sums])
            store(builder, four, plus(builder, found, e, 4))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), code


@intrinsic(prefer_literal=True)
@no_type_check
def weighted(typingctx, weights, count, base, stride, places, out, wide):
    """out = sum_e weights[e] row[places[e]], on `wide` vectors (a literal) of a row."""
    columns = wide.literal_value

    def code(context, builder, signature, args):
        weights, count, base, stride, places, out = args[:6]
        sums = variables(builder, columns)
        for one in sums:
            builder.store(constant(FLOATS, 0.0), one)
        with loop(builder, count) as (e, _):
            row = _row(builder, base, places, e, stride)
            _ask(builder, _row(builder, base, places, builder.add(e, LONG(AHEAD - 1)), stride))
            weight = splat(builder, load(builder, plus(builder, weights, e, 4), FLOAT))
            for c, one in enumerate(sums):
                part = load(builder, plus(builder, row, c * 4 * LANES), FLOATS)
                builder.store(multiply_add(builder, weight, part, builder.load(one)), one)
        for c, one in enumerate(sums):
            store(builder, builder.load(one), plus(builder, out, c * 4 * LANES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, wide), code


@intrinsic
@no_type_check
def powers(typingctx, numbers, count, less):
    """Each of `count` numbers x, rounded up to LANES, becomes 2^(x - less)."""

    def code(context, builder, signature, args):
        numbers, count, less = args
        shift = splat(builder, less)
        with loop(builder, count, LANES) as (e, _):
            place = plus(builder, numbers, e, 4)
            store(builder, power_of_two(builder, builder.fsub(load(builder, place, FLOATS), shift)), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), code
