"""Two hops equal two dense products; what differs between the hops is refused."""

import pytest
import torch

from attlas.attend import via


@pytest.mark.parametrize("group", [1, 3])
def test_two_hops_are_two_softmax_products(group: int) -> None:
    torch.manual_seed(0)
    query, middle = (torch.randn(2, 6, n, 8, dtype=torch.float64) for n in (33, 5))
    key, value = (torch.randn(2, 6 // group, 47, w, dtype=torch.float64) for w in (8, 4))
    key_all, value_all = (x.repeat_interleave(group, 1) for x in (key, value))
    scale = 8**-0.5
    gather = (middle @ key_all.mT * scale).softmax(-1)
    hand_out = (query @ middle.mT * scale).softmax(-1)
    torch.testing.assert_close(via(query, middle, key, value), hand_out @ (gather @ value_all))


def test_a_pattern_for_both_hops_is_refused() -> None:
    tensor = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="via takes no pattern: the hops differ in their tokens"):
        via(tensor, tensor, tensor, tensor, pattern=None)
