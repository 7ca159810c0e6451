"""p-adapters in a tiny frozen encoder of BERT's form, against its layers run by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from attlas.bridges import UnsupportedModel
from attlas.layers import p_laplacian_official, p_laplacian_step
from attlas.tune.p_adapter import PAdapters, p_adapter

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 50}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32, pad_token_id=0)
    found = BertModel(config).eval().requires_grad_(False)
    for weight in found.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return found


def made(model, **named):
    torch.manual_seed(2)
    return PAdapters(model, reduction=8, **named).eval()


def ids(length=9):
    return torch.randint(1, 50, (2, length), generator=torch.Generator().manual_seed(5))


def by_hand(model, adapters, tokens, augmented, official):
    """Steps 1 to 5 on whole maps; the step itself is tested elsewhere."""
    x = model.embeddings(tokens)
    for number, layer in enumerate(model.encoder.layer):
        own, done = layer.attention.self, layer.attention.output
        query, key, value = (make(x) for make in (own.query, own.key, own.value))
        heads = [part.unflatten(-1, (2, 16)).transpose(1, 2) for part in (query, key, value)]
        maps = (heads[0] @ heads[1].transpose(-1, -2) / 4).softmax(-1)
        attended = (maps @ heads[2]).transpose(1, 2).flatten(2)
        adapter = adapters.attention[number]
        out = done.dense(attended)
        features = [
            adapter.down(done.dense(part)).unflatten(-1, (2, 2)).transpose(1, 2) for part in (query, value)
        ]
        mine = features[0] if augmented else features[1]
        step = {"p": adapter.p, "mu": 0.1 * (2 + adapter.m.tanh())}
        if official:
            nodes = p_laplacian_official(mine, features[1], maps, augmented=augmented, **step)
        else:
            nodes = p_laplacian_step(mine, features[1], maps, **step)
        gated = functional.gelu(adapter.gate(out)) * nodes.transpose(1, 2).flatten(2)
        x = done.LayerNorm(out + adapter.up(gated) + x)
        small = adapters.ffn[number]
        residual = x + small.up(small.down(x).relu())
        x = layer.output.LayerNorm(layer.output.dense(layer.intermediate(x)) + residual)
    return x


@pytest.mark.parametrize(
    ("augmented", "official"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_an_encoder_with_adapters_is_the_sheet(model, augmented, official):
    adapters, tokens = made(model, augmented=augmented, official=official), ids()
    before = model(tokens).last_hidden_state
    with p_adapter(model, adapters):
        found = model(tokens).last_hidden_state
    wanted = by_hand(model, adapters, tokens, augmented, official)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.01 and model(tokens).last_hidden_state.equal(before)


@pytest.mark.parametrize("official", [False, True])
def test_padding_is_no_node(model, official):
    adapters, tokens = made(model, official=official), ids()
    longer = functional.pad(tokens, (0, 5), value=11)
    mask = (torch.arange(14) < 9).long().expand(2, -1)
    with p_adapter(model, adapters):
        found = model(longer, attention_mask=mask).last_hidden_state[:, :9]
        torch.testing.assert_close(found, model(tokens).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_only_the_adapters_learn_p_and_mu_too(model):
    adapters = made(model)
    with p_adapter(model, adapters):
        model(ids()).last_hidden_state.pow(3).mean().backward()
    grads = {name: weight.grad for name, weight in adapters.named_parameters()}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())
    assert grads["attention.0.p"].abs() > 0 and grads["attention.1.m"].abs() > 0
    assert all(weight.grad is None for weight in model.parameters())


def test_without_ffn_adapters_and_in_another_model(model):
    assert not len(PAdapters(model, ffn=False).ffn)
    config = LlamaConfig(**SIZES, num_hidden_layers=1)
    decoder = LlamaForCausalLM(config)
    with (
        pytest.raises(UnsupportedModel, match="p_adapter\\(\\) needs an encoder of BERT's form"),
        p_adapter(decoder, PAdapters(decoder)),
    ):
        pass
