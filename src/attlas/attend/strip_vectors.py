"""Vector operations of the strip kernel as LLVM code, for `numba`: small matrix products and a softmax whose
rows are queries.

A strip is ROWS queries. Logits stand as [key][query], so that a vector holds one key's logits of LANES
queries: maxima, sums and masks (one bit per query and key) need no work across lanes, and keys and values are
read where they lie, in any order. Addresses and strides are int64, in bytes.
"""

from typing import Any, no_type_check

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import (
    FLOAT,
    INT,
    LONG,
    WORD,
    is_narrow,
    load,
    loop,
    multiply_add,
    plus,
    power_of_two,
    store,
)

__all__ = [
    "KEYS",
    "LANES",
    "ROWS",
    "VECTORS",
    "carry",
    "differences",
    "exponents",
    "finish",
    "products",
    "seen",
    "splat",
    "widen_row",
]

ROWS = 64  # queries of a strip: the bits of a mask
KEYS = 4  # keys, or rows of a result, whose sums stay in registers together
# Vectors of float32 that processors have, and how many of them one pass over KEYS rows keeps.
LANES, VECTORS = (16, 4) if binding.get_host_cpu_features().get("avx512f") else (8, 2)

_FLOATS, _INTS, _WORDS = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT, WORD))
_BITS = ir.VectorType(ir.IntType(1), LANES)
_BYTES = 4 * LANES


def _constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * LANES)


def splat(builder: Any, scalar: Any) -> Any:
    """The scalar in all lanes."""
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, INT(0))
    return builder.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _sums(builder: Any, count: int) -> list[Any]:
    return [cgutils.alloca_once(builder, _FLOATS) for _ in range(count)]


@intrinsic(prefer_literal=True)
@no_type_check
def products(typingctx, keys, count, columns, width, found, vectors):
    """found[j, r] = sum_c keys[j][c] * columns[c, r] for j < count, LANES * vectors rows r.

    count: a multiple of KEYS; keys: addresses of rows of `width` float32; columns (width, ROWS) and found
    (., ROWS) float32; vectors: a literal.
    """
    wide = vectors.literal_value

    def code(context, builder, signature, args):
        keys, count, columns, width, found = args[:5]
        sums = _sums(builder, KEYS * wide)
        with loop(builder, count, KEYS) as (j, _):
            starts = [
                load(builder, plus(builder, keys, builder.add(j, LONG(k)), 8), LONG, 8) for k in range(KEYS)
            ]
            for one in sums:
                builder.store(_constant(_FLOATS, 0.0), one)
            with loop(builder, width) as (c, _):
                row = plus(builder, columns, c, 4 * ROWS)
                parts = [load(builder, plus(builder, row, v * _BYTES), _FLOATS) for v in range(wide)]
                for k in range(KEYS):
                    own = splat(builder, load(builder, plus(builder, starts[k], c, 4), FLOAT))
                    for v in range(wide):
                        one = sums[k * wide + v]
                        builder.store(multiply_add(builder, own, parts[v], builder.load(one)), one)
            to = plus(builder, found, j, 4 * ROWS)
            for k in range(KEYS):
                for v in range(wide):
                    place = plus(builder, to, k * 4 * ROWS + v * _BYTES)
                    store(builder, builder.load(sums[k * wide + v]), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, vectors), code


@intrinsic(prefer_literal=True)
@no_type_check
def carry(typingctx, out, weights, across, along, rows, count, offset, factors, vectors):
    """out[a] = factors[a] * out[a] + sum_(b < count) weights[a * across + b * along] rows[b], a < KEYS.

    out and rows: addresses of rows of float32, of which LANES * vectors numbers from `offset` (bytes) on are
    worked on; factors: float32; vectors: a literal.
    """
    wide = vectors.literal_value

    def code(context, builder, signature, args):
        out, weights, across, along, rows, count, offset, factors = args[:8]
        sums = _sums(builder, KEYS * wide)
        places = []
        for a in range(KEYS):
            start = builder.add(load(builder, plus(builder, out, a * 8), LONG, 8), offset)
            factor = splat(builder, load(builder, plus(builder, factors, a * 4), FLOAT))
            for v in range(wide):
                place = plus(builder, start, v * _BYTES)
                places.append(place)
                builder.store(builder.fmul(factor, load(builder, place, _FLOATS)), sums[a * wide + v])
        starts = [builder.add(weights, builder.mul(across, LONG(a))) for a in range(KEYS)]
        with loop(builder, count) as (b, _):
            row = builder.add(load(builder, plus(builder, rows, b, 8), LONG, 8), offset)
            parts = [load(builder, plus(builder, row, v * _BYTES), _FLOATS) for v in range(wide)]
            moved = builder.mul(along, b)
            for a in range(KEYS):
                own = splat(builder, load(builder, builder.add(starts[a], moved), FLOAT))
                for v in range(wide):
                    one = sums[a * wide + v]
                    builder.store(multiply_add(builder, own, parts[v], builder.load(one)), one)
        for place, one in zip(places, sums, strict=True):
            store(builder, builder.load(one), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, vectors), code


