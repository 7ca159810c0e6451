"""GAAM against its formula entry by entry, the released form against an own transcription, and padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from attlas.layers import GAAM, GaussianBlock, importance
from attlas.layers.gaam import collapsed, gaussian_weights, masked_moments, released_weights


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def parameters(heads=1, count=3):
    """Offsets and scales (H, K) of either sign."""
    return 0.3 * drawn(heads, count), (0.5 + drawn(heads, count).abs()) * drawn(heads, count).sign()


def one_row(values, offset, scale, eps=1e-8):
    """Weights of a list of numbers: densities multiplied out, then divided by their sum."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1) + eps
    products = [
        math.prod(
            math.exp(-(((v - mean - d) / math.sqrt(variance)) ** 2) / (2 * c * c))
            / math.sqrt(2 * math.pi * c * c)
            for d, c in zip(offset, scale, strict=True)
        )
        for v in values
    ]
    return [p / sum(products) for p in products]


def rows_along(x, dim, function):
    moved = np.moveaxis(x.numpy(), dim, -1)
    found = np.apply_along_axis(lambda row: np.array(function(row.tolist())), -1, moved)
    return torch.from_numpy(np.moveaxis(found, -1, dim).copy())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weights_are_the_normalised_product_of_gaussians(dim):
    x = 3 * drawn(5, 6, 7) + 1
    offset, scale = parameters()
    wanted = rows_along(x, dim, lambda row: one_row(row, offset[0].tolist(), scale[0].tolist()))
    found = gaussian_weights(x, offset[0], scale[0], dim=dim)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(dim), torch.ones_like(found.sum(dim)))
    # Where the sum of densities is above eps the released form is the same.
    torch.testing.assert_close(
        released_weights(x, offset[0], scale[0], dim=dim), wanted, rtol=1e-9, atol=1e-12
    )


def test_k_gaussians_are_one():
    x = drawn(4, 20)
    offset, scale = parameters(2, 5)
    layer = GAAM(2, gaussians=5).double().requires_grad_(False)
    layer.offset.copy_(offset), layer.scale.copy_(scale)
    one = layer.collapse()
    assert one.scale.shape == (2, 1) and layer.scale.shape == (2, 5)
    torch.testing.assert_close(one(x), layer(x), rtol=1e-12, atol=1e-12)
    delta, width = collapsed(offset[0], scale[0])
    # The product of the unnormalised Gaussians over that of the one is a constant.
    z = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    log = -((z - offset[0]).square() / (2 * scale[0].square())).sum(1) + (z[:, 0] - delta).square() / (
        2 * width.square()
    )
    torch.testing.assert_close(log, log[:1].expand_as(log))


@pytest.mark.parametrize("length", [9, 11])
def test_heads_are_contiguous_and_the_last_takes_the_remainder(length):
    x = drawn(2, length, 4)
    layer = GAAM(3, gaussians=2, dim=1).double().requires_grad_(False)
    offset, scale = parameters(3, 2)
    layer.offset.copy_(offset), layer.scale.copy_(scale)
    parts = x[:, :3], x[:, 3:6], x[:, 6:]
    wanted = [
        part * gaussian_weights(part, offset[head], scale[head], dim=1) for head, part in enumerate(parts)
    ]
    torch.testing.assert_close(layer(x), torch.cat(wanted, 1), rtol=0, atol=0)


def test_starts():
    layer = GAAM(8, gaussians=3)
    assert not layer.offset.any() and (layer.scale == 2).all()
    torch.manual_seed(0)
    released = GAAM(40, gaussians=50, official=True, eps=1e-2)
    assert released.eps == 1e-8, "the released wrapper's eps never arrives"
    torch.testing.assert_close(released.scale.log().std(), torch.tensor(1.0), rtol=0.1, atol=0)
    assert GAAM(1, eps=1e-2).eps == 1e-2


