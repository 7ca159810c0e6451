"""Profiles of whole models: against autograd through the model's own attention weights, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.masking_utils import eager_mask

from attlas._common.errors import UsageError
from attlas.bridges import describe
from attlas.tune.calibrate import CalibrationItem, response_loss
from attlas.tune.influence import edge_influence
from attlas.tune.profile import Influence, profile

BLOCK = 16


def exact_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention that stays in float64 (transformers' own rounds the weights to float32)."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = scaling * query @ key.mT
    weights = (logits if mask is None else logits + mask[..., : key.shape[2]]).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


transformers.AttentionInterface.register("test_exact", exact_attention)
transformers.AttentionMaskInterface.register("test_exact", eager_mask)


def decoder(kind: str = "Llama", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attn_implementation="test_exact",
        initializer_range=0.3,
        **options,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


def encoder() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        attn_implementation="test_exact",
        initializer_range=0.3,
    )
    return transformers.BertForMaskedLM(config).double().eval()


def item(length: int, tag: str, seed: int) -> CalibrationItem:
    ids = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return CalibrationItem(tuple(ids), ((length - 9, length - 5), (length - 3, length)), tag)


def masked_loss(model: Any, one: CalibrationItem) -> Tensor:
    """Cross-entropy of an encoder at the supervised positions."""
    logits = model(input_ids=torch.tensor([one.ids])).logits[0, one.positions]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(one.ids)[one.positions])


def pooled(pairs: Tensor, length: int) -> Tensor:
    blocks = length // BLOCK
    full = pairs.new_zeros(pairs.shape[0], length, length)
    full[:, : pairs.shape[1], : pairs.shape[2]] = pairs
    return full.view(-1, blocks, BLOCK, blocks, BLOCK).sum((2, 4))


def by_autograd(
    model: Any, items: list[CalibrationItem], length: int, loss: Any, causal: bool
) -> tuple[Tensor, Tensor]:
    """Mean block sums of |E| and A, with A and its gradient taken from the model's eager attention."""
    influences, attentions = [], []
    for one in items:
        caught: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any, caught: list[Tensor] = caught) -> None:
            output[1].retain_grad()
            caught.append(output[1])

        modules = [m for name, m in model.named_modules() if name.endswith(("self_attn", "attention.self"))]
        hooks = [module.register_forward_hook(keep) for module in modules]
        loss(model, one).backward()
        for hook in hooks:
            hook.remove()
        effects = [edge_influence(a.detach()[0], a.grad[0], causal=causal) for a in caught]  # type: ignore[index]
        influences.append(torch.stack([pooled(effect, length) for effect in effects]))
        attentions.append(torch.stack([pooled(a.detach()[0], length) for a in caught]))
    return torch.stack(influences).mean(0), torch.stack(attentions).mean(0)


