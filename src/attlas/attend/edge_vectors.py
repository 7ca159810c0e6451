"""Vector steps of attention along edges, as LLVM code: products with gathered rows, and their weighted sums.

All heads of a node lie in one row, which is read once an edge. Numbers are float32 or float64, as `element`
is; heads are a whole number of vectors long; `places` are int64 row numbers, at least AHEAD more than `count`
of them, so that rows can be asked for before they are needed. Numbers of edges stand head by head.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attlas.attend.decode_ir import INT, LONG, load, loop, multiply_add, plus, splat, store, typed
from attlas.attend.decode_vectors import sums_of_four
from attlas.attend.edge_call import AHEAD, LANES

__all__ = ["Kind", "gathered", "products", "weighted"]

TOGETHER = 4
"""Rows whose products are taken at once."""
_LINE = 64


class Kind:
    """The numbers of a kernel as LLVM knows them."""

    def __init__(self, element: Any) -> None:
        self.size = element.bitwidth // 8
        self.one = ir.FloatType() if self.size == 4 else ir.DoubleType()
        self.many = ir.VectorType(self.one, LANES)

    def constant(self, number: float) -> Any:
        return ir.Constant(self.many, [number] * LANES)

    def sums(self, builder: Any, count: int) -> list[Any]:
        return [cgutils.alloca_once_value(builder, self.constant(0.0)) for _ in range(count)]


def gathered(builder: Any, base: Any, places: Any, index: Any, stride: Any) -> Any:
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
    kind = Kind(element)

    def code(context, builder, signature, args):
        own, own_at, base, base_at, heads, vectors, stride, length, places, count, found, row = args[:12]
        sums = kind.sums(builder, TOGETHER)
        lines = builder.udiv(builder.add(length, LONG(_LINE - 1)), LONG(_LINE))
        with loop(builder, count, TOGETHER) as (e, _):
            rows = [gathered(builder, base, places, builder.add(e, LONG(k)), stride) for k in range(TOGETHER)]
            later = [
                gathered(builder, base, places, builder.add(e, LONG(AHEAD - TOGETHER + k)), stride)
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
def weighted(
    typingctx, weights, weight_at, count, base, base_at, stride, places, out, wide, per, row, element
):
    """out[c] += sum_e weights[c][e] row[places[e]][c] for the vectors c < `wide` (a literal) of a row.

    weight_at, base_at: int64 bytes at which the weights and the numbers of each vector begin; with a literal
    `per` > 0 those of the first count: numbers follow each other, and weights of `per` vectors are the same,
    those of the next ones `row` numbers (a literal) behind.
    """
    columns, together, kind = wide.literal_value, per.literal_value, Kind(element)
    size, apart = kind.size * LANES, row.literal_value * kind.size

    def code(context, builder, signature, args):
        weights, weight_at, count, base, base_at, stride, places, out = args[:8]
        sums = kind.sums(builder, columns)

        def begin(table: Any, c: int, step: int) -> Any:
            known = load(builder, plus(builder, table, 0 if together else 8 * c), LONG, 8)
            return plus(builder, known, step) if together else known

        numbers = [begin(base_at, c, c * size) for c in range(columns)]
        heads = [c // together if together else c for c in range(columns)]
        owners = [builder.add(weights, begin(weight_at, c, h * apart)) for c, h in enumerate(heads)]
        for c, one in enumerate(sums):
            builder.store(load(builder, plus(builder, out, c * size), kind.many), one)
        with loop(builder, count) as (e, _):
            start = gathered(builder, base, places, e, stride)
            later = gathered(builder, base, places, builder.add(e, LONG(AHEAD - 1)), stride)
            factors: dict[int, Any] = {}
            for c, (one, h) in enumerate(zip(sums, heads, strict=True)):
                if c * size % _LINE == 0:
                    _ask(builder, builder.add(later, numbers[c]))
                if h not in factors:
                    weight = load(builder, plus(builder, owners[c], e, kind.size), kind.one)
                    factors[h] = splat(builder, weight)
                part = load(builder, builder.add(start, numbers[c]), kind.many)
                builder.store(multiply_add(builder, factors[h], part, builder.load(one)), one)
        for c, one in enumerate(sums):
            store(builder, builder.load(one), plus(builder, out, c * size))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, wide, per, row, element), code
