"""Distillation of a changed pretrained model from the original."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attlas.attend import Sigmoid, Softmax
from attlas.bridges import applied, gates_for, insert, swap
from attlas.train import Recipe, distil, distil_loss

SIZES = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=None, eos_token_id=None)).eval()
    for parameter in made.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return made


def batches(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(2, 31, (8, 16), generator=generator)


def test_the_loss_is_the_divergence_of_real_tokens() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    p, q = (torch.softmax(one.double() / 2, -1) for one in (theirs, ours))
    wanted = 4 * (p * (p / q).log()).sum(-1)
    valid = torch.tensor([[1, 1, 0], [1, 1, 1]])
    student, teacher = (SimpleNamespace(logits=one) for one in (ours, theirs))
    found = distil_loss(student, teacher, temperature=2.0)
    torch.testing.assert_close(found.double(), wanted.mean(), rtol=1e-5, atol=1e-6)
    ours[0, 2], theirs[0, 2] = torch.nan, torch.nan
    found = distil_loss(student, teacher, valid, temperature=2.0)
    torch.testing.assert_close(found.double(), wanted[valid > 0].mean(), rtol=1e-5, atol=1e-6)
    hidden = torch.randn(2, 3, 4)
    student.hidden_states, teacher.hidden_states = (hidden, 1.5 * hidden), (0 * hidden, hidden)
    more = distil_loss(student, teacher, valid, temperature=2.0, layers=3.0)
    torch.testing.assert_close(more - found, torch.tensor(3 * 0.25), rtol=1e-4, atol=1e-5)


def test_gates_and_sinks_learn_what_the_swap_lost(model: Any) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sinks = nn.Parameter(torch.full((2,), 1.0))
    changes = [swap(normaliser=Softmax(sink=sinks), layers=0), swap(normaliser=Sigmoid(-1.0), layers=1)]
    recipe = Recipe(steps=24, learning_rate=3e-2, warm_up=5, weight_decay=0.0)
    with insert(model, "G1", gates_for(model, "G1", form="2-sigmoid", start=1.0, kind="headwise")) as handle:
        losses = distil(model, batches(0), recipe, swap=changes, layers=0.1)
        assert len(losses) == 24 and sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert (sinks < 0.9).all()
        assert all(parameter.abs().max() > 0 for parameter in handle.parameters())
        assert sinks.grad is None and all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_the_teacher_is_the_model_without_its_changes(model: Any) -> None:
    ids = next(batches(5))
    other = copy.deepcopy(model)
    recipe, found = Recipe(steps=1, learning_rate=1e-9), []
    with insert(model, "G1", gates_for(model, "G1", start=0.5)):
        with torch.no_grad():
            divergence = distil_loss(model(ids), other(ids))
        for teacher in (None, other):
            found += distil(model, [ids], recipe, teacher=teacher)
    assert divergence > 0.01
    torch.testing.assert_close(torch.tensor(found), divergence.expand(2), rtol=1e-5, atol=1e-6)


def test_chosen_weights_of_the_model_alone_are_trained(model: Any) -> None:
    teacher, change = copy.deepcopy(model), swap(normaliser=Sigmoid(-1.0))
    recipe = Recipe(steps=30, learning_rate=1e-2, warm_up=5, weight_decay=0.0)
    masked = ({"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches(0))
    losses = distil(model, masked, recipe, swap=change, teacher=teacher, weights=["*.v_proj.weight"])
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    old = dict(teacher.named_parameters())
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, old[name])}
    assert moved == {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)}


def test_padding_is_not_looked_at(model: Any) -> None:
    ids = next(batches(2))[:2]
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    other = ids.masked_fill(mask == 0, 1)
    recipe, found = Recipe(steps=1, learning_rate=1e-9), []
    with insert(model, "G2", gates_for(model, "G2")):
        for tokens in (ids, other):
            found += distil(model, [{"input_ids": tokens, "attention_mask": mask}], recipe)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_errors(model: Any) -> None:
    recipe = Recipe(steps=1)
    with pytest.raises(ValueError, match="nothing to train: insert a module, swap something that holds"):
        distil(model, batches(0), recipe, swap=swap(normaliser=Sigmoid(-1.0)))
    with pytest.raises(ValueError, match="not the original any more: give teacher=, a copy made before"):
        distil(model, batches(0), recipe, weights=["*.v_proj.weight"])
    with pytest.raises(ValueError, match="no parameter of LlamaForCausalLM is named 'proj'"):
        distil(model, batches(0), recipe, weights=["proj"], teacher=model)
    bare = model.model
    with insert(bare, "G1", gates_for(bare, "G1")), pytest.raises(ValueError, match="gives no logits"):
        distil(bare, batches(0), recipe)
    model.activation_checkpointing_enable()
    change = swap(normaliser=Softmax(sink=nn.Parameter(torch.zeros(2))))
    with pytest.raises(ValueError, match="activation checkpointing runs the model again.*nothing is swapped"):
        distil(model, batches(0), recipe, swap=change)
    with applied(model, change), torch.no_grad():
        assert model(next(batches(0)), use_cache=False).logits.isfinite().all()
