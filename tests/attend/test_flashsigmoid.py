"""FlashSigmoid: its constant, what composes with it, its merge and its baselines."""

import math

import pytest
import torch
from torch import Tensor, nn

from attlas.attend import OverCount, Sigmoid, attend, flash_sigmoid, merge, over_count_sigmoid
from attlas.layers import FlashSigmoid
from attlas.pattern import Pattern, Tokens, causal, dense, key, sink, window
from attlas.score import DistanceBias, Dot
from attlas.score.flashbias import alibi_slopes

N, WIDTH = 50, 8


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(2, heads, N, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads, width in ((4, WIDTH), (2, WIDTH), (2, 5))
    ]


def dense_sums(given: list[Tensor], mask: Tensor, bias: float, slopes: Tensor | None = None) -> Tensor:
    query, keys, values = (one.repeat_interleave(4 // one.shape[1], 1) for one in given)
    logits = query @ keys.mT / WIDTH**0.5 + bias
    if slopes is not None:
        at = torch.arange(N)
        logits = logits - slopes.view(-1, 1, 1) * (at[:, None] - at)
    return (1 / (1 + (-logits).exp()) * mask) @ values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "pattern", [causal(), causal() & (window(9) | sink(2)), causal() - window(30), dense()]
)
def test_weights_are_the_formula_with_gradients(pattern: Pattern, dtype: torch.dtype) -> None:
    given = tensors(dtype)
    leaves = [tensor.detach().double().requires_grad_() for tensor in given]
    mask = _mask(pattern)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.05], dtype=dtype)
    for score, own in ((Dot(), None), (Dot() + DistanceBias(slopes), slopes.double())):
        out = attend(*given, pattern=pattern, score=score, normaliser=flash_sigmoid(2048))
        wanted = dense_sums(leaves, mask, -math.log(2048), own)
        # ALiBi on the 50 positions before a row rewards later keys where the pattern is not causal.
        size = {"rtol": 1e-5, "atol": 1e-6 * float(wanted.detach().abs().max())}
        torch.testing.assert_close(out.double(), wanted, **size)
        grads = torch.autograd.grad(out.sum(), given), torch.autograd.grad(wanted.sum(), leaves)
        for one, other in zip(*grads, strict=True):
            atol = 1e-6 * float(other.abs().max())
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=atol)


def _mask(pattern: Pattern) -> Tensor:
    return pattern.mask(Tokens(N), Tokens(N)).double()


def test_gradcheck() -> None:
    given = [tensor.detach()[:1, :2, :5, :3].requires_grad_() for tensor in tensors()]

    def run(*leaves: Tensor) -> Tensor:
        return attend(*leaves, pattern=causal() & ~window(1), normaliser=flash_sigmoid(6), backend="rows")

    assert torch.autograd.gradcheck(run, given, eps=1e-6, atol=1e-5, rtol=1e-3)


def test_bias_keeps_row_sums_near_one_at_any_start() -> None:
    """About e^(1/2) for logits from N(0, 1); n / 2 without a bias."""
    n = 256
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(1, 4, n, 64, generator=generator) for _ in range(2))
    ones = torch.ones(1, 4, n, 1)
    assert attend(query, keys, ones, normaliser=flash_sigmoid(n)).mean() == pytest.approx(1.62, abs=0.05)
    assert attend(query, keys, ones, normaliser=Sigmoid(0.0)).mean() == pytest.approx(n / 2, rel=0.02)
    with pytest.raises(ValueError, match="trained_length must be the number of tokens of training.*got 0"):
        flash_sigmoid(0)
    with pytest.raises(ValueError, match="a whole number of at least 1, got True"):
        flash_sigmoid(True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shards_add_up_with_their_gradients(dtype: torch.dtype) -> None:
    """float32 runs on strips, float64 on row blocks; sums differ by their order alone."""
    given = tensors(dtype)
    options = {"normaliser": flash_sigmoid(N), "return_state": True}
    whole, state = attend(*given, pattern=causal(), **options)
    parts = [attend(*given, pattern=causal() & key(a, b), **options) for a, b in ((0, 7), (7, 30), (30, N))]
    merged, after = merge(parts)
    size = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(merged, whole, **size)
    assert torch.equal(after.lse, state.lse) and (state.lse == 0).all()
    grads = (torch.autograd.grad(one.square().sum(), given) for one in (merged, whole))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * size["rtol"], atol=10 * size["atol"])
    with pytest.raises(ValueError, match="needs parts that merge, but sigmoid\\(-log edges\\)"):
        attend(*given, pattern=causal(), normaliser=Sigmoid(), return_state=True)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_baselines_divide_by_the_place_of_the_row(power: float) -> None:
    given = tensors()
    out = attend(*given, pattern=causal(), normaliser=over_count_sigmoid(power))
    places = torch.arange(1, N + 1, dtype=torch.float64).view(-1, 1)
    torch.testing.assert_close(out, dense_sums(given, _mask(causal()), 0.0) / places**power)
    with pytest.raises(ValueError, match="needs parts that merge"):
        attend(*given, pattern=causal(), normaliser=over_count_sigmoid(power), return_state=True)
    with pytest.raises(ValueError, match="OverCount: power must be a finite number, got inf"):
        OverCount(math.inf)


def test_decoding_keeps_the_bias_of_training_beyond_its_length() -> None:
    torch.manual_seed(0)
    layer = FlashSigmoid(32, 4, trained_length=16, kv_heads=2, pattern=causal(), base=10000.0)
    x = torch.randn(2, 60, 32)
    with torch.no_grad():
        whole = layer(x)
        state, rows = layer.start(2), []
        for piece in x.split([1, 1, 20, 1, 37], 1):
            y, state = layer.advance(piece, state)
            rows.append(y)
        torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-5, atol=1e-5)
        # A bias that follows the length gives another answer.
        layer.normaliser = Sigmoid()
        assert (layer(x) - whole).abs().max() > 0.05


def test_the_layer_normalises_queries_and_keys_per_head() -> None:
    torch.manual_seed(0)
    layer = FlashSigmoid(32, 4, trained_length=64, pattern=causal())
    x = torch.randn(1, 10, 32)
    with torch.no_grad():
        layer.query.weight *= 100
        layer.key.weight *= 100
        loud = layer(x)
        layer.query.weight /= 100
        layer.key.weight /= 100
        torch.testing.assert_close(layer(x), loud, rtol=1e-3, atol=1e-4)
    plain = FlashSigmoid(32, 4, trained_length=64, pattern=causal(), norm=nn.LayerNorm)
    assert any(isinstance(module, nn.LayerNorm) for module in plain.modules())


def test_alibi_instead_of_rotary_positions() -> None:
    torch.manual_seed(0)
    score = Dot() + DistanceBias(alibi_slopes(4))
    layer = FlashSigmoid(32, 4, trained_length=64, pattern=causal(), score=score, norm=nn.LayerNorm)
    x = torch.randn(2, 30, 32)
    with torch.no_grad():
        whole, state, rows = layer(x), layer.start(2), []
        for piece in x.split(7, 1):
            y, state = layer.advance(piece, state)
            rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf])
def test_a_bias_is_finite(bias: float) -> None:
    with pytest.raises(ValueError, match="Sigmoid: bias must be finite, got"):
        Sigmoid(bias)
