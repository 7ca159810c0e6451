"""`applied` leaves no trace, refuses what it cannot do, and works only inside its block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.bridges import UnsupportedModel, applied, describe
from attlas.bridges.attention import NAME, _attention
from attlas.pattern import Plan, Tokens, causal, per_kv_head, sink, span_rule, uniform_plan, window
from attlas.pattern.plan import PlanMismatch

SHORT = causal() & (window(4) | sink(2))


def traces(model: Any) -> tuple[Any, ...]:
    return (
        dict(model.__dict__["_modules"]),
        sorted(model.__dict__),
        model.config._attn_implementation,
        model.config.to_dict(),
        [parameter.requires_grad for parameter in model.parameters()],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
    )


@torch.no_grad()
def test_the_model_is_bitwise_as_before(model: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 20)
    before, logits = traces(model), model(ids).logits
    with applied(model, SHORT):
        assert not torch.equal(model(ids).logits, logits)
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert traces(model) == before
    assert torch.equal(model(ids).logits, logits)


def test_a_path_or_a_text_is_told_how_to_become_a_plan(isolated_python: Callable[..., str]) -> None:
    said = isolated_python(
        "from pathlib import Path",
        "from transformers import LlamaConfig, LlamaForCausalLM",
        "import attlas",
        "sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)",
        "model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))",
        "for text in ('runs/demo/plan.json', Path('runs/demo/plan.json'), 'causal & window(4)'):",
        "    try:",
        "        with attlas.applied(model, text): pass",
        "    except TypeError as error:",
        "        print(error)",
    )
    for line, text in zip(
        said.splitlines(), ["runs/demo/plan.json"] * 2 + ["causal & window(4)"], strict=True
    ):
        assert line == (
            f"plan must be a Plan, one pattern, or one per layer, got the text {text!r}: load a plan file "
            "with attlas.Plan.load(path), read a pattern's text with attlas.parse(text)"
        )


@torch.no_grad()
def test_also_after_an_exception(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 20)
    before, logits = traces(llama), llama(ids).logits
    with pytest.raises(KeyboardInterrupt), applied(llama, SHORT):
        llama(ids)
        raise KeyboardInterrupt
    assert traces(llama) == before
    assert torch.equal(llama(ids).logits, logits)


def test_nesting_is_an_error_and_keeps_the_outer_block(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 20)
    with torch.no_grad(), applied(llama, SHORT):
        inside = llama(ids).logits
        with (
            pytest.raises(RuntimeError, match=r"already has a plan applied .* cannot be nested on one model"),
            applied(llama, causal()),
        ):
            raise AssertionError("unreachable")
        assert torch.equal(llama(ids).logits, inside)


def test_two_models_at_once(families: Callable[[str], Any], tokens: Callable[..., Tensor]) -> None:
    ids, first, second = tokens(1, 20), families("llama"), families("phi")
    with torch.no_grad():
        with applied(first, SHORT):
            expected = first(ids).logits
        with applied(second, causal()), applied(first, SHORT):
            assert torch.equal(first(ids).logits, expected)
            second(ids)


def test_the_gradient_is_that_of_the_masked_model(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 20)
    mask = SHORT.mask(Tokens(20), Tokens(20))
    additive = torch.zeros(1, 1, 20, 20).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = []
    for run in ("plan", "mask"):
        llama.zero_grad()
        if run == "plan":
            with applied(llama, SHORT):
                llama(ids, labels=ids, use_cache=False).loss.backward()
        else:
            llama(ids, attention_mask=additive, labels=ids, use_cache=False).loss.backward()
        found.append(
            [parameter.grad.clone() for parameter in llama.parameters() if parameter.grad is not None]
        )
    llama.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_plan_is_checked_against_the_model(
    families: Callable[[str], Any], tokens: Callable[..., Tensor]
) -> None:
    llama = families("llama, grouped")
    plan = uniform_plan(describe(llama), density=0.5)
    with torch.no_grad(), applied(llama, plan):
        llama(tokens(1, 20))
    with pytest.raises(PlanMismatch), applied(families("llama"), plan):
        raise AssertionError("unreachable")


def test_bad_plans(llama: Any) -> None:
    for plan, message in (
        ([SHORT, SHORT], r"LlamaForCausalLM has 3 layers, got 2 patterns"),
        (per_kv_head([SHORT] * 3), r"per_kv_head has 3 patterns but key has 2 heads"),
    ):
        with pytest.raises(ValueError, match=message), applied(llama, plan):
            raise AssertionError("unreachable")


def test_the_attention_name_without_applied_is_an_error(llama: Any, tokens: Callable[..., Tensor]) -> None:
    with torch.no_grad(), applied(llama, SHORT):
        llama(tokens(1, 4))
    states = torch.randn(1, 4, 3, 8)
    with pytest.raises(
        RuntimeError, match=r"no plan is applied to its model: run it inside attlas.applied\(model"
    ):
        _attention(llama.model.layers[0].self_attn, states, states, states)
    assert NAME == "attlas"


def test_a_ragged_cache_outside_the_block_is_an_error(llama: Any, tokens: Callable[..., Tensor]) -> None:
    with torch.no_grad(), applied(llama, span_rule(0, 0.5)) as handle:
        cache = handle.new_cache(total=40)
        llama(tokens(1, 20), past_key_values=cache)
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedModel, match=r"Outside attlas.applied\(model, plan\): run the model"),
    ):
        llama(tokens(1, 1), past_key_values=cache)


@pytest.mark.parametrize(
    ("argument", "given", "message"),
    [
        (
            "softcap",
            30.0,
            r"llama \(LlamaAttention\) passes softcap to its attention \(soft-capped logits\), which",
        ),
        (
            "s_aux",
            torch.ones(4),
            r"passes s_aux to its attention \(learned attention sinks\), which is not supported",
        ),
        (
            "position_bias",
            torch.ones(1),
            r"passes position_bias to its attention \(an additive position bias\)",
        ),
        (
            "head_mask",
            torch.ones(4),
            r"passes head_mask to its attention \(a head mask\), which is not supported",
        ),
        ("output_attentions", True, r"passes output_attentions .*: there is no n x n matrix to return\)"),
        ("novelty", 3, r"passes novelty to its attention \(an argument that is not implemented\)"),
    ],
)
def test_arguments_that_are_not_implemented_are_refused(
    llama: Any, tokens: Callable[..., Tensor], argument: str, given: Any, message: str
) -> None:
    with torch.no_grad(), applied(llama, SHORT), pytest.raises(UnsupportedModel, match=message):
        llama(tokens(1, 4), **{argument: given})


def test_masks_beyond_padding_are_refused(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 8)
    with torch.no_grad(), applied(llama, SHORT):
        with pytest.raises(
            UnsupportedModel, match=r"llama asks for a mask beyond causal, .*\(packed sequences"
        ):
            llama(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), use_cache=False)
        with pytest.raises(
            UnsupportedModel, match=r"passes a mask of its own \(\(1, 1, 8, 8\)\) to its attention"
        ):
            llama(ids, attention_mask=torch.zeros(1, 1, 8, 8), use_cache=False)
        cache = llama(ids, use_cache=True).past_key_values
        with pytest.raises(
            ValueError, match=r"attention_mask must cover the 8 cached and the 8 new columns, got 8"
        ):
            llama(ids, attention_mask=torch.ones(1, 8), past_key_values=cache)


def test_importing_patches_nothing(isolated_python: Callable[..., str]) -> None:
    printed = isolated_python(
        "import sys, attlas",
        "print('transformers' in sys.modules)",
        "import transformers, attlas.bridges, attlas.cache",
        "from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks",
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions",
        "print('attlas' in functions.valid_keys(), 'attlas' in masks.valid_keys())",
    )
    assert printed.split() == ["False", "False", "False"]


@torch.no_grad()
def test_an_official_plan_of_query_heads_is_fitted_to_the_models_kv_heads(
    llama: Any, tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    shape = describe(llama)
    rules = {"alphas": [[0.0] * shape.heads] * shape.layers, "betas": [[0.5] * shape.heads] * shape.layers}
    (tmp_path / "official.json").write_text(json.dumps(rules))
    ids = tokens(1, 20)
    logits = llama(ids).logits
    with applied(llama, Plan.load(tmp_path / "official.json")):
        # A span of at least 128 tokens hides nothing of 20.
        torch.testing.assert_close(llama(ids).logits, logits)
