"""The softmax of a block of logits as LLVM code, for `numba`: largest logit, powers of two and their sum."""

from typing import Any, no_type_check

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import (
    FLOATS,
    INT,
    INTS,
    LANES,
    constant,
    load,
    loop,
    multiply_add,
    plus,
    splat,
    store,
    variables,
)

__all__ = ["exponentials", "largest"]

# 2^f on [-1/2, 1/2], degree 6, relative error 2e-9 before float32 rounding (Chebyshev fit).
_POWERS = (1.0, 0.6931472056, 0.2402264661, 0.05550328998, 0.009618519534, 0.001339986037, 0.0001533757678)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer in its low bits
_LEAST = -125.0  # exponents below give 0


@intrinsic
@no_type_check
def largest(typingctx, numbers, count):
    """The largest of `count` float32 (a multiple of LANES); a NaN is passed over."""

    def code(context, builder, signature, args):
        top = cgutils.alloca_once(builder, FLOATS)
        builder.store(constant(FLOATS, -float("inf")), top)
        with loop(builder, args[1], LANES) as (j, _):
            found, best = load(builder, plus(builder, args[0], j, 4), FLOATS), builder.load(top)
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
        total = variables(builder, 1)[0]
        builder.store(constant(FLOATS, 0.0), total)
        shift = splat(builder, args[2])
        with loop(builder, args[1], LANES) as (j, _):
            place = plus(builder, args[0], j, 4)
            power = _power_of_two(builder, builder.fsub(load(builder, place, FLOATS), shift))
            store(builder, power, place)
            builder.store(builder.fadd(builder.load(total), power), total)
        return _reduced(builder, builder.load(total), builder.fadd)

    return types.float32(types.int64, types.int64, types.float32), code


def _reduced(builder: Any, vector: Any, join: Any) -> Any:
    found = builder.extract_element(vector, INT(0))
    for lane in range(1, LANES):
        found = join(found, builder.extract_element(vector, INT(lane)))
    return found


def _power_of_two(builder: Any, x: Any) -> Any:
    """2^x of a vector: the integer part goes into the exponent bits, the rest through a polynomial."""
    small = builder.fcmp_ordered("<", x, constant(FLOATS, _LEAST))
    held = builder.select(small, constant(FLOATS, _LEAST), x)
    rounded = builder.fadd(held, constant(FLOATS, _ROUND))
    rest = builder.fsub(held, builder.fsub(rounded, constant(FLOATS, _ROUND)))
    power = constant(FLOATS, _POWERS[-1])
    for factor in reversed(_POWERS[:-1]):
        power = multiply_add(builder, power, rest, constant(FLOATS, factor))
    exponent = builder.shl(builder.bitcast(rounded, INTS), constant(INTS, 23))
    power = builder.bitcast(builder.add(builder.bitcast(power, INTS), exponent), FLOATS)
    power = builder.select(small, constant(FLOATS, 0.0), power)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, power)
