"""Counted arithmetic: torch's own counter and counts by hand are the oracle."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas._common.flops import count_flops
from attlas.attend import attend
from attlas.pattern import Tokens, causal, window
from attlas.scan import selective_scan


def test_products_of_matrices_are_those_of_torchs_counter():
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    x, towards = torch.randn(5, 8), torch.randn(5, 4)

    def run():
        net.zero_grad(set_to_none=True)
        net(x).backward(towards)

    with FlopCounterMode(display=False) as counter:
        run()
    found = count_flops(run)
    assert found.total == counter.get_total_flops() == 2 * 5 * (8 * 16 + 16 * 4) * 2 + 2 * 5 * 16 * 4
    assert found.unknown == ()


def test_other_operations_count_once_per_element_and_moving_counts_nothing():
    x = torch.randn(6, 7)
    assert count_flops(lambda: x.relu()).total == 42
    assert count_flops(lambda: x.sum()).total == 42
    assert count_flops(lambda: (x + x[:1]).exp()).total == 84
    assert count_flops(lambda: torch.cat([x, x]).transpose(0, 1).contiguous()[2:4].clone()).total == 0
    assert count_flops(lambda: x.argmax()).total == 0  # gives no number of its own


def test_flash_attention_counts_the_pairs_that_are_seen():
    query, key, value = (torch.randn(2, 3, 10, 4, requires_grad=True) for _ in range(3))
    pairs = 2 * 3 * (10 * 11 // 2)

    def forward():
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert count_flops(forward).total == 2 * pairs * (4 + 4)
    out = forward()
    backward = count_flops(lambda: out.backward(torch.ones_like(out)))
    assert backward.total == 2 * pairs * (3 * 4 + 2 * 4)
    dense = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
    assert dense.total == 2 * (2 * 3 * 100) * (4 + 4)


def test_strips_count_what_their_tiles_compute():
    """At least the pairs of the pattern, and of a narrow window far fewer than all."""
    length, space = 512, Tokens(512, total=512)
    query, key, value = (torch.randn(1, 2, length, 16) for _ in range(3))
    pattern = causal() & window(16)
    found = count_flops(lambda: attend(query, key, value, pattern=pattern, q_at=space, k_at=space))
    pairs = 2 * pattern.count(space, space)
    assert found.unknown == ()
    assert 2 * pairs * (16 + 16) <= found.total < 0.25 * 2 * (2 * length**2) * (16 + 16)


def test_a_kernel_that_nobody_counts_is_named():
    @torch.library.custom_op("attlas_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    found = count_flops(lambda: twice(torch.ones(3)) + 1)
    assert found.total == 3 and found.unknown == ("attlas_test::twice",)


def test_the_selective_scan_counts_its_recurrence():
    batch, length, channels, states = 2, 6, 8, 4
    u, delta = (torch.rand(batch, length, channels, requires_grad=True) for _ in range(2))
    read, write = (torch.randn(batch, length, states) for _ in range(2))
    rate = -torch.rand(channels, states)
    out = selective_scan(u, delta, rate, write, read)
    found = count_flops(lambda: selective_scan(u, delta, rate, write, read))
    own = batch * length * channels * states
    # Beside the recurrence only the step size's softplus and its like: far less than one more state.
    assert found.unknown == () and 9 * own <= found.total < 10 * own
    backward = count_flops(lambda: out.sum().backward())
    assert backward.unknown == () and 22 * own <= backward.total < 24 * own
