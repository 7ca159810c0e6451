"""Performer: unbiased features, the formula pair by pair, the clamp, and why there is no causal form."""

import math

import pytest
import torch

from attlas.layers.performer import (
    PerformerAttention,
    orthogonal_directions,
    performer,
    positive_features,
)


def draw(*shape, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64)


def pair_by_pair(query, key, value, directions):
    """One head, one sample: w_ij from the exponential of every direction."""
    features, width = directions.shape
    q, k = query / width**0.25, key / width**0.25
    shift = max(float(w @ y) for w in directions for y in k)
    out = []
    for y in q:
        own = max(float(w @ y) for w in directions)
        phi = [math.exp(float(w @ y) - float(y @ y) / 2 - own) + 1e-4 for w in directions]
        weights = []
        for z in k:
            psi = [math.exp(float(w @ z) - float(z @ z) / 2 - shift) + 1e-4 for w in directions]
            weights.append(sum(a * b for a, b in zip(phi, psi, strict=True)) / features)
        out.append(sum(w * v for w, v in zip(weights, value, strict=True)) / max(sum(weights), 0.1))
    return torch.stack(out)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_equals_the_formula_pair_by_pair(scale):
    query, key, value = draw(2, 2, 5, 3, scale=scale), draw(2, 2, 7, 3, scale=scale), draw(2, 2, 7, 4)
    directions = draw(2, 6, 3)
    found = performer(query, key, value, directions)
    for b in range(2):
        for h in range(2):
            wanted = pair_by_pair(query[b, h], key[b, h], value[b, h], directions[h])
            assert torch.allclose(found[b, h], wanted, atol=1e-9)


def test_many_features_come_near_the_weights_of_softmax():
    query, key = draw(1, 1, 6, 4, scale=0.5), draw(1, 1, 9, 4, scale=0.5)
    wanted = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    gaps = []
    for count in (64, 16384):
        torch.manual_seed(3)
        directions = orthogonal_directions(1, count, 4).double()
        found = positive_features(query, directions) @ positive_features(key, directions, keys=True).mT
        gaps.append((found / found.sum(-1, keepdim=True) - wanted).abs().max().item())
    # The error falls as 1/sqrt(F); 1e-4 is added to every feature.
    assert gaps[1] < 0.01 and gaps[1] < gaps[0] / 3


def test_directions_are_orthogonal_in_blocks():
    found = orthogonal_directions(2, 10, 4)
    unit = found / found.norm(dim=-1, keepdim=True)
    for block in (unit[:, :4], unit[:, 4:8]):
        assert torch.allclose(block @ block.transpose(-1, -2), torch.eye(4).expand(2, 4, 4), atol=1e-5)
    assert found.shape == (2, 10, 4) and not torch.allclose(found[0], found[1])
    # 40,000 Gaussian numbers have a mean below 0.025 in all but one of a million draws; Q of the QR
    # decomposition as it comes is off by 0.2, and no number of features mends that.
    assert orthogonal_directions(1, 40_000, 4).mean(1).abs().max() < 0.025


def test_where_the_clamp_acts_weights_do_not_sum_to_one():
    query, key = draw(1, 1, 3, 4, scale=6.0), draw(1, 1, 2, 4, scale=6.0)
    directions = orthogonal_directions(1, 8, 4).double()
    ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    sums = performer(query, key, ones, directions)
    total = (
        positive_features(query, directions) @ positive_features(key, directions, keys=True).sum(2)[..., None]
    )
    assert (total < 0.1).any() and torch.allclose(sums, (total / 0.1).clamp_max(1), atol=1e-12)


def test_features_of_keys_change_when_a_larger_key_follows():
    # The reason for no causal form: shift and constant make the maximum over all keys visible.
    query, key, value = draw(1, 1, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 2)
    directions = draw(1, 6, 3)
    before = performer(query, key[:, :, :3], value[:, :, :3], directions)
    more = torch.cat([value[:, :, :3], torch.zeros_like(value[:, :, 3:])], 2)
    larger = torch.cat([key[:, :, :3], 40 * directions[0, :1][None, None]], 2)
    features = positive_features(larger, directions, keys=True)[:, :, :3]
    assert not torch.allclose(features, positive_features(key[:, :, :3], directions, keys=True))
    assert not torch.allclose(performer(query, larger, more, directions), before)


def test_a_row_without_keys_gives_zero_and_training_redraws():
    layer = PerformerAttention(8, 2, features=4).double()
    x, none = draw(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    assert torch.allclose(layer.eval()(x, valid=none), layer.out.bias.expand(2, 5, 8))
    assert torch.equal(layer(x), layer(x)) and not torch.equal(layer.train()(x), layer(x))
    fixed = PerformerAttention(8, 2, features=4, redraw=False).double().train()
    assert torch.equal(fixed(x), fixed(x)) and "directions" in fixed.state_dict()


def test_errors():
    with pytest.raises(ValueError, match="multiple of heads and features at least 1, got 8, 3 and 16"):
        PerformerAttention(8, 3)
