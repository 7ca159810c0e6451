"""Vector steps of attention along edges, as LLVM code: weights of a head's edges, and rows times numbers.

Numbers are float32 or float64, as `element` is; what is behind the last edge, up to a whole vector, is
written too.
"""

import math
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import INT, LONG, load, loop, multiply_add, plus, power_of_two, splat, store
from attlas.attend.edge_call import LANES
from attlas.attend.edge_vectors import Kind, gathered

__all__ = ["inner", "largest", "powers", "times", "triple", "weigh", "weigh_each"]

# 2^f on [-1/2, 1/2] in float64: the Taylor series, of which the term after the last is 4e-18 of the sum.
_TERMS = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))
_ROUND, _LEAST = 1.5 * 2.0**52, -1021.0


@intrinsic
@no_type_check
def largest(typingctx, numbers, count, element):
    """The largest of `count` numbers, rounded up to LANES."""
    kind = Kind(element)

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
    kind = Kind(less)

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
def weigh(typingctx, logits, slopes, count, less, share, delta):
    """Each of `count` logits x, up to LANES, becomes w = share 2^(x - less), each slope s w (s - delta)."""
    kind = Kind(less)

    def code(context, builder, signature, args):
        logits, slopes, count, *ends = args
        wide = [splat(builder, end) for end in ends]
        with loop(builder, count, LANES) as (e, _):
            _weigh(
                builder,
                kind,
                plus(builder, logits, e, kind.size),
                plus(builder, slopes, e, kind.size),
                *wide,
            )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, less, less, less), code


@intrinsic
@no_type_check
def weigh_each(typingctx, logits, slopes, count, places, ends, stride, apart, element):
    """`weigh` with `less` of edge e at ends + stride places[e], and the others `apart` bytes behind each."""
    kind = Kind(element)

    def code(context, builder, signature, args):
        logits, slopes, count, places, ends, stride, apart = args[:7]
        with loop(builder, count, LANES) as (e, _):
            wide = [ir.Constant(kind.many, ir.Undefined)] * 3
            for lane in range(LANES):
                at = gathered(builder, ends, places, builder.add(e, LONG(lane)), stride)
                for c, held in enumerate(wide):
                    wide[c] = builder.insert_element(held, load(builder, at, kind.one), INT(lane))
                    at = builder.add(at, apart)
            _weigh(
                builder,
                kind,
                plus(builder, logits, e, kind.size),
                plus(builder, slopes, e, kind.size),
                *wide,
            )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, element), code


def _weigh(builder: Any, kind: Kind, logits: Any, slopes: Any, less: Any, share: Any, delta: Any) -> None:
    power = _power(builder, builder.fsub(load(builder, logits, kind.many), less), kind)
    weight = builder.fmul(power, share)
    slope = builder.fsub(load(builder, slopes, kind.many), delta)
    store(builder, weight, logits)
    store(builder, builder.fmul(weight, slope), slopes)


@intrinsic
@no_type_check
def times(typingctx, numbers, vectors, factor):
    """A row of whole vectors times a number."""
    kind = Kind(factor)

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
    kind = Kind(element)

    def code(context, builder, signature, args):
        one, other, vectors = args[:3]
        total = kind.sums(builder, 1)[0]
        with loop(builder, vectors) as (c, _):
            at = builder.mul(c, LONG(kind.size * LANES))
            parts = (load(builder, builder.add(start, at), kind.many) for start in (one, other))
            builder.store(multiply_add(builder, *parts, builder.load(total)), total)
        return _folded(builder, builder.load(total), builder.fadd)

    return element(types.int64, types.int64, types.int64, element), code


@intrinsic
@no_type_check
def triple(typingctx, one, other, third, width, element):
    """The sum of (one other) third over rows of `width` numbers; the same bits with `other` first."""
    kind = Kind(element)

    def code(context, builder, signature, args):
        *rows, width = args[:4]
        whole = builder.and_(width, LONG(-LANES))
        total, rest = kind.sums(builder, 1)[0], cgutils.alloca_once_value(builder, kind.one(0.0))

        def add(place: Any, d: Any, form: Any) -> None:
            a, b, c = (load(builder, plus(builder, row, d, kind.size), form) for row in rows)
            product = builder.fmul(builder.fmul(a, b), c)
            builder.store(builder.fadd(builder.load(place), product), place)

        with loop(builder, whole, LANES) as (d, _):
            add(total, d, kind.many)
        with cgutils.for_range_slice(builder, whole, width, LONG(1), LONG, inc=True) as (d, _):
            add(rest, d, kind.one)
        return builder.fadd(_folded(builder, builder.load(total), builder.fadd), builder.load(rest))

    return element(*[types.int64] * 4, element), code


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


def _power(builder: Any, x: Any, kind: Kind) -> Any:
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
