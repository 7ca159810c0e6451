"""Captured Q, K, V and dO are those of the model itself, and enough to recompute its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attlas.bridges import applied, capture
from attlas.pattern import causal


def weights(captured: Any) -> Tensor:
    """Dense attention weights from what was captured, float64, (B, H, N, N)."""
    group = captured.query.shape[1] // captured.key.shape[1]
    key = captured.key.double().repeat_interleave(group, dim=1)
    logits = captured.query.double() @ key.transpose(2, 3) * captured.scaling
    length = logits.shape[-1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    allowed = distance >= 0 if captured.causal else torch.ones(length, length, dtype=torch.bool)
    if captured.window is not None:
        allowed = allowed & (distance.abs() < captured.window)
    allowed = allowed.expand(logits.shape).clone()
    if captured.valid is not None:
        allowed &= captured.valid[:, None, None, :]
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)


def run(model: Any, ids: Tensor, **more: Any) -> tuple[Any, Tensor]:
    with capture(model) as recording:
        logits = model(ids, **more).logits
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return recording, logits.detach()


def test_logits_are_the_models_own_and_outputs_follow_from_the_capture(
    model: Any, tokens: Callable[..., Tensor]
) -> None:
    ids = tokens(2, 20)
    seen: list[Tensor] = []
    names = ("o_proj", "dense")
    projections = [
        module for name, module in model.named_modules()
        if name.split(".")[-1] in names and any(part in name for part in ("attn", "attention"))
    ]  # fmt: skip
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in projections]
    try:
        recording, logits = run(model, ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=2e-5)
    assert len(recording) == 3
    for captured, output in zip(recording.drain(), seen, strict=True):
        group = captured.query.shape[1] // captured.value.shape[1]
        value = captured.value.double().repeat_interleave(group, dim=1)
        expected = (weights(captured) @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(output.detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert len(recording) == 0


def test_the_gradient_of_the_output_is_exact(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(1, 16)
    recording, _ = run(llama, ids, use_cache=False)
    got = {captured.layer: captured.grad_output for captured in recording.drain()}
    outputs: list[Tensor] = []

    def keep(_: Any, given: tuple[Tensor, ...]) -> None:
        given[0].retain_grad()
        outputs.append(given[0])

    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(keep) for layer in llama.model.layers]
    logits = llama(ids, use_cache=False).logits
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for hook in hooks:
        hook.remove()
    llama.zero_grad()
    for layer, output in enumerate(outputs):
        expected = output.grad.view(1, 16, 4, 8).transpose(1, 2)
        torch.testing.assert_close(got[layer], expected, rtol=1e-4, atol=1e-7)


def test_parameters_take_no_gradient_and_are_as_before(llama: Any, tokens: Callable[..., Tensor]) -> None:
    llama.model.norm.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in llama.parameters()]
    try:
        run(llama, tokens(1, 8), use_cache=False)
        assert all(parameter.grad is None for parameter in llama.parameters())
        assert [parameter.requires_grad for parameter in llama.parameters()] == before
        with capture(llama, weight_gradients=True):
            llama(tokens(1, 8), use_cache=False).logits.sum().backward()
        assert llama.model.layers[0].self_attn.q_proj.weight.grad is not None
    finally:
        llama.model.norm.weight.requires_grad_(True)
        llama.zero_grad(set_to_none=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(llama: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any], side: str) -> None:
    rows = [tokens(1, length, seed=length)[0] for length in (5, 12)]
    ids, mask, positions = padded(rows, side)
    settings = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    with torch.no_grad(), capture(llama):
        logits = llama(ids, **settings).logits
    with torch.no_grad():
        for row, alone in enumerate(rows):
            expected = llama(alone[None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=1e-4, atol=2e-5)


def test_encoder(encoder: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any]) -> None:
    rows = [tokens(1, length, seed=length)[0] for length in (7, 12)]
    ids, mask, _ = padded(rows, "right")
    with capture(encoder) as recording:
        logits = encoder(ids, attention_mask=mask).logits
        logits[mask.bool()].square().mean().backward()
    with torch.no_grad():
        expected = encoder(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=2e-5)
    for captured in recording.drain():
        assert not captured.causal and captured.valid is not None
        assert captured.grad_output is not None and captured.grad_output.shape == (2, 4, 12, 8)
        # Nothing flows back to the outputs of padded queries.
        padding = captured.grad_output.transpose(1, 2)[~mask.bool()]
        assert (padding.abs() < 1e-12).all()


def test_misuse(llama: Any, tokens: Callable[..., Tensor]) -> None:
    with capture(llama) as recording:
        with torch.no_grad():
            cache = llama(tokens(1, 4), use_cache=True).past_key_values
        with pytest.raises(
            ValueError, match=r"run the model without a cache \(use_cache=False\), got 1 tokens after 4"
        ):
            llama(tokens(1, 1), past_key_values=cache)
        with pytest.raises(RuntimeError, match=r"cannot be nested on one model"), applied(llama, causal()):
            raise AssertionError("unreachable")
    recording.pop(0)
    with pytest.raises(ValueError, match=r"layer 0 is not in the recording \(it holds \[1, 2\]\)"):
        recording.pop(0)
