"""Sparse GIN in a tiny frozen decoder: against its layers run by hand, decoding, padding, refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from attlas.bridges import UnsupportedModel
from attlas.layers.sparse_gin import lambda_schedule
from attlas.tune.sparse_gin import SparseGINAdapters, sparse_gin

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    found = LlamaForCausalLM(LlamaConfig(**SIZES)).eval().requires_grad_(False)
    for weight in found.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return found


def made(model, **named):
    torch.manual_seed(4)
    return SparseGINAdapters(model, inner=6, **named).eval()


def ids(count=2, length=13):
    return torch.randint(2, 61, (count, length), generator=torch.Generator().manual_seed(5))


def by_hand(model, adapters, tokens):
    """The decoder layer by layer in eager attention, maps and all."""
    inner = model.model
    x = inner.embed_tokens(tokens)
    count = tokens.shape[1]
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    places = inner.rotary_emb(x, torch.arange(count)[None])
    model.set_attn_implementation("eager")
    for number, layer in enumerate(inner.layers):
        out, maps = layer.self_attn(layer.input_layernorm(x), position_embeddings=places, attention_mask=mask)
        x = x + out
        if str(number) in adapters.layers:
            net = adapters.layers[str(number)]
            adjacency = torch.sigmoid(10 * (maps.sum(1).clamp(max=1.0) - 0.1))
            adjacency = torch.where(adjacency > 0.6, adjacency, 0.0).tril()
            z = net.enter(x)
            s = net.eps * z + adjacency @ z
            y = net.second(net.first(s).relu()) + s
            change = net.leave(z + y.relu())
            change = change / (change.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            x = x + net.amount * change
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    model.set_attn_implementation("sdpa")
    return model.lm_head(inner.norm(x))


def test_a_forward_pass_is_the_sheet_and_leaves_the_model_as_it_was(model):
    adapters, tokens = made(model, layers=(0, 2), first=0.3), ids()
    before = model(tokens).logits
    with sparse_gin(model, adapters):
        found = model(tokens, use_cache=False).logits
    torch.testing.assert_close(found, by_hand(model, adapters, tokens), rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.01
    assert model(tokens).logits.equal(before)
    assert not any(layer._forward_hooks for layer in (model.model.layers[0].self_attn,))


def test_only_the_adapters_learn(model):
    adapters = made(model, first=0.1).train()
    with sparse_gin(model, adapters):
        model(ids(), use_cache=False).logits.square().mean().backward()
    grads = {name: weight.grad for name, weight in adapters.named_parameters()}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())
    assert all(grads[f"layers.{layer}.amount"].abs() > 0 for layer in range(3))
    assert all(weight.grad is None for weight in model.parameters())


def test_cached_decoding_is_the_whole_forward(model):
    adapters, tokens = made(model), ids(length=20)
    with sparse_gin(model, adapters), torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        cache, rows = DynamicCache(), []
        for piece in tokens.split([9, 1, 1, 9], 1):
            rows.append(model(piece, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-4)
        new = model.generate(tokens[:, :8], max_new_tokens=4, do_sample=False)
        again = tokens[:, :8]
        for _ in range(4):
            step = model(again, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            again = torch.cat([again, step], 1)
        assert new.equal(again)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_token(model, side):
    adapters, tokens = made(model, layers=(1, 2)), ids(1, 9)
    pad = torch.full((1, 4), 7)
    parts = [pad, tokens] if side == "left" else [tokens, pad]
    kept = slice(4, None) if side == "left" else slice(9)
    mask = torch.cat([torch.zeros_like(pad) if part is pad else torch.ones_like(part) for part in parts], 1)
    place = (mask.cumsum(1) - 1).clamp_min(0)
    with sparse_gin(model, adapters), torch.no_grad():
        wanted = model(tokens, use_cache=False).logits
        found = model(torch.cat(parts, 1), attention_mask=mask, position_ids=place, use_cache=False).logits
    torch.testing.assert_close(found[:, kept], wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_said(model):
    adapters = made(model)
    assert [net.amount.item() for net in adapters.layers.values()] == list(lambda_schedule(3))
    with pytest.raises(ValueError, match=r"layers must be numbers from 0 to 2, got \[3\]"):
        made(model, layers=(3,))
    cache = DynamicCache()
    model(ids(), past_key_values=cache)
    with sparse_gin(model, adapters):
        with pytest.raises(ValueError, match="the cache holds 13 tokens, but layer 0 .* remembers 0"):
            model(ids(length=1), past_key_values=cache)
        with pytest.raises(UnsupportedModel, match="generate with num_beams=1"):
            model.generate(ids(), max_new_tokens=2, num_beams=2)


def test_a_decoder_of_another_form_is_refused(make_neox):
    model = make_neox()
    with (
        pytest.raises(UnsupportedModel, match="needs decoder layers of Llama's form"),
        sparse_gin(model, made(model)),
    ):
        pass


@pytest.fixture
def make_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    kept = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    return lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**kept))
