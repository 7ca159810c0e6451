"""Vector steps of attention along edges, as LLVM code: products with gathered rows, and their weighted sums.

All heads of a node lie in one row, which is read once an edge. Numbers are float32 or float64, as `element`
is; heads are a whole number of vectors of LANES long; `places` are int64 row numbers, at least AHEAD more than
`count` of them, so that rows can be asked for before they are needed. Numbers of edges stand head by head.
"""

import math
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import (
    INT,
    LANES,
    LONG,
    load,
    loop,
    multiply_add,
    plus,
    power_of_two,
    splat,
    store,
    typed,
)
from attlas.attend.decode_vectors import sums_of_four

__all__ = [
    "AHEAD", "TOGETHER", "inner", "largest", "powers", "products", "times", "weigh", "weigh_each", "weighted",
]  # fmt: skip

TOGETHER = 4
"""Rows whose products are taken at once."""
AHEAD = 16
"""Rows between one in use and the one asked for."""
_LINE = 64
# 2^f on [-1/2, 1/2] in float64: the Taylor series, of which the term after the last is 4e-18 of the sum.
_TERMS = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))
_ROUND, _LEAST = 1.5 * 2.0**52, -1021.0


class _Kind:
    """The numbers of a kernel as LLVM knows them."""

    def __init__(self, element: Any) -> None:
        self.size = element.bitwidth // 8
        self.one = ir.FloatType() if self.size == 4 else ir.DoubleType()
        self.many = ir.VectorType(self.one, LANES)

    def constant(self, number: float) -> Any:
        return ir.Constant(self.many, [number] * LANES)

    def sums(self, builder: Any, count: int) -> list[Any]:
        return [cgutils.alloca_once_value(builder, self.constant(0.0)) for _ in range(count)]


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
def products(
    typingctx, own, own_at, base, base_at, heads, vectors, stride, length, places, count, found, row, element
):
    """found[h, e] = own[h] . row[places[e]][h] for e < count rounded up to TOGETHER.

    own_at, base_at: int64 bytes at which each head begins; length: bytes of a gathered row; row: bytes
    between the heads of `found`.
    """
    kind = _Kind(element)

    def code(context, builder, signature, args):
        own, own_at, base, base_at, heads, vectors, stride, length, places, count, found, row = args[:12]
        sums = kind.sums(builder, TOGETHER)
        lines = builder.udiv(builder.add(length, LONG(_LINE - 1)), LONG(_LINE))
        with loop(builder, count, TOGETHER) as (e, _):
            rows = [_row(builder, base, places, builder.add(e, LONG(k)), stride) for k in range(TOGETHER)]
            later = [
                _row(builder, base, places, builder.add(e, LONG(AHEAD - TOGETHER + k)), stride)
                for k in range(TOGETHER)
            ]
            with loop(builder, lines) as (line, _):
                for one in later:
                    _ask(builder, plus(builder, one, line, _LINE))
            with loop(builder, heads) as (h, _):
                mine = builder.add(own, load(builder, plus(builder, own_at, h, 8), LONG, 8))
                begin = load(builder, plus(builder, base_at, h, 8), LONG, 8)
                for one in sums:
                    builder.store(kind.constant(0.0), one)
                with loop(builder, vectors) as (c, _):
                    at = builder.mul(c, LONG(kind.size * LANES))
                    factor = load(builder, builder.add(mine, at), kind.many)
                    at = builder.add(begin, at)
                    for start, one in zip(rows, sums, strict=True):
                        part = load(builder, builder.add(start, at), kind.many)
                        builder.store(multiply_add(builder, factor, part, builder.load(one)), one)
                four = sums_of_four(builder, [builder.load(one) for one in sums])
                place = plus(builder, builder.add(found, builder.mul(h, row)), e, kind.size)
                store(builder, four, place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, element), code


@intrinsic(prefer_literal=True)
@no_type_check
def weighted(typingctx, weights, weight_at, count, base, base_at, stride, places, out, wide, element):
    """out[c] += sum_e weights[c][e] row[places[e]][c] for the vectors c < `wide` (a literal) of a row.

    weight_at, base_at: int64 bytes at which the weights and the numbers of each vector begin.
    """
    columns, kind = wide.literal_value, _Kind(element)

    def code(context, builder, signature, args):
        weights, weight_at, count, base, base_at, stride, places, out = args[:8]
        sums = kind.sums(builder, columns)
        size = kind.size * LANES
        each = [
            (
                builder.add(weights, load(builder, plus(builder, weight_at, 8 * c), LONG, 8)),
                load(builder, plus(builder, base_at, 8 * c), LONG, 8),
            )
            for c in range(columns)
        ]
        for c, one in enumerate(sums):
            builder.store(load(builder, plus(builder, out, c * size), kind.many), one)
        with loop(builder, count) as (e, _):
            start = _row(builder, base, places, e, stride)
            later = _row(builder, base, places, builder.add(e, LONG(AHEAD - 1)), stride)
            for c, (one, (weight, begin)) in enumerate(zip(sums, each, strict=True)):
                if c * size % _LINE == 0:
                    _ask(builder, builder.add(later, begin))
                factor = splat(builder, load(builder, plus(builder, weight, e, kind.size), kind.one))
                part = load(builder, builder.add(start, begin), kind.many)
                builder.store(multiply_add(builder, factor, part, builder.load(one)), one)
        for c, one in enumerate(sums):
            store(builder, builder.load(one), plus(builder, out, c * size))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, wide, element), code


