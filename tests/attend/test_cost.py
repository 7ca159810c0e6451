"""The cost model against torch's own FLOP counter, and its arithmetic."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attlas.attend import Cost, Machine, Shapes, attend, cost
from attlas.attend.request import make_request
from attlas.attend.row_blocks import blocks_of
from attlas.pattern import Pattern, Tokens, causal, elastic, per_kv_head, sink, window

SHAPES = Shapes(2, 4, 200, 8, kv_heads=2, value_width=8)


def counted(backend: str, pattern: Pattern | None) -> int:
    query, key, value = (torch.randn(2, heads, 200, 8) for heads in (4, 2, 2))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attend(query, key, value, pattern=pattern, backend=backend)
    return counter.get_total_flops()


def test_dense_flops_are_those_that_torch_counts() -> None:
    wanted = cost(None, SHAPES).flops
    assert wanted == 2 * 2 * 4 * 200 * 200 * 16
    assert counted("rows", None) == counted("reference", None) == wanted


@pytest.mark.parametrize(
    "pattern",
    [causal(), causal() & (window(30) | sink(4)), per_kv_head([causal(), causal() & window(9)])],
    ids=str,
)
def test_rows_compute_their_blocks(pattern: Pattern) -> None:
    query, key, value = (torch.randn(2, heads, 200, 8) for heads in (4, 2, 2))
    request = make_request(query, key, value, pattern=pattern)
    area = sum(
        (block.r1 - block.r0) * block.count * len(piece.heads)
        for piece in request.pieces()
        for block in blocks_of(piece, request.q_at)
    )
    assert counted("rows", pattern) == 2 * 2 * area * 16
    found, bound = cost(pattern, SHAPES), cost(pattern, SHAPES, tiles=False)
    exact = sum(one.count(Tokens(200), Tokens(200)) for one in pattern.expand(4, 2))
    assert found.pairs == bound.pairs == bound.computed == exact
    assert bound.flops <= found.flops <= cost(None, SHAPES).flops
    assert bound.flops <= counted("rows", pattern)


def test_bytes_of_keys_and_values() -> None:
    one = Shapes(8, 4, 1, 16, keys=1000, kv_heads=2, dtype=torch.bfloat16)
    last = Tokens(1, start=999)
    whole = cost(causal(), one, q_at=last)
    assert whole.kv_bytes == 8 * 2 * 1000 * 32 * 2
    rule = per_kv_head([causal() & (window(100) | sink(10)), causal() & window(40)])
    assert cost(rule, one, q_at=last).kv_bytes == 8 * (110 + 40) * 32 * 2


def test_arithmetic_and_rates() -> None:
    machine = Machine(flops=1e9, half_flops=4e9, bandwidth=1e9)
    assert machine.seconds(1e9, 1e6, torch.float32) == 1.0
    assert machine.seconds(1e9, 1e6, torch.float64) == 2.0
    assert machine.seconds(1e9, 1e6, torch.bfloat16) == 0.25
    assert machine.seconds(1.0, 1e9, torch.float32) == 1.0
    total = Cost(1, 2, 3, 4.0, 5, 6) + Cost(10, 20, 30, 40.0, 50, 60)
    assert total == Cost(11, 22, 33, 44.0, 55, 66) and total.times(2).seconds == 88.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads=3 must be a multiple of kv_heads=2"):
        Shapes(1, 3, 1, 1, kv_heads=2)
    with pytest.raises(ValueError, match="queries must be at least 1, got 0"):
        Shapes(1, 1, 0, 1)
    with pytest.raises(ValueError, match=r"call pattern.bind\(N=...\)"):
        cost(window(elastic(0, 0.5)), SHAPES)
