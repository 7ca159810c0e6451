"""The block backend: programs cover layouts exactly, forward and backward match the oracle, errors speak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attlas.attend import attend, block, make_request
from attlas.attend.block_kernel import block_attention
from attlas.attend.block_program import Call, Program, compile_layout
from attlas.attend.block_schedule import Heads, head_sets
from attlas.attend.tiles import flash, flash_backward, matmul, matmul_backward
from attlas.pattern import (
    Pattern,
    Tokens,
    causal,
    dense,
    distance,
    opaque,
    per_head,
    per_kv_head,
    sink,
    window,
)

STREAM = causal() & (window(37) | sink(5))
PATTERNS: list[Pattern | None] = [
    None,
    causal(),
    STREAM,
    causal() & (window(100) | sink(64)),
    window(20),
    causal() & distance(9, 30),
    ~causal(),
    causal() & window(40) & ~window(1),
    opaque(lambda i, j: (i * 7 + j * 3) % 5 == 0, "fifths") & causal(),
]


def program(pattern: Pattern, rows: int, keys: int, size: int, start: int = 0) -> Program:
    extent = max(start + rows, keys)
    q_at, k_at = Tokens(rows, start, total=extent), Tokens(keys, total=extent)
    layout = pattern.layout(q_at, k_at, block=size)
    return compile_layout(
        layout, rows, keys, lambda a, b, c, d: pattern.tile(q_at, k_at, a, b, c, d), block=size
    )


def covered(found: Program) -> Tensor:
    """How often the calls compute each pair."""
    times = torch.zeros(found.rows, found.keys, dtype=torch.int64)
    for call in found.calls:
        mask = call.additive_mask(torch.float32, torch.device("cpu"))
        seen = torch.ones(call.rows, call.keys, dtype=torch.bool) if mask is None else mask == 0
        if call.causal:
            seen = seen.tril()
        for tile in range(call.tiles):
            q0, k0 = call.q0 + tile * call.rows, call.k0 + tile * call.key_step
            times[q0 : q0 + call.rows, k0 : k0 + call.keys] += seen
    return times


def first_rows(found: Program) -> Tensor:
    """How often each row is written first, or known as a hole."""
    times = torch.zeros(found.rows, dtype=torch.int64)
    for call in found.calls:
        if call.first:
            times[call.q0 : call.q0 + call.rows * call.tiles] += 1
    for start, stop in found.holes:
        times[start:stop] += 1
    return times


def tensors(
    batch: int,
    heads: int,
    kv_heads: int,
    rows: int,
    keys: int,
    width: int = 16,
    value: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    shapes = [(batch, heads, rows, width), (batch, kv_heads, keys, width), (batch, kv_heads, keys, value)]
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p is not None], ids=str)
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("rows, keys, start", [(150, 150, 0), (70, 190, 120), (33, 190, 0)])
def test_calls_cover_exactly_the_pairs_of_the_pattern(
    pattern: Pattern, size: int, rows: int, keys: int, start: int
) -> None:
    found = program(pattern, rows, keys, size, start)
    extent = max(start + rows, keys)
    mask = pattern.mask(Tokens(rows, start, total=extent), Tokens(keys, total=extent))
    assert torch.equal(covered(found), mask.long())
    assert torch.equal(first_rows(found), torch.ones(rows, dtype=torch.int64))


def test_a_long_window_is_a_handful_of_calls() -> None:
    found = program(causal() & (window(256) | sink(4)), 8192, 8192, 128)
    assert len(found.calls) <= 8
    assert found.pairs <= 8192 * (256 + 128 + 64)


def test_a_long_causal_pattern_is_one_kernel_call() -> None:
    found = program(causal(), 4096, 4096, 128)
    assert [(call.rows, call.causal) for call in found.calls] == [(4096, True)]


def test_unknown_part_kinds_are_refused() -> None:
    part = SimpleNamespace(k0=0, k1=4, kind="spiral")
    layout = SimpleNamespace(tiles=[SimpleNamespace(q0=0, q1=4, parts=[part])])
    with pytest.raises(ValueError, match="must be 'full', 'causal' or 'partial', got 'spiral'"):
        compile_layout(layout, 4, 4, lambda a, b, c, d: torch.ones(b - a, d - c, dtype=torch.bool))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("batch, heads, kv_heads, value", [(1, 4, 4, 16), (2, 6, 2, 8), (2, 3, 1, 24)])
def test_values_and_gradients_match_the_oracle(
    pattern: Pattern | None, batch: int, heads: int, kv_heads: int, value: int
) -> None:
    inputs = tensors(batch, heads, kv_heads, 301, 301, value=value)
    out, state = attend(*inputs, pattern=pattern, backend="block", return_state=True)
    expected, wanted = attend(*inputs, pattern=pattern, backend="reference", return_state=True)
    some = torch.isfinite(wanted.lse)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.isfinite(state.lse), some)
    torch.testing.assert_close(state.lse[some], wanted.lse[some].float(), rtol=1e-5, atol=1e-5)
    weight, lse_weight = torch.randn_like(out), torch.randn_like(state.lse)
    got = gradients(inputs, out, state.lse, weight, lse_weight, some)
    want = gradients(inputs, expected, wanted.lse, weight, lse_weight, some)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two.float(), rtol=1e-4, atol=1e-4)


def gradients(
    inputs: Sequence[Tensor], out: Tensor, lse: Tensor, weight: Tensor, lse_weight: Tensor, some: Tensor
) -> tuple[Tensor, ...]:
    loss = (out * weight).sum() + (torch.where(some, lse, 0.0) * lse_weight).sum()
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(
    "pattern",
    [
        per_kv_head([causal(), STREAM, causal(), STREAM]),
        per_kv_head([STREAM, causal() & window(9), dense(), causal()]),
        per_head([causal(), STREAM, STREAM, causal(), window(8), STREAM, causal(), causal()]),
    ],
    ids=str,
)
def test_heads_with_patterns_of_their_own(pattern: Pattern) -> None:
    inputs = tensors(2, 8, 4, 201, 201)
    out = attend(*inputs, pattern=pattern, backend="block")
    expected = attend(*inputs, pattern=pattern, backend="reference")
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(out.square().sum(), inputs)
    want = torch.autograd.grad(expected.square().sum(), inputs)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two.float(), rtol=1e-4, atol=1e-4)


def test_heads_of_different_spans_cost_their_own_spans() -> None:
    inputs = tensors(1, 4, 4, 2048, 2048)
    short, full = causal() & (window(64) | sink(64)), causal()
    costs = {
        name: block.estimate(make_request(*inputs, pattern=pattern)).computed
        for name, pattern in {
            "short": short,
            "full": full,
            "both": per_head([short, full, short, full]),
        }.items()
    }
    assert costs["both"] * 2 == costs["short"] + costs["full"]
    assert costs["short"] * 5 < costs["full"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_is_as_exact_as_it_can_be(dtype: torch.dtype) -> None:
    inputs = tensors(1, 6, 2, 257, 257, dtype=dtype)
    out = attend(*inputs, pattern=STREAM, backend="block")
    exact = attend(*[tensor.double() for tensor in inputs], pattern=STREAM, backend="reference")
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[dtype]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    got = torch.autograd.grad(out.float().sum(), inputs)
    want = torch.autograd.grad(exact.sum(), inputs)
    for one, two in zip(got, want, strict=True):
        assert one.dtype == dtype
        scale = float(two.abs().max())
        torch.testing.assert_close(one.double(), two.double(), rtol=4 * tolerance, atol=4 * tolerance * scale)


def test_gradients_pass_gradcheck_with_lse_and_empty_rows() -> None:
    pattern = causal() & distance(2, 9)
    inputs = tensors(1, 4, 2, 21, 21, width=3, value=2, dtype=torch.float64)

    def both(*given: Tensor) -> tuple[Tensor, Tensor]:
        out, state = attend(*given, pattern=pattern, backend="block", return_state=True)
        return out, state.lse[..., 2:]  # rows 0 and 1 are empty: their lse is -inf

    assert torch.autograd.gradcheck(both, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


def test_rows_without_keys_give_zero_out_and_zero_gradient() -> None:
    inputs = tensors(1, 2, 2, 100, 100)
    out, state = attend(*inputs, pattern=causal() & distance(50, 60), backend="block", return_state=True)
    assert torch.equal(out[:, :, :50], torch.zeros_like(out[:, :, :50]))
    assert bool((state.lse[:, :, :50] == -float("inf")).all())
    gradient = torch.autograd.grad(out.sum(), inputs[0])[0]
    assert torch.equal(gradient[:, :, :50], torch.zeros_like(gradient[:, :, :50]))
    assert bool(gradient[:, :, 50:].abs().sum() > 0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every tensor of uninitialised memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pattern", [STREAM, causal() & distance(50, 60), ~causal()], ids=str)
def test_no_uninitialised_memory_is_read(pattern: Pattern) -> None:
    inputs = tensors(2, 4, 2, 150, 150, value=8)
    out, state = attend(*inputs, pattern=pattern, backend="block", return_state=True)
    loss = out.sum() + state.lse[torch.isfinite(state.lse)].sum()
    for tensor in (out, state.lse, *torch.autograd.grad(loss, inputs)):
        assert not bool(tensor.isnan().any())


@pytest.mark.parametrize("contiguous", [True, False])
def test_strides_do_not_matter(contiguous: bool) -> None:
    query, key, value = (tensor.detach() for tensor in tensors(2, 6, 3, 130, 130))
    moved = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    if not contiguous:
        moved = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in moved]
    expected = attend(query, key, value, pattern=STREAM, backend="block")
    torch.testing.assert_close(attend(*moved, pattern=STREAM, backend="block"), expected)


def test_one_query_batch_serves_many_key_batches() -> None:
    query, key, value = (tensor.detach() for tensor in tensors(3, 4, 2, 90, 90))
    one = query[:1]
    out = block_attention(one, key, value, program(STREAM, 90, 90, 32), 0.25)[0]
    expected = block_attention(one.expand(3, -1, -1, -1), key, value, program(STREAM, 90, 90, 32), 0.25)[0]
    torch.testing.assert_close(out, expected)


def test_second_derivatives_are_refused_with_a_reason() -> None:
    inputs = tensors(1, 2, 2, 40, 40)
    out = attend(*inputs, pattern=causal(), backend="block")
    gradient = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once.*use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("causal_tile", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_tile_kernels_agree(dtype: torch.dtype, causal_tile: bool) -> None:
    query, key, value, grad = (torch.randn(2, 3, 24, 8, dtype=dtype) for _ in range(4))
    mask = torch.zeros(24, 24, dtype=dtype)
    mask[:, 20:] = -float("inf")
    mask[5] = -float("inf")
    arguments = (0.3, causal_tile, None if causal_tile else mask)
    out, lse = flash(query, key, value, *arguments)
    other, other_lse = matmul(query, key, value, *arguments)
    torch.testing.assert_close(out, other)
    torch.testing.assert_close(lse, other_lse)
    one = flash_backward(grad, query, key, value, out, lse, *arguments)
    two = matmul_backward(grad, query, key, value, other, other_lse, *arguments)
    for got, want in zip(one, two, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_evenly_spaced_heads_form_one_set() -> None:
    one, two = program(causal(), 8, 8, 8), program(window(2), 8, 8, 8)
    found = head_sets([one, two, one, two, one, two], key_heads=6)
    assert found == ((one, (Heads(0, 2, 3, 0, 1),)), (two, (Heads(1, 2, 3, 0, 1),)))
    grouped = head_sets([one, one, two, two, one, one], key_heads=3)
    assert grouped == ((one, (Heads(0, 2, 2, 0, 2),)), (two, (Heads(1, 1, 1, 0, 2),)))


def test_wrong_shapes_and_programs_name_the_argument() -> None:
    query, key, value = (tensor.detach() for tensor in tensors(1, 4, 2, 10, 10))
    ten, nine = program(causal(), 10, 10, 8), program(causal(), 9, 9, 8)
    with pytest.raises(ValueError, match="must have 4 axes"):
        block_attention(query[0], key, value, ten, 1.0)
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2 key heads"):
        block_attention(query[:, :3], key, value, ten, 1.0)
    with pytest.raises(ValueError, match=r"one program per query head \(4\), got 2"):
        block_attention(query, key, value, [ten, ten], 1.0)
    with pytest.raises(ValueError, match="program is for 9 rows and 9 keys, tensors have 10 and 10"):
        block_attention(query, key, value, nine, 1.0)


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    inputs = tensors(1, 2, 2, 10, 10)
    with pytest.raises(ValueError, match="it has no dropout"):
        attend(*inputs, pattern=causal(), dropout=0.5, backend="block")
    with pytest.raises(ValueError, match="contiguous positions"):
        places = Tokens(10, index=torch.arange(10))
        attend(*inputs, pattern=causal(), q_at=places, k_at=places, backend="block")


def test_calls_know_their_pairs() -> None:
    call = Call(0, 4, 3, 0, 4, 8, False, (), None, True)
    assert call.pairs == 96
    assert program(dense(), 20, 30, 8).pairs == 600
    assert program(dense(), 20, 30, 8).seen_keys == 30


def test_what_inference_mode_leaves_in_caches_serves_training() -> None:
    pattern = causal() & (window(11) | sink(2))
    inputs = tensors(1, 2, 2, 77, 77)
    with torch.inference_mode():
        before = attend(*[tensor.detach() for tensor in inputs], pattern=pattern, backend="block")
    out = attend(*inputs, pattern=pattern, backend="block")
    out.sum().backward()
    assert torch.equal(out.detach(), before.clone())
    assert inputs[0].grad is not None and bool(inputs[0].grad.isfinite().all())
