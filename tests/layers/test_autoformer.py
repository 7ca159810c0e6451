"""Autoformer's layers against loops over all lags, and auto-correlation against transformers at batch 1."""

import math

import pytest
import torch
from transformers.models.autoformer.modeling_autoformer import AutoformerAttention

from attlas.layers.autoformer import (
    AutoCorrelation,
    AutoformerDecoderLayer,
    AutoformerEncoderLayer,
    Decomposition,
    SeasonalNorm,
    auto_correlation,
    choose_lags,
    lag_correlation,
    moving_average,
)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def loops(query, key, value, factor, shared, aligned):
    """Auto-correlation by the definition: every lag, every step, one number at a time where it matters."""
    batch, heads, length, width = query.shape

    def fitted(part):
        out = torch.zeros(batch, heads, length, part.shape[3], dtype=part.dtype)
        out[:, :, : min(length, part.shape[2])] = part[:, :, :length]
        return out

    key, value = fitted(key), fitted(value)
    correlation = torch.zeros(batch, heads, length, width, dtype=query.dtype)
    for lag in range(length):
        for t in range(length):
            correlation[:, :, lag] += query[:, :, (t + lag) % length] * key[:, :, t]
    count = min(length, max(1, math.floor(factor * math.log(length))))
    out = torch.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            for d in range(value.shape[3]):
                if shared == "channel":
                    weighed = ranked = correlation[b, h, :, d]
                else:
                    weighed = correlation[b].mean((0, 2))
                    ranked = correlation.mean((0, 1, 3)) if shared == "batch" else weighed
                lags = sorted(range(length), key=lambda lag, r=ranked: -float(r[lag]))[:count]
                weights = torch.stack([weighed[lag] for lag in lags]).softmax(0)
                for t in range(length):
                    for weight, lag in zip(weights, lags, strict=True):
                        out[b, h, t, d] += weight * value[b, h, (t - lag if aligned else t + lag) % length, d]
    return out


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("shared", ["sample", "batch", "channel"])
@pytest.mark.parametrize(("length", "context"), [(7, 7), (8, 5), (9, 12), (2, 2), (1, 1)])
def test_equals_the_loop_over_all_lags(length, context, shared, aligned):
    query, key, value = draw(2, 2, length, 3), draw(2, 2, context, 3), draw(2, 2, context, 3)
    found = auto_correlation(query, key, value, factor=1.7, shared=shared, aligned=aligned)
    wanted = loops(query, key, value, 1.7, shared, aligned)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)


def test_equals_transformers_for_one_sample():
    # Its heads and samples are mixed up for larger batches in evaluation mode; one sample is right. It
    # aggregates in float32, hence the tolerance.
    theirs = AutoformerAttention(16, 4, autocorrelation_factor=2).eval()
    ours = AutoCorrelation(16, 4, factor=2).eval()
    for name in ("query", "key", "value", "out"):
        source = getattr(theirs, {"out": "out_proj"}.get(name, f"{name[0]}_proj"))
        getattr(ours, name).load_state_dict(source.state_dict())
    x, context = torch.randn(1, 21, 16), torch.randn(1, 30, 16)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x)[0], atol=1e-5)
        assert torch.allclose(ours(x, context), theirs(x, key_value_states=context)[0], atol=1e-5)


def test_training_shares_lags_over_the_batch_and_evaluation_does_not():
    layer = AutoCorrelation(8, 2, factor=1.0).double()
    x = draw(3, 20, 8)
    alone = torch.cat([layer.eval()(row[None]) for row in x])
    assert torch.allclose(layer.eval()(x), alone, atol=1e-12)
    lone = torch.cat([layer.train()(row[None]) for row in x])
    assert torch.allclose(lone, alone, atol=1e-12)
    assert not torch.allclose(layer.train()(x), alone, atol=1e-3)


