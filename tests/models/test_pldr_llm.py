"""PLDR-LLM: the parts around its attention, both caches, and the ablation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from attlas.layers import FixedCurvature, PrefixPLGA, dag_penalty, kv_cache_only
from attlas.layers.plga import PLGA
from attlas.models import PLDRLLM, PLDRS, PLDRConfig

SIZES = PLDRConfig(vocabulary=23, width=16, heads=2, layers=2, units=1)


def made(**named):
    torch.manual_seed(0)
    model = PLDRLLM(SIZES, **named).double().eval().requires_grad_(False)
    for part in model.parameters():
        part.add_(0.05 * torch.randn_like(part))
    return model


def normed(layer, x):
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-6)


def test_the_net_around_the_attention():
    model, ids = made(), torch.randint(0, 23, (2, 9))
    x = normed(model.norm, model.embedding.weight[ids] * math.sqrt(16))
    for block in model.blocks:
        u = normed(block.after_attention, x + block.attention(x))
        mlp = block.mlp
        inner = silu(u @ mlp.gate.weight.T + mlp.gate.bias) * (u @ mlp.up.weight.T + mlp.up.bias)
        x = normed(block.after_mlp, u + inner @ mlp.down.weight.T + mlp.down.bias)
    wanted = x @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(ids), wanted, rtol=0, atol=1e-12)
    assert model.blocks[0].mlp.gate.out_features == 42 and model.head.weight is not model.embedding.weight


def test_decoding_with_either_cache_is_the_same_computation():
    model, ids = made(), torch.randint(0, 23, (2, 12))
    logits, both = model.begin(ids[:, :7])
    torch.testing.assert_close(logits, model(ids[:, :7]), rtol=0, atol=1e-12)
    given = model.curvatures(ids[:, :7])
    wanted = model(ids, curvatures=given)
    keys = kv_cache_only(both)
    assert keys.nbytes == both.nbytes - 2 * sum(one.numel() * 8 for one in given)
    for at in range(7, 12):
        one, both = model.advance(ids[:, at : at + 1], both)
        other, keys = model.advance(ids[:, at : at + 1], keys)
        assert torch.equal(one, other)
        torch.testing.assert_close(one[:, 0], wanted[:, at], rtol=0, atol=1e-12)
    assert keys.position.tolist() == [12, 12]


def test_logits_of_the_training_form_depend_on_later_tokens_until_the_matrices_are_given():
    model, ids = made(), torch.randint(0, 23, (1, 10))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 23
    assert not torch.allclose(model(ids)[:, :-1], model(other)[:, :-1], atol=1e-6)
    given = model.curvatures(ids[:, :5])
    assert torch.equal(model(ids, curvatures=given)[:, :-1], model(other, curvatures=given)[:, :-1])
    causal = made(attention=lambda layer: PrefixPLGA(16, 2, chunk=4))
    assert torch.equal(causal(ids)[:, :-1], causal(other)[:, :-1])
    prompt, state = causal.begin(ids[:, :6])
    rest, _ = causal.advance(ids[:, 6:], state)
    torch.testing.assert_close(torch.cat([prompt, rest], 1), causal(ids), rtol=0, atol=1e-12)


def test_padding_and_batches():
    model, ids = made(), torch.randint(0, 23, (1, 6))
    padded = torch.cat([torch.randint(0, 23, (1, 2)), ids, torch.randint(0, 23, (1, 1))], 1)
    valid = torch.tensor([[False] * 2 + [True] * 6 + [False]])
    torch.testing.assert_close(model(padded, valid=valid)[:, 2:-1], model(ids), rtol=0, atol=1e-12)
    for ours, alone in zip(model.deduced(padded, valid=valid), model.deduced(ids), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-9)
    for ours, alone in zip(model.curvatures(padded, valid=valid), model.curvatures(ids), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-9)
    weights = (1.0, 1.0, 1.0)
    wanted = model.dag_penalty(ids, weights)
    torch.testing.assert_close(model.dag_penalty(padded, weights, valid=valid), wanted, rtol=1e-9, atol=0)
    assert abs(model.dag_penalty(padded, weights) - wanted) > 1e-3


def test_what_the_prefix_form_does_not_have_is_told():
    model, ids = made(attention=lambda layer: PrefixPLGA(16, 2, chunk=4)), torch.randint(0, 23, (1, 9))
    for call in (model.curvatures, model.deduced, lambda ids: model.dag_penalty(ids, (1.0, 0.0, 0.0))):
        with pytest.raises(ValueError, match="a text has not one A or G to deduce, to penalise .*take PLGA"):
            call(ids)
    _, state = model.begin(ids[:, :6])
    rest, _ = model.advance(ids[:, 6:], kv_cache_only(state))
    torch.testing.assert_close(rest, model(ids)[:, 6:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"layers": 0}, {"vocabulary": 0}, {"width": 0}])
def test_sizes_below_one_are_told(wrong):
    sizes = {"vocabulary": 23, "width": 16, "heads": 2, "layers": 2} | wrong
    with pytest.raises(ValueError, match="vocabulary, width, heads and layers must be at least 1, got "):
        PLDRConfig(**sizes)


def test_the_ablation_has_no_learner():
    def fixed(layer):
        return PLGA(16, 2, metric=FixedCurvature(torch.eye(8).expand(2, -1, -1)))

    model, ids = made(attention=fixed), torch.randint(0, 23, (1, 6))
    assert not any("metric" in name for name, _ in model.named_parameters())
    assert torch.equal(model(ids), model(ids, curvatures=[torch.eye(8, dtype=torch.float64)] * 2))
    with pytest.raises(ValueError, match="curvatures must be one per layer, 2, got 1"):
        model(ids, curvatures=[torch.eye(8)])


def test_the_penalty_is_the_weighted_mean_over_layers():
    model, ids = made(), torch.randint(0, 23, (2, 6))
    found = model.deduced(ids)
    parts = [sum(float(dag_penalty(layer[kind])) for layer in found) / 2 for kind in range(3)]
    model.requires_grad_()
    total = model.dag_penalty(ids, (0.5, 0.0, 0.25))
    assert total.item() == pytest.approx(0.5 * parts[0] + 0.25 * parts[2], rel=1e-9)
    assert model.dag_penalty(ids, (0.0, 1.0, 0.0)).item() == pytest.approx(parts[1], rel=1e-9)
    total.backward()
    assert model.blocks[0].attention.query.weight.grad.any()


def test_the_published_size():
    with torch.device("meta"):
        model = PLDRLLM(PLDRS["110M"])
    count = sum(part.numel() for part in model.parameters())
    assert 100e6 < count < 120e6, count
