from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attlas.bridges import UnsupportedModel, applied, describe
from attlas.bridges.models import _sampled, wiring
from attlas.pattern import causal


def test_the_shape_of_a_model(families: Callable[[str], Any]) -> None:
    shape = describe(families("llama, grouped"))
    assert (shape.name, shape.family) == ("LlamaForCausalLM", "llama")
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_width) == (3, 4, 2, 8)
    assert len(shape.fingerprint) == 64


def test_windows_and_direction(model: Any, encoder: Any) -> None:
    wired = wiring(model)
    kinds = getattr(model.config, "layer_types", None)
    sliding = getattr(model.config, "sliding_window", None)
    if kinds is not None and sliding:
        assert wired.windows == tuple(sliding if kind == "sliding_attention" else None for kind in kinds)
        assert any(wired.windows)
    assert wired.causal and len(wired.modules) == 3
    assert not wiring(encoder).causal


def test_the_fingerprint_is_that_of_the_weights_in_any_precision(llama: Any) -> None:
    shape = describe(llama)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert describe(copy.deepcopy(llama).to(dtype)).fingerprint == shape.fingerprint
    other = copy.deepcopy(llama)
    torch.nn.init.normal_(other.model.layers[1].self_attn.q_proj.weight)
    assert describe(other).fingerprint != shape.fingerprint
    assert describe(llama) == shape


@pytest.mark.parametrize("size", [1, 5, 64, 1000, 28311552, 2**31 + 3])
def test_sampled_weights_are_within_the_tensor(size: int) -> None:
    index = _sampled(size)
    assert index.min() == 0 and index.max() < size
    assert len(index.unique()) == min(64, size)


def test_a_name_does_not_tell_the_folder(llama: Any) -> None:
    model = copy.deepcopy(llama)
    model.config._name_or_path = "/home/someone/models/tiny-llama"
    assert describe(model).name == "tiny-llama"


def test_soft_capped_models_are_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    model = Gemma2ForCausalLM(config).eval()
    with (
        torch.no_grad(),
        applied(model, causal()),
        pytest.raises(UnsupportedModel, match=r"gemma2 \(Gemma2Attention\) passes softcap .* not supported"),
    ):
        model(torch.ones(1, 4, dtype=torch.long))


def unsupported() -> list[Any]:
    import transformers as hf

    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    t5 = hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    bloom = hf.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)
    crossed = hf.BertConfig(**small, num_attention_heads=4, intermediate_size=32, is_decoder=True)
    crossed.add_cross_attention = True
    mamba = hf.MambaConfig(**small, state_size=4)
    mixed = hf.Qwen3NextConfig(
        **small,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    grouped = {**small, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    sharing = hf.Gemma3nTextConfig(
        **{**grouped, "num_hidden_layers": 4},
        head_dim=8,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    return [
        pytest.param(
            hf.Gemma3nForCausalLM,
            sharing,
            r"Gemma3nForCausalLM: 2 layers have no keys and values of their own .* not supported",
            id="shared keys",
        ),
        pytest.param(
            hf.DiffLlamaForCausalLM,
            hf.DiffLlamaConfig(**grouped),
            r"DiffLlamaForCausalLM: differential attention, .* is not supported; one attention per layer",
            id="differential",
        ),
        pytest.param(
            hf.MllamaForCausalLM,
            hf.MllamaTextConfig(**grouped, cross_attention_layers=[1]),
            r"MllamaForCausalLM: layers 1 are cross-attention \(config.cross_attention_layers\)",
            id="crossed layers",
        ),
        pytest.param(
            hf.T5ForConditionalGeneration, t5, r"is an encoder-decoder model: cross-attention", id="t5"
        ),
        pytest.param(
            hf.BloomForCausalLM, bloom, r"does not dispatch through transformers' attention inter", id="bloom"
        ),
        pytest.param(
            hf.BertLMHeadModel, crossed, r"has cross-attention \(config.add_cross_attention\)", id="crossed"
        ),
        pytest.param(
            hf.MambaForCausalLM, mamba, r"does not dispatch through|linear attention or recurrent", id="mamba"
        ),
        pytest.param(
            hf.Qwen3NextForCausalLM, mixed, r"layers 0 are linear attention or recurrent", id="mixed"
        ),
    ]


@pytest.mark.parametrize(("kind", "config", "message"), unsupported())
def test_unsupported_models_are_told_what_is_missing(kind: Any, config: Any, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        describe(kind(config))


def test_a_module_that_is_no_hugging_face_model() -> None:
    with pytest.raises(UnsupportedModel, match=r"Linear is not a Hugging Face model: it has no config"):
        describe(torch.nn.Linear(2, 2))
