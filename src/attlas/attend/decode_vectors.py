"""Vector operations of the decode kernel as LLVM code, for `numba`: written out, since its loops over rows
of bfloat16 are not made into vectors by themselves. Rows of queries and of outputs in scratch memory stand in
the order of `decode_ir` (float32 rows: the plain order).
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attlas.attend.decode_ir import (
    BLOCK,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    LONG,
    WORD,
    constant,
    is_narrow,
    load,
    loop,
    multiply_add,
    plus,
    prefetch,
    row_vectors,
    splat,
    store,
    typed,
    variables,
)

__all__ = ["carry", "logits", "narrow", "pointer", "sums_of_four", "ticket", "widen"]

KEYS = 4  # keys of one step of `logits`: its sums are reduced together


@intrinsic
@no_type_check
def pointer(typingctx, address, element):
    """The address as a pointer to numbers of the type of `element`."""

    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, element), code


@intrinsic
@no_type_check
def ticket(typingctx, address):
    """Add one to the int64 at the address, in one step for all threads; what it was before."""

    def code(context, builder, signature, args):
        return builder.atomic_rmw("add", typed(builder, args[0], LONG), LONG(1), "seq_cst")

    return types.int64(types.int64), code


@intrinsic
@no_type_check
def widen(typingctx, address, element):
    """The number at the address as float32."""
    short = is_narrow(element)

    def code(context, builder, signature, args):
        if not short:
            return load(builder, args[0], FLOAT)
        bits = builder.zext(load(builder, args[0], WORD, 2), INT)
        return builder.bitcast(builder.shl(bits, INT(16)), FLOAT)

    return types.float32(types.int64, element), code


@intrinsic
@no_type_check
def narrow(typingctx, address, number, element):
    """Write a float32 to the address; to bfloat16 it is rounded to nearest, ties to even."""
    short = is_narrow(element)

    def code(context, builder, signature, args):
        if short:
            bits = builder.bitcast(args[1], INT)
            odd = builder.and_(builder.lshr(bits, INT(16)), INT(1))
            rounded = builder.lshr(builder.add(bits, builder.add(odd, INT(0x7FFF))), INT(16))
            nan = builder.fcmp_unordered("uno", args[1], args[1])
            word = builder.trunc(builder.select(nan, INT(0x7FC0), rounded), WORD)
            store(builder, word, args[0], 2)
        else:
            store(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, element), code


@intrinsic(prefer_literal=True)
@no_type_check
def logits(typingctx, query, vectors, key, stride, offsets, count, found, tile, element):
    """found[r, j] = query[r] . key[offsets[j]] for `tile` rows (a literal) and keys j < count.

    query: rows of `vectors` vectors of float32, in pair order; count: a multiple of KEYS; found: rows of
    BLOCK.
    """
    rows, short = tile.literal_value, is_narrow(element)

    def code(context, builder, signature, args):
        query, vectors, key, stride, offsets, count, found = args[:7]
        width = builder.mul(vectors, LONG(4 * LANES))
        sums = variables(builder, rows * KEYS)
        per_load = 2 if short else 1
        with loop(builder, count, KEYS) as (j, _):
            starts = []
            for k in range(KEYS):
                index = load(builder, plus(builder, offsets, builder.add(j, LONG(k)), 8), LONG, 8)
                starts.append(builder.add(key, builder.mul(index, stride)))
            for one in sums:
                builder.store(constant(FLOATS, 0.0), one)
            with loop(builder, builder.udiv(vectors, LONG(per_load))) as (c, _):
                lines = plus(builder, starts[0], c, KEYS * 4 * LANES)  # of all KEYS rows, over the loop
                for line in range(0, KEYS * 4 * LANES, 64):
                    prefetch(builder, plus(builder, lines, line))
                parts = [row_vectors(builder, plus(builder, start, c, 4 * LANES), short) for start in starts]
                for r in range(rows):
                    row = plus(
                        builder, builder.add(query, builder.mul(width, LONG(r))), c, 4 * LANES * per_load
                    )
                    for p in range(per_load):
                        own = load(builder, plus(builder, row, p * 4 * LANES), FLOATS)
                        for k in range(KEYS):
                            one = sums[r * KEYS + k]
                            builder.store(multiply_add(builder, own, parts[k][p], builder.load(one)), one)
            for r in range(rows):
                four = sums_of_four(builder, [builder.load(sums[r * KEYS + k]) for k in range(KEYS)])
                store(builder, four, plus(builder, plus(builder, found, r * BLOCK, 4), j, 4))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, tile, element), code


def sums_of_four(builder: Any, four: list[Any]) -> Any:
    """The sums over the lanes of four vectors, as one vector of four numbers."""

    def mixed(a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(places)), places))

    def pairs(a: Any, b: Any, low: list[int], high: list[int]) -> Any:
        return builder.fadd(mixed(a, b, low), mixed(a, b, high))

    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    first, second = pairs(four[0], four[1], low, high), pairs(four[2], four[3], low, high)
    both = pairs(first, second, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
    return pairs(both, both, [0, 1, 2, 3], [4, 5, 6, 7])


@intrinsic(prefer_literal=True)
@no_type_check
def carry(typingctx, weights, count, value, stride, offsets, factors, out, vectors, tile, loads, element):
    """out[r] = factors[r] * out[r] + sum_j weights[r, j] value[offsets[j]] for `tile` rows, j < count.

    It works on as many columns as `loads` vectors of 32 bytes hold (literals); `vectors` is the length of a
    row of `out` in vectors.
    """
    rows, wide, short = tile.literal_value, loads.literal_value, is_narrow(element)
    per_load = 2 if short else 1
    columns = wide * per_load

    def code(context, builder, signature, args):
        weights, count, value, stride, offsets, factors, out, vectors = args[:8]
        width = builder.mul(vectors, LONG(4 * LANES))
        sums = variables(builder, rows * columns)
        places = [
            plus(builder, builder.add(out, builder.mul(width, LONG(r))), c * 4 * LANES)
            for r in range(rows)
            for c in range(columns)
        ]
        for index, place in enumerate(places):
            factor = splat(builder, load(builder, plus(builder, factors, index // columns, 4), FLOAT))
            builder.store(builder.fmul(factor, load(builder, place, FLOATS)), sums[index])
        with loop(builder, count) as (j, _):
            index = load(builder, plus(builder, offsets, j, 8), LONG, 8)
            start = builder.add(value, builder.mul(index, stride))
            parts = []
            prefetch(builder, start)
            for part in range(wide):
                parts += row_vectors(builder, plus(builder, start, part * 4 * LANES), short)
            for r in range(rows):
                own = load(builder, plus(builder, plus(builder, weights, r * BLOCK, 4), j, 4), FLOAT)
                weight = splat(builder, own)
                for c in range(columns):
                    one = sums[r * columns + c]
                    builder.store(multiply_add(builder, weight, parts[c], builder.load(one)), one)
        for place, one in zip(places, sums, strict=True):
            store(builder, builder.load(one), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, tile, loads, element), code