@intrinsic
@no_type_check
def largest(typingctx, numbers, count, element):
    """The largest of `count` numbers, rounded up to LANES."""
    kind = _Kind(element)

    def code(context, builder, signature, args):
        numbers, count = args[:2]
        top = cgutils.alloca_once_value(builder, kind.constant(-math.inf))
        with loop(builder, count, LANES) as (e, _):
            some = load(builder, plus(builder, numbers, e, kind.size), kind.many)
            held = builder.load(top)
            # Unordered: also where it is no number.
            builder.store(builder.select(builder.fcmp_unordered(">", some, held), some, held), top)
        return _folded(builder, builder.load(top), lambda a, b: builder.select(
            builder.fcmp_unordered(">", a, b), a, b
        ))  # fmt: skip

    return element(types.int64, types.int64, element), code


@intrinsic
@no_type_check
def powers(typingctx, numbers, count, less):
    """Each of `count` numbers x, rounded up to LANES, becomes 2^(x - less); their sum."""
    kind = _Kind(less)

    def code(context, builder, signature, args):
        numbers, count, less = args
        shift, total = splat(builder, less), kind.sums(builder, 1)[0]
        builder.store(kind.constant(0.0), total)
        with loop(builder, count, LANES) as (e, _):
            place = plus(builder, numbers, e, kind.size)
            power = _power(builder, builder.fsub(load(builder, place, kind.many), shift), kind)
            store(builder, power, place)
            builder.store(builder.fadd(builder.load(total), power), total)
        return _folded(builder, builder.load(total), builder.fadd)

    return less(types.int64, types.int64, less), code


@intrinsic
@no_type_check
def weigh(typingctx, logits, slopes, count, less, delta):
    """Each of `count` logits x, rounded up to LANES, becomes w = 2^(x - less), each slope s w (s - delta)."""
    kind = _Kind(less)

    def code(context, builder, signature, args):
        logits, slopes, count, less, delta = args
        shift, lower = splat(builder, less), splat(builder, delta)
        with loop(builder, count, LANES) as (e, _):
            _weigh(
                builder,
                kind,
                plus(builder, logits, e, kind.size),
                plus(builder, slopes, e, kind.size),
                shift,
                lower,
            )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, less, less), code


@intrinsic
@no_type_check
def weigh_each(typingctx, logits, slopes, count, places, ends, stride, apart, element):
    """`weigh` with `less` and `delta` of edge e at ends + stride places[e], and `apart` bytes behind it."""
    kind = _Kind(element)

    def code(context, builder, signature, args):
        logits, slopes, count, places, ends, stride, apart = args[:7]
        with loop(builder, count, LANES) as (e, _):
            shift = lower = ir.Constant(kind.many, ir.Undefined)
            for lane in range(LANES):
                at = _row(builder, ends, places, builder.add(e, LONG(lane)), stride)
                shift = builder.insert_element(shift, load(builder, at, kind.one), INT(lane))
                one = load(builder, builder.add(at, apart), kind.one)
                lower = builder.insert_element(lower, one, INT(lane))
            _weigh(
                builder,
                kind,
                plus(builder, logits, e, kind.size),
                plus(builder, slopes, e, kind.size),
                shift,
                lower,
            )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, element), code


def _weigh(builder: Any, kind: _Kind, logits: Any, slopes: Any, shift: Any, lower: Any) -> None:
    weight = _power(builder, builder.fsub(load(builder, logits, kind.many), shift), kind)
    slope = builder.fsub(load(builder, slopes, kind.many), lower)
    store(builder, weight, logits)
    store(builder, builder.fmul(weight, slope), slopes)


@intrinsic
@no_type_check
def times(typingctx, numbers, vectors, factor):
    """A row of whole vectors times a number."""
    kind = _Kind(factor)

    def code(context, builder, signature, args):
        numbers, vectors, factor = args
        many = splat(builder, factor)
        with loop(builder, vectors) as (c, _):
            place = plus(builder, numbers, c, kind.size * LANES)
            store(builder, builder.fmul(load(builder, place, kind.many), many), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, factor), code


@intrinsic
@no_type_check
def inner(typingctx, one, other, vectors, element):
    """The product of two rows of whole vectors."""
    kind = _Kind(element)

    def code(context, builder, signature, args):
        one, other, vectors = args[:3]
        total = kind.sums(builder, 1)[0]
        with loop(builder, vectors) as (c, _):
            at = builder.mul(c, LONG(kind.size * LANES))
            parts = (load(builder, builder.add(start, at), kind.many) for start in (one, other))
            builder.store(multiply_add(builder, *parts, builder.load(total)), total)
        return _folded(builder, builder.load(total), builder.fadd)

    return element(types.int64, types.int64, types.int64, element), code


def _folded(builder: Any, vector: Any, join: Any) -> Any:
    """The lanes of a vector joined, halves first."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT, half), list(places)))
            for places in (range(half), range(half, 2 * half))
        )
        vector = join(low, high)
    return builder.extract_element(vector, INT(0))


def _power(builder: Any, x: Any, kind: _Kind) -> Any:
    """2^x; in float64 of relative error 2e-16 and 0 below 2^-1021, else as `power_of_two`."""
    if kind.size == 4:
        return power_of_two(builder, x)
    bits = ir.VectorType(LONG, LANES)
    small = builder.fcmp_ordered("<", x, kind.constant(_LEAST))
    held = builder.select(small, kind.constant(_LEAST), x)
    rounded = builder.fadd(held, kind.constant(_ROUND))
    rest = builder.fsub(held, builder.fsub(rounded, kind.constant(_ROUND)))
    power = kind.constant(_TERMS[-1])
    for factor in reversed(_TERMS[:-1]):
        power = multiply_add(builder, power, rest, kind.constant(factor))
    exponent = builder.shl(builder.bitcast(rounded, bits), ir.Constant(bits, [52] * LANES))
    power = builder.bitcast(builder.add(builder.bitcast(power, bits), exponent), x.type)
    power = builder.select(small, kind.constant(0.0), power)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, power)
