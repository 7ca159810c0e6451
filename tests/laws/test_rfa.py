"""Random-feature attention: features against their formula, the kernel against many heads."""

from __future__ import annotations

import pytest
import torch

from attlas.laws import attention_features, attention_kernel, perceptron_features, random_heads, rfa


def points(n, keys, width, generator):
    found = torch.randn(n, keys + 1, width, generator=generator, dtype=torch.float64)
    found = found / found.norm(dim=-1, keepdim=True)
    return found[:, 0], found[:, 1:]


def by_the_formula(query, keys, heads):
    rows = []
    for first, seen in zip(query, keys, strict=True):
        x0, one = torch.cat([first, first.new_ones(1)]), []
        for head in heads:
            total = torch.zeros_like(x0)
            for key in seen:
                x = torch.cat([key, key.new_ones(1)])
                total = total + torch.clamp(x0 @ head @ x, min=0) * x
            one.append(total / len(seen))
        rows.append(torch.cat(one))
    return torch.stack(rows)


@pytest.mark.parametrize("mean", [0.0, 4.0])
def test_features_are_the_formula(mean, generator, monkeypatch):
    query, keys = points(7, 5, 3, generator)
    heads = random_heads(6, 3, mean=mean, generator=generator)
    expected = by_the_formula(query, keys, heads)
    torch.testing.assert_close(attention_features(query, keys, heads), expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(rfa, "BLOCK", 60)  # two points at a time
    torch.testing.assert_close(attention_features(query, keys, heads), expected, rtol=1e-12, atol=1e-12)


def test_features_do_not_depend_on_the_order_of_keys(generator):
    query, keys = points(4, 6, 3, generator)
    heads = random_heads(5, 3, generator=generator)
    turned = keys[:, torch.randperm(6, generator=generator)]
    found = attention_features(query, turned, heads)
    torch.testing.assert_close(found, attention_features(query, keys, heads))
    weights = torch.randn(8, 7 * 4, generator=generator, dtype=torch.float64)
    ours, theirs = (perceptron_features(query, some, weights) for some in (keys, turned))
    assert (ours - theirs).abs().max() > 0.1


def test_logits_of_unit_points_are_standard_normal(generator):
    query, keys = points(200, 1, 4, generator)
    heads = random_heads(400, 4, generator=generator)
    x0, x1 = (torch.cat([part, part.new_ones(200, 1)], -1) for part in (query, keys[:, 0]))
    logits = torch.einsum("na,mab,nb->nm", x0, heads, x1)
    assert abs(logits.mean().item()) < 0.02 and abs(logits.var().item() - 1) < 0.05


def test_the_bias_is_the_inner_product_of_query_and_key():
    plain, biased = (
        random_heads(2, 3, mean=mean, generator=torch.Generator().manual_seed(0)) for mean in (0.0, 2.5)
    )
    expected = torch.diag(torch.tensor([2.5, 2.5, 2.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(biased - plain, expected.expand(2, 4, 4))


def test_the_kernel_is_the_limit_of_many_heads(generator, monkeypatch):
    query, keys = points(6, 4, 3, generator)
    other_query, other_keys = points(5, 3, 3, generator)
    exact = attention_kernel(query, keys, other_query, other_keys)
    heads = random_heads(60_000, 3, generator=generator)
    left, right = (attention_features(*pair, heads) for pair in ((query, keys), (other_query, other_keys)))
    # 1 % of the largest value: entries near 0 have no relative accuracy of their own.
    error = (left @ right.mT / len(heads) - exact).abs().max()
    assert error < 0.01 * exact.abs().max()
    monkeypatch.setattr(rfa, "BLOCK", 130)
    torch.testing.assert_close(attention_kernel(query, keys, other_query, other_keys), exact)


def test_a_point_with_itself_has_cosine_one(generator):
    query, keys = points(1, 1, 3, generator)
    # Norms of x~ are sqrt 2: E relu^2 = 1/2, times x~.x~ = 2.
    found = attention_kernel(query, keys, query, keys)
    torch.testing.assert_close(found, torch.ones(1, 1, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_errors(generator):
    query, keys = points(2, 3, 3, generator)
    with pytest.raises(ValueError, match="heads must be of width 4, one more than the points', got 3"):
        attention_features(query, keys, torch.zeros(2, 3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weights must have 16 columns, \(keys \+ 1\) \(width \+ 1\)"):
        perceptron_features(query, keys, torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="heads need count and width of at least 1, got 0 and 3"):
        random_heads(0, 3)
    with pytest.raises(ValueError, match=r"other_query must have at least one point, .* got shape \(0, 3\)"):
        attention_kernel(query, keys, query[:0], keys[:0])
    with pytest.raises(ValueError, match=r"other_keys must have at least one .* got shape \(2, 0, 3\)"):
        attention_kernel(query, keys, query, keys[:, :0])
    with pytest.raises(ValueError, match=r"query must have at least one point, key and channel"):
        attention_kernel(query[:0], keys[:0], query, keys)
