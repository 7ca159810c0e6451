"""Vector operations of the decode kernel as LLVM code, for `numba`: written out, since its loops over rows
of bfloat16 are not made into vectors by themselves.

Addresses are int64, strides bytes. A vector holds LANES float32. A row of bfloat16 is read as int32 pairs and
widened in two operations; its numbers then stand in *pair order*: of each 16, first the 8 even, then the 8
odd ones. Rows of queries and of outputs in scratch memory keep that order (float32 rows: the plain order).
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "BLOCK",
    "LANES",
    "carry",
    "exponentials",
    "largest",
    "logits",
    "narrow",
    "pointer",
    "ticket",
    "widen",
]

LANES = 8
BLOCK = 256  # keys between two looks at the running maximum; a row of logits in scratch memory
AHEAD = 16384  # bytes between a row in use and the one asked for: about half a block
KEYS = 4  # keys of one step of `logits`: its sums are reduced together

_FLOAT, _INT, _WORD, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_HIGH = -65536  # the upper half of an int32
_CONTRACT = ("contract",)
# 2^f on [-1/2, 1/2], degree 6, relative error 2e-9 before float32 rounding (Chebyshev fit).
_POWERS = (1.0, 0.6931472056, 0.2402264661, 0.05550328998, 0.009618519534, 0.001339986037, 0.0001533757678)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer in its low bits
_LEAST = -125.0  # exponents below give 0


def _splat(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, _INT(0)
    )
    zeros = ir.Constant(_INTS, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), zeros)


def _all(kind: Any, number: float | int) -> Any:
    return ir.Constant(kind, [number] * LANES)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    return builder.load(_at(builder, address, kind), align=align)


def _store(builder: Any, number: Any, address: Any, align: int = 4) -> None:
    builder.store(number, _at(builder, address, number.type), align=align)


def _plus(builder: Any, address: Any, count: Any, size: int = 1) -> Any:
    """address + count * size"""
    count = _LONG(count) if isinstance(count, int) else count
    return builder.add(address, builder.mul(count, _LONG(size)) if size != 1 else count)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def _is_narrow(element: Any) -> bool:
    """Whether rows are bfloat16: numba has no such type, int16 stands for it."""
    return isinstance(element, types.Integer)


def _vectors(builder: Any, address: Any, narrow: bool) -> list[Any]:
    """The float32 vectors of 32 bytes of a row."""
    if not narrow:
        return [_load(builder, address, _FLOATS)]
    pairs = _load(builder, address, _INTS, 2)
    even = builder.shl(pairs, _all(_INTS, 16))
    odd = builder.and_(pairs, _all(_INTS, _HIGH))
    return [builder.bitcast(even, _FLOATS), builder.bitcast(odd, _FLOATS)]


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for a cache line that is needed half a block later, into the second-level cache (hint 2).

    Among so many multiplications the processor looks too few lines ahead (one thread: 6 GB/s, so 17).
    """
    place = _at(builder, builder.add(address, _LONG(AHEAD)), ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, _INT(0), _INT(2), _INT(1)])


def _variables(builder: Any, count: int) -> list[Any]:
    zero = _all(_FLOATS, 0.0)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def _loop(builder: Any, stop: Any, step: int = 1) -> Any:
    return cgutils.for_range_slice(builder, _LONG(0), stop, _LONG(step), _LONG, inc=True)


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
        return builder.atomic_rmw("add", _at(builder, args[0], _LONG), _LONG(1), "seq_cst")

    return types.int64(types.int64), code


@intrinsic
@no_type_check
def widen(typingctx, address, element):
    """The number at the address as float32."""
    short = _is_narrow(element)

    def code(context, builder, signature, args):
        if not short:
            return _load(builder, args[0], _FLOAT)
        bits = builder.zext(_load(builder, args[0], _WORD, 2), _INT)
        return builder.bitcast(builder.shl(bits, _INT(16)), _FLOAT)

    return types.float32(types.int64, element), code


@intrinsic
@no_type_check
def narrow(typingctx, address, number, element):
    """Write a float32 to the address; to bfloat16 it is rounded to nearest, ties to even."""
    short = _is_narrow(element)

    def code(context, builder, signature, args):
        if short:
            bits = builder.bitcast(args[1], _INT)
            odd = builder.and_(builder.lshr(bits, _INT(16)), _INT(1))
            rounded = builder.lshr(builder.add(bits, builder.add(odd, _INT(0x7FFF))), _INT(16))
            nan = builder.fcmp_unordered("uno", args[1], args[1])
            word = builder.trunc(builder.select(nan, _INT(0x7FC0), rounded), _WORD)
            _store(builder, word, args[0], 2)
        else:
            _store(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, element), code


