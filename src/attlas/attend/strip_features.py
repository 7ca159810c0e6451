"""Weights other than softmax's in the strip kernel, as LLVM code for `numba`.

By the rules of `strip_rules`, none of which needs a running maximum. Logits x stand as [key][query], in units
of log 2.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import FLOAT, INT, load, loop, multiply_add, plus, power_of_two, store
from attlas.attend.strip_rules import CONSTANTS, SHIFT_POWER, SIGMOID
from attlas.attend.strip_vectors import LANES, ROWS, seen, splat

__all__ = ["features", "slopes"]

LN2 = 0.6931471805599453
LOG2 = 1.4426950408889634
_FLOATS, _INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
# log(1 + t) / t on [0, 1], degree 8, relative error 4e-8 before float32 rounding (Chebyshev fit).
_LOGARITHM = (
    0.9999999705, -0.4999950152, 0.3331927134, -0.2484436989, 0.1911143108, -0.1367476971, 0.07836166802,
    -0.02958850739, 0.005253457797,
)  # fmt: skip


def _of(number: float, kind: Any = _FLOATS) -> Any:
    return ir.Constant(kind, [number] * LANES)


def _logarithm(builder: Any, t: Any) -> Any:
    """log(1 + t), t in [0, 1], to a small relative error also where t is small."""
    found = _of(_LOGARITHM[-1])
    for factor in reversed(_LOGARITHM[:-1]):
        found = multiply_add(builder, found, t, _of(factor))
    return builder.fmul(found, t)


class _Logits:
    """A vector of logits in units of log 2, and what follows from 2^-|x|, made once. A NaN stays."""

    def __init__(self, builder: Any, x: Any) -> None:
        self.builder, self.x = builder, x
        self.negative = builder.fcmp_ordered("<", x, _of(0.0))
        self.small = power_of_two(builder, builder.select(self.negative, x, builder.fneg(x)))

    def sigmoid(self) -> Any:
        builder = self.builder
        above = builder.select(self.negative, self.small, _of(1.0))
        return builder.fdiv(above, builder.fadd(_of(1.0), self.small))

    def softplus(self) -> Any:
        builder = self.builder
        linear = builder.select(self.negative, _of(0.0), builder.fmul(self.x, _of(LN2)))
        return builder.fadd(linear, _logarithm(builder, self.small))


def _power(builder: Any, y: Any, exponent: Any) -> Any:
    """y^exponent for y in [0, 1] and exponent >= 0, with 0^0 = 0; below 2^-125: 0. A NaN stays."""
    bits = builder.bitcast(y, _INTS)
    whole = builder.sub(builder.lshr(bits, _of(23, _INTS)), _of(127, _INTS))
    rest = builder.or_(builder.and_(bits, _of(0x7FFFFF, _INTS)), _of(0x3F800000, _INTS))
    rest = builder.fsub(builder.bitcast(rest, _FLOATS), _of(1.0))
    logarithm = multiply_add(builder, _logarithm(builder, rest), _of(LOG2), builder.sitofp(whole, _FLOATS))
    found = power_of_two(builder, builder.fmul(exponent, logarithm))
    found = builder.select(builder.fcmp_ordered(">", y, _of(0.0)), found, _of(0.0))
    return builder.select(builder.fcmp_unordered("uno", y, y), y, found)


def _excess(builder: Any, u: Any, a: Any, b: Any) -> Any:
    """max(0, a u - b)"""
    y = builder.fsub(builder.fmul(a, u), b)
    return builder.select(builder.fcmp_ordered("<", y, _of(0.0)), _of(0.0), y)


@intrinsic(prefer_literal=True)
@no_type_check
def features(typingctx, logits, count, masks, shift, firsts, seconds, tops, totals, power, rule):
    """Weights of LANES queries and `count` keys in place of their logits; sums and maxima are brought up to
    date.

    firsts, seconds: a and b; power: float32; rule: a literal. A key without the query's bit (from `shift` on)
    in `masks` gets weight 0, whatever stands there.
    """
    kind = rule.literal_value

    def code(context, builder, signature, args):
        logits, count, masks, shift, firsts, seconds, tops, totals, power = args[:9]
        a, b = load(builder, firsts, _FLOATS), load(builder, seconds, _FLOATS)
        exponent = splat(builder, power)
        top, total = (cgutils.alloca_once_value(builder, load(builder, at, _FLOATS)) for at in (tops, totals))
        with loop(builder, count) as (j, _):
            place = plus(builder, logits, j, 4 * ROWS)
            x = load(builder, place, _FLOATS)
            if kind == SIGMOID:
                weight = _Logits(builder, builder.fadd(x, b)).sigmoid()
            else:
                weight = _Logits(builder, x).softplus()
            if kind == SHIFT_POWER:
                weight = _power(builder, _excess(builder, weight, a, b), exponent)
            weight = builder.select(seen(builder, masks, j, shift), weight, _of(0.0))
            store(builder, weight, place)
            builder.store(builder.fadd(builder.load(total), weight), total)
            best = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", weight, best), weight, best), top)
        store(builder, builder.load(top), tops)
        store(builder, builder.load(total), totals)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, types.float32, rule), code


@intrinsic(prefer_literal=True)
@no_type_check
def slopes(typingctx, logits, grads, count, masks, shift, constants, power, rule):
    """Weights of LANES queries in place of their logits; in place of s = grad . v, gradients of the logits.

        SIGMOID      w = sigmoid(x + b),           s w (1 - w)
        SOFTPLUS     w = a u,                      a (s - delta) sigmoid(x)
        SHIFT_POWER  w = c y^p, y = max(0, a u - b),   (a p c y^(p-1) (s - delta) - mean) sigmoid(x)

    constants: (CONSTANTS, ROWS) float32 of the queries; power: p - 1. A hidden pair gets 0 and 0.
    """
    kind = rule.literal_value

    def code(context, builder, signature, args):
        logits, grads, count, masks, shift, constants, power = args[:7]
        a, b, c, delta, mean = (
            load(builder, plus(builder, constants, k * 4 * ROWS), _FLOATS) for k in range(CONSTANTS)
        )
        exponent = splat(builder, power)
        times = builder.fmul(c, builder.fadd(exponent, _of(1.0)))
        with loop(builder, count) as (j, _):
            here, there = plus(builder, logits, j, 4 * ROWS), plus(builder, grads, j, 4 * ROWS)
            x, grad = load(builder, here, _FLOATS), load(builder, there, _FLOATS)
            if kind == SIGMOID:
                weight = _Logits(builder, builder.fadd(x, b)).sigmoid()
                slope = builder.fmul(grad, builder.fmul(weight, builder.fsub(_of(1.0), weight)))
            else:
                found = _Logits(builder, x)
                weight = found.softplus()
                slope = builder.fmul(a, builder.fsub(grad, delta))
                if kind == SHIFT_POWER:
                    y = _excess(builder, weight, a, b)
                    lower = _power(builder, y, exponent)
                    weight = builder.fmul(c, builder.fmul(lower, y))
                    slope = builder.fsub(builder.fmul(slope, builder.fmul(times, lower)), mean)
                else:
                    weight = builder.fmul(a, weight)
                slope = builder.fmul(slope, found.sigmoid())
            visible = seen(builder, masks, j, shift)
            store(builder, builder.select(visible, weight, _of(0.0)), here)
            store(builder, builder.select(visible, slope, _of(0.0)), there)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.float32, rule), code
