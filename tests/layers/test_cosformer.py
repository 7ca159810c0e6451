"""cosFormer against its weights pair by pair, and what a fixed longest length is for."""

import math

import pytest
import torch

from attlas.layers import MIXERS, Setting
from attlas.layers.cosformer import CosformerAttention, cosine_features


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def pair_by_pair(layer, x, source, longest, causal):
    split = lambda part: part.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
    query, key, value = (
        split(layer.query(x)).relu(),
        split(layer.key(source)).relu(),
        split(layer.value(source)),
    )
    i, j = torch.arange(x.shape[1])[:, None], torch.arange(source.shape[1])
    weights = query @ key.transpose(-1, -2) * torch.cos(math.pi / 2 * (i - j).double() / longest)
    weights = weights * (j <= i) if causal else weights
    out = weights @ value / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    return layer.out(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("count", "other"), [(7, None), (5, 9), (9, 4)])
def test_equals_cosine_weights(count, other):
    layer = CosformerAttention(8, 2).double()
    x = draw(2, count, 8)
    context = None if other is None else draw(2, other, 8)
    source = x if context is None else context
    wanted = pair_by_pair(layer, x, source, max(count, source.shape[1]), False)
    assert torch.allclose(layer(x, context), wanted, rtol=0, atol=1e-9)


def test_causal_equals_cosine_weights():
    layer = CosformerAttention(8, 2, causal=True, longest=100).double()
    x = draw(2, 70, 8)
    assert torch.allclose(layer(x), pair_by_pair(layer, x, x, 100, True), rtol=0, atol=1e-9)


def test_with_the_current_length_a_prefix_has_other_outputs():
    # Unequal keys; queries alone would hide it behind the division by the sum of weights.
    layer = CosformerAttention(8, 2).double()
    x, context = draw(1, 12, 8), draw(1, 6, 8)
    assert not torch.allclose(layer(x, context)[:, :8], layer(x[:, :8], context), atol=1e-3)
    layer.longest = 12
    assert torch.allclose(layer(x, context)[:, :8], layer(x[:, :8], context), atol=1e-12)


def test_features_of_the_longest_distance_are_orthogonal():
    x = draw(1, 1, 5, 3).abs()
    features = cosine_features(x, torch.arange(1, 6)[None], 4)[0, 0]
    assert features[0] @ features[4] == pytest.approx(0, abs=1e-12)
    assert features[0] @ features[3] > 0


def test_errors():
    with pytest.raises(ValueError, match="a causal cosFormer needs longest: with the current length"):
        CosformerAttention(8, 2, causal=True)
    with pytest.raises(ValueError, match="was made for 4 tokens, got 5: raise longest"):
        CosformerAttention(8, 2, causal=True, longest=4)(torch.zeros(1, 5, 8))
    layer = CosformerAttention(8, 2, causal=True, longest=4)
    _, state = layer.advance(torch.zeros(1, 3, 8), layer.start(1))
    with pytest.raises(ValueError, match="was made for 4 tokens, got 5"):
        layer.advance(torch.zeros(1, 2, 8), state)
    with pytest.raises(ValueError, match="reads one sequence; for queries to another one make it with"):
        layer(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match="mixer cosformer needs a length in its causal forms"):
        MIXERS["cosformer"].build(Setting(8, 2))