@intrinsic(prefer_literal=True)
@no_type_check
def logits(typingctx, query, vectors, key, stride, offsets, count, found, tile, element):
    """found[r, j] = query[r] . key[offsets[j]] for `tile` rows (a literal) and keys j < count.

    query: rows of `vectors` vectors of float32, in pair order; count: a multiple of KEYS; found: rows of
    BLOCK.
    """
    rows, short = tile.literal_value, _is_narrow(element)

    def code(context, builder, signature, args):
        query, vectors, key, stride, offsets, count, found = args[:7]
        width = builder.mul(vectors, _LONG(4 * LANES))
        sums = _variables(builder, rows * KEYS)
        per_load = 2 if short else 1
        with _loop(builder, count, KEYS) as (j, _):
            starts = []
            for k in range(KEYS):
                index = _load(builder, _plus(builder, offsets, builder.add(j, _LONG(k)), 8), _LONG, 8)
                starts.append(builder.add(key, builder.mul(index, stride)))
            for one in sums:
                builder.store(_all(_FLOATS, 0.0), one)
            with _loop(builder, builder.udiv(vectors, _LONG(per_load))) as (c, _):
                lines = _plus(builder, starts[0], c, KEYS * 4 * LANES)  # of all KEYS rows, over the loop
                for line in range(0, KEYS * 4 * LANES, 64):
                    _prefetch(builder, _plus(builder, lines, line))
                parts = [_vectors(builder, _plus(builder, start, c, 4 * LANES), short) for start in starts]
                for r in range(rows):
                    row = _plus(
                        builder, builder.add(query, builder.mul(width, _LONG(r))), c, 4 * LANES * per_load
                    )
                    for p in range(per_load):
                        own = _load(builder, _plus(builder, row, p * 4 * LANES), _FLOATS)
                        for k in range(KEYS):
                            one = sums[r * KEYS + k]
                            builder.store(_multiply_add(builder, own, parts[k][p], builder.load(one)), one)
            for r in range(rows):
                four = _sums_of_four(builder, [builder.load(sums[r * KEYS + k]) for k in range(KEYS)])
                _store(builder, four, _plus(builder, _plus(builder, found, r * BLOCK, 4), j, 4))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, tile, element), code


def _sums_of_four(builder: Any, four: list[Any]) -> Any:
    """The sums over the lanes of four vectors, as one vector of four numbers."""

    def mixed(a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(places)), places))

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
    rows, wide, short = tile.literal_value, loads.literal_value, _is_narrow(element)
    per_load = 2 if short else 1
    columns = wide * per_load

    def code(context, builder, signature, args):
        weights, count, value, stride, offsets, factors, out, vectors = args[:8]
        width = builder.mul(vectors, _LONG(4 * LANES))
        sums = _variables(builder, rows * columns)
        places = [
            _plus(builder, builder.add(out, builder.mul(width, _LONG(r))), c * 4 * LANES)
            for r in range(rows)
            for c in range(columns)
        ]
        for index, place in enumerate(places):
            factor = _splat(builder, _load(builder, _plus(builder, factors, index // columns, 4), _FLOAT))
            builder.store(builder.fmul(factor, _load(builder, place, _FLOATS)), sums[index])
        with _loop(builder, count) as (j, _):
            index = _load(builder, _plus(builder, offsets, j, 8), _LONG, 8)
            start = builder.add(value, builder.mul(index, stride))
            parts = []
            _prefetch(builder, start)
            for load in range(wide):
                parts += _vectors(builder, _plus(builder, start, load * 4 * LANES), short)
            for r in range(rows):
                own = _load(builder, _plus(builder, _plus(builder, weights, r * BLOCK, 4), j, 4), _FLOAT)
                weight = _splat(builder, own)
                for c in range(columns):
                    one = sums[r * columns + c]
                    builder.store(_multiply_add(builder, weight, parts[c], builder.load(one)), one)
        for place, one in zip(places, sums, strict=True):
            _store(builder, builder.load(one), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, tile, loads, element), code


@intrinsic
@no_type_check
def largest(typingctx, numbers, count):
    """The largest of `count` float32 (a multiple of LANES); a NaN is passed over."""

    def code(context, builder, signature, args):
        top = cgutils.alloca_once(builder, _FLOATS)
        builder.store(_all(_FLOATS, -float("inf")), top)
        with _loop(builder, args[1], LANES) as (j, _):
            found, best = _load(builder, _plus(builder, args[0], j, 4), _FLOATS), builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", found, best), found, best), top)
        return _reduced(
            builder, builder.load(top), lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)
        )

    return types.float32(types.int64, types.int64), code


@intrinsic
@no_type_check
def exponentials(typingctx, numbers, count, shift):
    """Each of `count` float32 x becomes 2^(x - shift) (relative error <= 2e-7; below 2^-125: 0); the sum."""

    def code(context, builder, signature, args):
        total = _variables(builder, 1)[0]
        builder.store(_all(_FLOATS, 0.0), total)
        shift = _splat(builder, args[2])
        with _loop(builder, args[1], LANES) as (j, _):
            place = _plus(builder, args[0], j, 4)
            power = _power_of_two(builder, builder.fsub(_load(builder, place, _FLOATS), shift))
            _store(builder, power, place)
            builder.store(builder.fadd(builder.load(total), power), total)
        return _reduced(builder, builder.load(total), builder.fadd)

    return types.float32(types.int64, types.int64, types.float32), code


def _reduced(builder: Any, vector: Any, join: Any) -> Any:
    found = builder.extract_element(vector, _INT(0))
    for lane in range(1, LANES):
        found = join(found, builder.extract_element(vector, _INT(lane)))
    return found


def _power_of_two(builder: Any, x: Any) -> Any:
    """2^x of a vector: the integer part goes into the exponent bits, the rest through a polynomial."""
    small = builder.fcmp_ordered("<", x, _all(_FLOATS, _LEAST))
    held = builder.select(small, _all(_FLOATS, _LEAST), x)
    rounded = builder.fadd(held, _all(_FLOATS, _ROUND))
    rest = builder.fsub(held, builder.fsub(rounded, _all(_FLOATS, _ROUND)))
    power = _all(_FLOATS, _POWERS[-1])
    for factor in reversed(_POWERS[:-1]):
        power = _multiply_add(builder, power, rest, _all(_FLOATS, factor))
    exponent = builder.shl(builder.bitcast(rounded, _INTS), _all(_INTS, 23))
    power = builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _FLOATS)
    power = builder.select(small, _all(_FLOATS, 0.0), power)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, power)