def released_in_numpy(x, valid, heads, offset, scale, eps=1e-8):
    """The released module's arithmetic along the last axis, chunk by chunk."""
    length, out = x.shape[-1], np.empty_like(x)
    for head in range(heads):
        first = head * (length // heads)
        last = length if head == heads - 1 else first + length // heads
        part, kept = x[..., first:last], valid[..., first:last]
        zeroed = np.where(kept, part, 0)
        mean = zeroed.mean(-1, keepdims=True)
        variance = zeroed.var(-1, ddof=1, keepdims=True) + eps
        mixture = np.ones_like(part)
        for d, c in zip(offset[head], scale[head], strict=True):
            y = (part - (mean + d)) / np.sqrt(variance)
            mixture = mixture * np.exp(-(y**2) / (2.0 * c**2)) / np.sqrt(2 * np.pi * c**2)
        mixture = mixture / np.maximum(mixture.sum(-1, keepdims=True), eps)
        out[..., first:last] = np.where(kept, part * mixture, part)
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_official_form_is_the_released_arithmetic(dtype):
    x = drawn(3, 5, 11)
    x[0, 0] = 2.0  # a constant axis
    valid = drawn(3, 5, 11) > -1
    offset, scale = parameters(2, 4)
    scale[1, 0] = 0.05  # its densities fall below the clamp
    layer = GAAM(2, gaussians=4, official=True).to(dtype).requires_grad_(False)
    layer.offset.copy_(offset), layer.scale.copy_(scale)
    wanted = released_in_numpy(x.numpy(), valid.numpy(), 2, offset.numpy(), scale.numpy())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(
        layer(x.to(dtype), valid=valid).numpy(), wanted, rtol=tolerance, atol=tolerance
    )


def test_where_the_released_form_differs():
    constant = torch.full((1, 6), 3.0)
    offset, scale = torch.tensor([0.5]), torch.tensor([1.0])
    torch.testing.assert_close(gaussian_weights(constant, offset, scale, dim=1), torch.full((1, 6), 1 / 6))
    assert not released_weights(constant, offset, scale, dim=1).any()
    x = torch.randn(1, 6)
    far = torch.tensor([40.0])
    assert not released_weights(x, far, scale, dim=1).any(), "densities underflow"
    torch.testing.assert_close(gaussian_weights(x, far, scale, dim=1).sum(), torch.tensor(1.0))
    valid = torch.tensor([[True, True, True, True, False, False]])
    for weigh, same in ((gaussian_weights, True), (released_weights, False)):
        padded = weigh(x, offset, scale, dim=1, valid=valid)[:, :4]
        assert torch.allclose(padded, weigh(x[:, :4], offset, scale, dim=1), atol=1e-6) == same


def test_moments_are_of_the_valid_entries():
    x, valid = drawn(4, 9), (torch.arange(36) % 5 > 1).view(4, 9)
    valid[0], valid[1] = False, False
    valid[1, 3] = True
    mean, variance = masked_moments(x, 1, valid)
    assert mean[0, 0] == 0 and variance[0, 0] == 0 and mean[1, 0] == x[1, 3] and variance[1, 0] == 0
    for row in (2, 3):
        kept = x[row][valid[row]]
        torch.testing.assert_close(mean[row, 0], kept.mean())
        torch.testing.assert_close(variance[row, 0], kept.var(correction=1))


def test_padding_passes_through_and_counts_nowhere():
    layer = GAAM(2, gaussians=2, dim=1).double()
    with torch.no_grad():
        layer.offset.add_(0.2)
    x = drawn(2, 8, 3)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[:, 3] = False
    valid[1, 4:] = False  # a head without any entry
    padded = x.masked_fill(~valid[..., None], math.nan).requires_grad_()
    out = layer(padded, valid=valid)
    assert out[~valid].isnan().all() and out[valid].isfinite().all()
    torch.testing.assert_close(
        out[0, :3].detach(),
        (
            GAAM(1, dim=1).double().requires_grad_(False)(x[:1, :3]) * 0
            + x[0, :3] * gaussian_weights(x[:1, :3], layer.offset[0].detach(), layer.scale[0].detach(), dim=1)
        )[0],
    )
    for grad in torch.autograd.grad(out[valid].square().sum(), [padded, *layer.parameters()]):
        assert grad.isfinite().all()
    block = GaussianBlock([layer, GAAM(3, dim=2).double()])
    with torch.no_grad():
        one = block(padded, valid=valid)
        step = x + layer(x, valid=valid)
        wanted = step + block.layers[1](step)
    assert one[~valid].isnan().all()
    torch.testing.assert_close(one[valid], wanted[valid])


def test_the_block_adds_layer_after_layer():
    x = drawn(3, 6, 5)
    block = GaussianBlock([GAAM(2, dim=1), GAAM(5, dim=-1, gaussians=2)]).double()
    step = x + block.layers[0](x)
    torch.testing.assert_close(block(x), step + block.layers[1](step))


def test_gradients_and_bfloat16():
    layer = GAAM(2, gaussians=3).double()
    x = drawn(3, 10).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: torch.func.functional_call(
            layer, {"offset": given[1], "scale": given[2]}, (given[0],)
        ),
        (x, layer.offset, layer.scale),
    )
    narrow = GAAM(2, gaussians=3).bfloat16()
    given = torch.randn(3, 10).bfloat16()
    out = narrow(given)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), narrow.float()(given.float()), rtol=1.6e-2, atol=1.6e-2)


def test_importance_is_between_zero_and_one():
    assert importance(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0.0, 1.0, 0.5]
    assert importance(torch.full((2, 2), 0.3)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert importance(torch.tensor([1.0, math.nan])).isnan().all(), "no zeros that look like equal weights"
    with pytest.raises(ValueError, match=r"weights must have at least one entry, got shape \(2, 0\)"):
        importance(torch.zeros(2, 0))


@pytest.mark.parametrize("scales", [[0.0], [0.0, 1.0], [0.0, 0.0, 2.0]])
def test_a_scale_of_zero_takes_the_nearest_entry(scales):
    x = torch.tensor([[1.0, 2.0, 4.0, 9.0]])  # mean 4
    offset = torch.zeros(len(scales), requires_grad=True)
    scale = torch.tensor(scales, requires_grad=True)
    found = gaussian_weights(x, offset, scale, dim=1)
    assert found.tolist() == [[0.0, 0.0, 1.0, 0.0]]
    for grad in torch.autograd.grad((found * x).sum(), [offset, scale]):
        assert grad.isfinite().all()


def test_nan_in_padding_is_in_the_released_sums_alone():
    x, valid = torch.tensor([[1.0, 2.0, math.nan]]), torch.tensor([[True, True, False]])
    assert GAAM(1, official=True)(x, valid=valid)[0, :2].isnan().all()
    assert GAAM(1)(x, valid=valid)[0, :2].isfinite().all()


def test_wrong_requests_are_told():
    with pytest.raises(ValueError, match="axis 1 must have at least one entry per head, got 2 entries for 3"):
        GAAM(3, dim=1)(torch.zeros(1, 2))
    with pytest.raises(
        ValueError, match=r"dim must be an axis of x, from -2 to 1, got 5 and x of shape \(1, 2\)"
    ):
        GAAM(1, dim=5)(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="heads and gaussians must be at least 1, got 2 and 0"):
        GAAM(2, gaussians=0)
    with pytest.raises(ValueError, match="official form's clamp depends on K"):
        GAAM(2, official=True).collapse()
