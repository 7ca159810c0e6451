"""Token orders: exact inverses, and attention that does not care how its tokens lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attlas.attend import attend
from attlas.pattern import Order, Pattern, Tokens, causal, sorted_by, window
from pattern.recipes import patterns

# The run-time checker looks at one random member of a tuple, also while Hypothesis builds a recipe.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

orders = st.lists(st.integers(0, 4), max_size=30).map(lambda values: sorted_by(torch.tensor(values).long()))


def test_orders_by_hand() -> None:
    assert sorted_by(torch.tensor([2, 0, 2, 1, 0])).index.tolist() == [1, 4, 3, 0, 2]
    # Tokens that lie 3 apart come to stand side by side.
    assert sorted_by(torch.arange(7) % 3).index.tolist() == [0, 3, 6, 1, 4, 2, 5]
    order = Order(torch.tensor([2, 0, 1]))
    assert order.permute(torch.tensor([10, 20, 30]), 0).tolist() == [30, 10, 20]
    assert order.back.tolist() == [1, 2, 0]


@given(orders)
def test_the_inverse_is_exact(order: Order) -> None:
    tensor = torch.randn(2, order.length, 3)
    assert torch.equal(order.inverse(order.permute(tensor)), tensor)
    assert torch.equal(order.permute(order.inverse(tensor)), tensor)
    assert torch.equal(order.permute(tensor.mT, -1), order.permute(tensor).mT)


@given(patterns, orders, st.integers(0, 30), st.booleans())
def test_a_pattern_is_the_same_relation_in_any_order(
    pattern: Pattern, order: Order, start: int, padded: bool
) -> None:
    valid = torch.arange(order.length) % 3 > 0 if padded else None
    space = Tokens(order.length, start, valid=valid, total=80)
    moved = order.tokens(space)
    mask = pattern.mask(space, space)
    assert torch.equal(pattern.mask(moved, moved), order.permute(order.permute(mask, 0), 1))
    assert moved.total == 80


def test_attention_in_another_order() -> None:
    query, key, value = (torch.randn(2, 2, 40, 8, dtype=torch.float64) for _ in range(3))
    order, pattern = sorted_by(torch.arange(40) % 6), causal() & window(9)
    moved = order.tokens(Tokens(40))
    out = attend(*map(order.permute, (query, key, value)), pattern=pattern, q_at=moved, k_at=moved)
    torch.testing.assert_close(order.inverse(out), attend(query, key, value, pattern=pattern))


def test_errors_of_orders() -> None:
    with pytest.raises(ValueError, match=r"an order needs every row 0\.\.2 exactly once in its index"):
        Order(torch.tensor([0, 0, 2]))
    with pytest.raises(
        ValueError, match=r"an order needs an integer index \(tokens,\), got torch\.float32 \(2,\)"
    ):
        Order(torch.zeros(2))
    with pytest.raises(ValueError, match=r"sorted_by needs one value per token, \(tokens,\), got \(2, 3\)"):
        sorted_by(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"order of 4 tokens given 3 along axis -2 of a tensor of shape \(3, 2\)"
    ):
        sorted_by(torch.zeros(4)).permute(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"order of 4 tokens given a space of 5 tokens"):
        sorted_by(torch.zeros(4)).tokens(Tokens(5))