def test_a_period_is_found_and_the_aligned_sign_reads_it():
    period, length = 12, 96
    steps = torch.arange(length, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * steps / period).reshape(1, 1, length, 1)
    lags, weights = choose_lags(lag_correlation(wave, wave), 1.5)
    assert lags.shape == (1, 1, 6, 1) and set((lags % period).flatten().tolist()) == {0}
    assert torch.allclose(weights.sum(2), torch.ones(1, 1, 1, dtype=torch.float64))
    # Queries run 5 steps behind the keys: only the aligned sign brings the key's values to them.
    late, values = wave.roll(5, 2), wave
    assert torch.allclose(auto_correlation(late, wave, values, aligned=True), late, atol=1e-9)
    assert not torch.allclose(auto_correlation(late, wave, values), late, atol=0.1)


@pytest.mark.parametrize("shared", ["sample", "batch", "channel"])
def test_gradients(shared):
    parts = [draw(2, 2, 7, 2).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *given: auto_correlation(*given, factor=1.2, shared=shared), parts)


def test_lags_of_the_batch_keep_no_rolled_copies():
    query, key = draw(2, 2, 512, 4), draw(2, 2, 512, 4)
    value = draw(2, 2, 512, 4).requires_grad_()
    kept = set()

    def note(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # 18 lags: with a copy of the values for each there would be as many storages.
        auto_correlation(query, key, value, factor=3.0, shared="batch")
    assert 0 < len(kept) < 18


def test_moving_average_repeats_the_ends():
    x = draw(2, 9, 3)
    padded = torch.cat([x[:, :1]] * 3 + [x] + [x[:, -1:]] * 3, 1)
    wanted = torch.stack([padded[:, t : t + 7].mean(1) for t in range(9)], 1)
    assert torch.allclose(moving_average(x, 7), wanted, atol=1e-12)
    seasonal, trend = Decomposition(7)(x)
    assert torch.allclose(seasonal + trend, x) and torch.allclose(trend, wanted)
    line = torch.arange(9.0).reshape(1, 9, 1)
    assert torch.allclose(moving_average(line, 3)[:, 1:-1], line[:, 1:-1]), "a line is its own trend"


def test_seasonal_norm_has_no_level():
    norm = SeasonalNorm(4).double()
    with torch.no_grad():
        norm.norm.bias.fill_(3.0)
    x = draw(2, 6, 4)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(x), plain - plain.mean(1, keepdim=True), atol=1e-9)


def seasonal(x):
    return x - moving_average(x, 3)


def pointwise(layer, x):
    return torch.nn.functional.gelu(x @ layer.feed[0].weight.T) @ layer.feed[3].weight.T


def test_encoder_and_decoder_layers_follow_their_equations():
    class Twice(torch.nn.Module):
        def forward(self, x, context=None):
            return 2 * x if context is None else context[:, : x.shape[1]]

    encoder = AutoformerEncoderLayer(6, Twice(), inner=5, kernel=3).double().eval()
    x, context = draw(2, 8, 6), draw(2, 11, 6)
    first = seasonal(3 * x)
    assert torch.allclose(encoder(x), seasonal(first + pointwise(encoder, first)), atol=1e-12)
    decoder = AutoformerDecoderLayer(6, Twice(), Twice(), channels=2, inner=5, kernel=3).double().eval()
    one = seasonal(3 * x)
    two = seasonal(one + context[:, :8])
    three = seasonal(two + pointwise(decoder, two))
    trends = 3 * x - one + (one + context[:, :8]) - two + (two + pointwise(decoder, two)) - three
    taps = decoder.trend.weight  # (channels, width, 3), over t - 1, t, t + 1
    wanted = sum(trends.roll(1 - tap, 1) @ taps[:, :, tap].T for tap in range(3))
    found, gained = decoder(x, context)
    assert torch.allclose(found, three, atol=1e-12) and torch.allclose(gained, wanted, atol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="kernel must be odd, so that it has a middle, got 4"):
        moving_average(draw(1, 5, 1), 4)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        AutoCorrelation(8, 3)
    with pytest.raises(ValueError, match=r"factor must be above 0 .*got 0"):
        AutoCorrelation(8, 2, factor=0)
    with pytest.raises(ValueError, match="training must be one of batch, sample, channel, got 'foo'"):
        AutoCorrelation(8, 2, training="foo")
    with pytest.raises(ValueError, match="lags per channel need values as wide as the keys, got 2 and 3"):
        auto_correlation(draw(1, 1, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 2), shared="channel")