def seen(builder: Any, masks: Any, j: Any, shift: Any) -> Any:
    """Which of LANES queries, from bit `shift` on, see key j."""
    bits = builder.lshr(load(builder, plus(builder, masks, j, 8), LONG, 8), shift)
    return builder.bitcast(builder.trunc(bits, ir.IntType(LANES)), _BITS)


@intrinsic(prefer_literal=True)
@no_type_check
def exponents(typingctx, logits, count, masks, shift, tops, totals, factors, masked):
    """Online softmax of LANES queries: each logit x of `count` keys becomes 2^(x - top), top the new maximum.

    tops, totals: maximum and sum of weights so far, brought up to date; factors: 2^(old top - new top).
    logits: rows of ROWS; a key without the query's bit (from `shift` on) in `masks` gets weight 0, whatever
    stands there. masked: literal, 0 = all bits are set. A NaN logit gives a NaN weight.
    """
    hiding = bool(masked.literal_value)

    def code(context, builder, signature, args):
        logits, count, masks, shift, tops, totals, factors = args[:7]

        def logit(j):
            found = load(builder, plus(builder, logits, j, 4 * ROWS), _FLOATS)
            if hiding:
                found = builder.select(
                    seen(builder, masks, j, shift), found, _constant(_FLOATS, -float("inf"))
                )
            return found

        before = load(builder, tops, _FLOATS)
        top, total = _sums(builder, 2)
        builder.store(before, top)
        with loop(builder, count) as (j, _):
            found, best = logit(j), builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", found, best), found, best), top)
        best = builder.load(top)
        factor = power_of_two(builder, builder.fsub(before, best))
        builder.store(builder.fmul(load(builder, totals, _FLOATS), factor), total)
        with loop(builder, count) as (j, _):
            weight = power_of_two(builder, builder.fsub(logit(j), best))
            store(builder, weight, plus(builder, logits, j, 4 * ROWS))
            builder.store(builder.fadd(builder.load(total), weight), total)
        store(builder, best, tops)
        store(builder, builder.load(total), totals)
        store(builder, factor, factors)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, masked), code


@intrinsic(prefer_literal=True)
@no_type_check
def differences(typingctx, logits, slopes, count, masks, shift, lse, deltas, masked):
    """Weights and gradients of LANES queries: logit x -> w = 2^(x - lse), slope s -> w (s - delta).

    Both are rows of ROWS for `count` keys; a hidden pair gets 0 and 0; masked as in `exponents`.
    """
    hiding = bool(masked.literal_value)

    def code(context, builder, signature, args):
        logits, slopes, count, masks, shift, lse, deltas = args[:7]
        top, delta = load(builder, lse, _FLOATS), load(builder, deltas, _FLOATS)
        zero = _constant(_FLOATS, 0.0)
        with loop(builder, count) as (j, _):
            here, there = plus(builder, logits, j, 4 * ROWS), plus(builder, slopes, j, 4 * ROWS)
            weight = power_of_two(builder, builder.fsub(load(builder, here, _FLOATS), top))
            slope = builder.fmul(weight, builder.fsub(load(builder, there, _FLOATS), delta))
            if hiding:
                visible = seen(builder, masks, j, shift)
                weight = builder.select(visible, weight, zero)
                slope = builder.select(visible, slope, zero)
            store(builder, weight, here)
            store(builder, slope, there)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, masked), code


@intrinsic
@no_type_check
def widen_row(typingctx, source, target, count, element):
    """Write `count` (a multiple of LANES) numbers as float32."""
    short = is_narrow(element)

    def code(context, builder, signature, args):
        source, target, count = args[:3]
        with loop(builder, count, LANES) as (c, _):
            if short:
                words = load(builder, plus(builder, source, c, 2), _WORDS, 2)
                found = builder.bitcast(
                    builder.shl(builder.zext(words, _INTS), _constant(_INTS, 16)), _FLOATS
                )
            else:
                found = load(builder, plus(builder, source, c, 4), _FLOATS)
            store(builder, found, plus(builder, target, c, 4))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, element), code


@intrinsic
@no_type_check
def finish(typingctx, source, factor, target, count, element):
    """Write factor * source, `count` (a multiple of LANES) numbers; bfloat16 is rounded to nearest even."""
    short = is_narrow(element)

    def code(context, builder, signature, args):
        source, factor, target, count = args[:4]
        scale = splat(builder, factor)
        with loop(builder, count, LANES) as (c, _):
            found = builder.fmul(scale, load(builder, plus(builder, source, c, 4), _FLOATS))
            if short:
                store(builder, _rounded(builder, found), plus(builder, target, c, 2), 2)
            else:
                store(builder, found, plus(builder, target, c, 4))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64, element), code


def _rounded(builder: Any, x: Any) -> Any:
    """The vector as bfloat16, to nearest, ties to even."""
    bits = builder.bitcast(x, _INTS)
    odd = builder.and_(builder.lshr(bits, _constant(_INTS, 16)), _constant(_INTS, 1))
    bits = builder.add(bits, builder.add(odd, _constant(_INTS, 0x7FFF)))
    nan = builder.fcmp_unordered("uno", x, x)
    bits = builder.select(nan, _constant(_INTS, 0x7FC00000), bits)
    return builder.trunc(builder.lshr(bits, _constant(_INTS, 16)), _WORDS)