@pytest.mark.parametrize("kind, options", [("Llama", {}), ("Mistral", {"sliding_window": 20}), ("Qwen2", {})])
def test_a_profile_equals_autograd_through_the_models_own_weights(kind: str, options: dict[str, Any]) -> None:
    model = decoder(kind, **options)
    items = [item(64, "needle", 0), item(50, "text", 1), item(64, "text", 2)]
    got = profile(model, {64: items}, block=BLOCK)
    expected = by_autograd(model, items, 64, response_loss, True)
    torch.testing.assert_close(got.mean(64), expected[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got.mean(64, of="attention"), expected[1], rtol=1e-7, atol=1e-9)
    assert got.causal and got.lengths == (64,) and got.tags(64) == ("needle", "text")
    needle = by_autograd(model, items[:1], 64, response_loss, True)[0]
    text = by_autograd(model, items[1:], 64, response_loss, True)[0]
    mixed = got.mean(64, {"needle": 1.0, "text": 3.0})
    torch.testing.assert_close(mixed, 0.25 * needle + 0.75 * text, rtol=1e-7, atol=1e-9)
    summed = got.mean(64).view(2, 2, 2, 4, 4).sum(2)
    torch.testing.assert_close(got.per_kv_head(64), summed)


def test_an_encoder_is_profiled_over_the_full_square() -> None:
    model, items = encoder(), [item(64, "text", 0), item(40, "text", 1)]
    got = profile(model, {64: items}, block=BLOCK, loss=masked_loss)
    expected = by_autograd(model, items, 64, masked_loss, False)
    assert not got.causal and got.mean(64)[0, :, 0, 3].min() > 0
    torch.testing.assert_close(got.mean(64), expected[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got.mean(64, of="attention"), expected[1], rtol=1e-7, atol=1e-9)


def test_the_model_is_left_as_it_was() -> None:
    model = decoder().train()
    before = model(input_ids=torch.arange(20)[None]).logits
    profile(model, {64: [item(64, "text", 0)]}, block=BLOCK)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(input_ids=torch.arange(20)[None]).logits, before)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_profile_that_was_interrupted_ends_in_the_same_numbers(tmp_path: Path, after: int) -> None:
    model = decoder().float()
    items = {32: [item(32, "text", 0), item(32, "needle", 1)], 64: [item(64, "text", 2), item(64, "text", 3)]}

    def kill(done: int, of: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        profile(model, items, block=BLOCK, path=tmp_path / "profile", progress=kill)
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile"]
    assert len(Influence.load(tmp_path / "profile").done) == after
    steps: list[tuple[int, int]] = []
    resumed = profile(
        model,
        items,
        block=BLOCK,
        path=tmp_path / "profile",
        progress=lambda done, of: steps.append((done, of)),
    )
    assert steps == [(done, 4) for done in range(after, 5)]
    whole = profile(model, items, block=BLOCK)
    assert resumed.counts == whole.counts and resumed.done == whole.done
    for loaded in (resumed, Influence.load(tmp_path / "profile")):
        for place, both in whole.sums.items():
            assert all(torch.equal(loaded.sums[place][name], tensor) for name, tensor in both.items())
    assert Influence.load(tmp_path / "profile").model == describe(model)


def test_a_profile_of_other_items_or_another_model_is_refused(tmp_path: Path) -> None:
    model, path = decoder(), tmp_path / "profile"
    profile(model, {32: [item(32, "text", 0)]}, block=BLOCK, path=path)
    with pytest.raises(UsageError, match="was made from other items or another block size"):
        profile(model, {32: [item(32, "text", 1)]}, block=BLOCK, path=path)
    with pytest.raises(UsageError, match="with its present weights; delete it or choose another folder"):
        profile(decoder(seed=1), {32: [item(32, "text", 0)]}, block=BLOCK, path=path)


def test_a_damaged_or_missing_profile_is_said(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    with pytest.raises(UsageError, match="does not exist; check the path"):
        Influence.load(path)
    profile(decoder(), {32: [item(32, "text", 0)]}, block=BLOCK, path=path)
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-8], b"", b"\x00" * 64):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged .*; delete it and profile again"):
            Influence.load(path)
    path.write_bytes(whole.replace(b'\\"causal\\"', b'\\"casual\\"'))
    with pytest.raises(UsageError, match=r"its contents do not fit together: 'causal'"):
        Influence.load(path)
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(UsageError, match="written by a newer Attlas"):
        Influence.load(path)


@pytest.mark.parametrize(
    "items, text",
    [
        ({}, "items must hold at least one item"),
        ({32: [item(40, "text", 0)]}, "has 40 tokens, more than its length 32; cut its middle"),
        ({40: [item(40, "text", 0)]}, "lengths must be multiples of block 16, got 40"),
    ],
)
def test_wrong_items_are_named(items: dict[int, list[CalibrationItem]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        profile(decoder(), items, block=BLOCK)


def test_a_loss_without_gradient_or_that_is_not_finite_is_said() -> None:
    model, items = decoder(), {32: [item(32, "text", 0)]}
    with pytest.raises(ValueError, match="the loss of a 'text' item is nan; profile in float32 or bfloat16"):
        profile(model, items, block=BLOCK, loss=lambda model, one: response_loss(model, one) * torch.nan)

    def aside(model: Any, one: CalibrationItem) -> Tensor:
        model(input_ids=torch.tensor([one.ids]), use_cache=False)
        return torch.ones((), requires_grad=True) * 2

    with pytest.raises(ValueError, match="layer 0 got no gradient from loss"):
        profile(model, items, block=BLOCK, loss=aside)


def test_a_mix_names_known_tags() -> None:
    got = profile(decoder(), {32: [item(32, "text", 0)]}, block=BLOCK)
    for mix in ({"needle": 1.0}, {"text": -1.0}, {"text": 0.0}):
        with pytest.raises(ValueError, match=r"to tags among \['text'\] of length 32"):
            got.mean(32, mix)
    with pytest.raises(ValueError, match=r"length 64 was not profiled; profiled lengths are \[32\]"):
        got.mean(64)
