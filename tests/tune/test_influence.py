"""Edge influence against its definition, and block sums against the dense form."""

import pytest
import torch
from torch import Tensor

from attlas.tune.influence import Workspace, block_influence, edge_influence


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def delete_edge(weights: Tensor, row: int, column: int) -> Tensor:
    """The change of one row when an edge is deleted and the rest is renormalised, by doing it."""
    kept = weights[row].clone()
    kept[column] = 0
    if kept.sum() > 0:
        kept = kept / kept.sum()
    return kept - weights[row]


@pytest.mark.parametrize("causal", [True, False])
def test_edge_influence_is_the_first_order_effect_of_deleting_an_edge(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 9
    logits = 3 * torch.randn(n, n, generator=generator, dtype=torch.float64)
    grad = torch.randn(n, n, generator=generator, dtype=torch.float64)
    mask = torch.ones(n, n).tril().bool() if causal else torch.ones(n, n).bool()
    weights = masked_softmax(logits, mask)
    got = edge_influence(weights, grad, signed=True, causal=causal)
    for row in range(n):
        for column in range(n):
            expected = (grad[row] * delete_edge(weights, row, column)).sum() if mask[row, column] else 0.0
            assert abs(got[row, column] - expected) < 1e-10
    torch.testing.assert_close(edge_influence(weights, grad, causal=causal), got.abs(), rtol=0, atol=0)


def test_deleting_the_only_edge_removes_its_message() -> None:
    weights, grad = torch.ones(3, 1, dtype=torch.float64), torch.tensor([[2.0], [-3.0], [0.5]]).double()
    torch.testing.assert_close(edge_influence(weights, grad, signed=True), -grad)


def test_influence_is_formed_in_float32_and_survives_a_saturated_row() -> None:
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.bfloat16)
    got = edge_influence(weights, torch.tensor([[2.0, 1.0], [2.0, 1.0]], dtype=torch.bfloat16))
    assert got.dtype == torch.float32 and got.isfinite().all()
    assert got[0, 0] == 2.0


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    upstream: Tensor,
    scale: float,
    block: int,
    mask: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Block sums of |E| and A, and G by autograd through an explicit A; float64, repeated KV heads."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    weights = masked_softmax(scale * query @ key.mT, mask).requires_grad_()
    (weights @ value).backward(upstream)
    assert weights.grad is not None
    grad, weights = weights.grad, weights.detach()
    influence = edge_influence(weights, grad, causal=causal)

    def pool(x: Tensor) -> Tensor:
        blocks = -(-x.shape[-1] // block)
        full = x.new_zeros(x.shape[0], blocks * block, blocks * block)
        full[:, : x.shape[1], : x.shape[2]] = x
        return full.view(-1, blocks, block, blocks, block).sum((2, 4))

    return pool(influence), pool(weights), grad


def inputs(heads: int, kv_heads: int, n: int, width: int, value_width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, n, width), (kv_heads, n, width), (kv_heads, n, value_width), (heads, n, value_width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def mask_of(n: int, causal: bool, window: int | None) -> Tensor:
    distance = torch.arange(n)[:, None] - torch.arange(n)
    mask = distance >= 0 if causal else torch.ones(n, n).bool()
    return mask if window is None else mask & (distance.abs() < window)


@pytest.mark.parametrize("n", [1, 7, 64, 150, 263])
@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("causal, window", [(True, None), (False, None), (True, 20), (False, 20), (True, 1)])
def test_block_sums_equal_the_pooled_dense_influence(
    n: int, heads: int, kv_heads: int, causal: bool, window: int | None
) -> None:
    query, key, value, upstream = inputs(heads, kv_heads, n, 8, 5)
    if window == 1:  # every row has its own key only: the dense form treats only row 0 so
        expected_attention = torch.full((n,), 1.0)
        influence, attention = block_influence(query, key, value, upstream, scale=0.3, block=16, window=1)
        assert attention.sum() == heads * expected_attention.sum()
        effect = (upstream * value.repeat_interleave(heads // kv_heads, 0)).sum(-1).abs().sum(-1)
        torch.testing.assert_close(influence.sum((1, 2)), effect, rtol=1e-10, atol=1e-10)
        return
    expected = dense(query, key, value, upstream, 0.3, 16, mask_of(n, causal, window), causal)
    got = block_influence(
        query, key, value, upstream, scale=0.3, block=16, causal=causal, window=window, workspace=Workspace()
    )
    torch.testing.assert_close(got[0], expected[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-10, atol=1e-10)


def test_gradient_of_the_weights_is_upstream_times_values() -> None:
    query, key, value, upstream = inputs(4, 2, 33, 8, 8)
    mask = mask_of(33, True, None)
    _, _, grad = dense(query, key, value, upstream, 0.3, 16, mask, True)
    torch.testing.assert_close(grad, upstream @ value.repeat_interleave(2, 0).mT, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("valid", [1, 30, 32, 100])
def test_right_padding_counts_for_nothing(causal: bool, valid: int) -> None:
    query, key, value, upstream = inputs(4, 2, 128, 8, 8)
    alone = block_influence(
        *(x[:, :valid] for x in (query, key, value, upstream)), scale=0.5, block=16, causal=causal
    )
    for tensor in (query, key, value, upstream):
        tensor[:, valid:] = torch.nan
    padded = block_influence(query, key, value, upstream, scale=0.5, block=16, causal=causal, valid=valid)
    blocks = -(-valid // 16)
    for got, expected in zip(padded, alone, strict=True):
        torch.testing.assert_close(got[:, :blocks, :blocks], expected, rtol=1e-12, atol=1e-12)
        assert got[:, blocks:].abs().sum() == 0 and got[:, :, blocks:].abs().sum() == 0


def test_a_reused_workspace_does_not_leak_into_the_next_layer() -> None:
    work = Workspace()
    first = inputs(4, 2, 128, 8, 8, seed=1)
    block_influence(*(100 * x for x in first), scale=0.5, block=16, workspace=work)
    second = inputs(4, 2, 70, 8, 8, seed=2)
    got = block_influence(*second, scale=0.5, block=16, workspace=work)
    expected = block_influence(*second, scale=0.5, block=16)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_rounded_inputs_are_computed_in_float32() -> None:
    rounded = [x.bfloat16() for x in inputs(6, 2, 200, 16, 16)]
    got = block_influence(*rounded, scale=0.25)
    expected = block_influence(*(x.double() for x in rounded), scale=0.25)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"heads": 5}, "query heads must be a multiple of KV heads"),
        ({"valid": 0}, "valid must count the real tokens, 1..20, got 0"),
        ({"window": 0}, "window must be at least 1 token, got 0"),
        ({"block": 0}, "block must be at least 1 token, got 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, int], text: str) -> None:
    query, key, value, upstream = inputs(change.pop("heads", 4), 2, 20, 4, 4)
    with pytest.raises(ValueError, match=text):
        block_influence(query, key, value, upstream, scale=1.0, **change)


def test_edge_influence_names_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"one shape .*, got \(2, 2\) and \(2, 3\)"):
        edge_influence(torch.ones(2, 2), torch.ones(2, 3))
