"""What was inserted, swapped and trained is written, and read again bitwise; damage is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attlas.attend import L1, Ratio, Sigmoid, Softmax, Threshold
from attlas.bridges import applied, gates_for, insert, inserted, load_changes, save_changes, swap
from attlas.bridges.swap import Swap
from attlas.bridges.written import read_part, write_part
from attlas.pattern import causal, parse, sink, window
from attlas.score import Cosine, DistanceBias, Dot, RowScale


class Push(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.ones(width))

    def forward(self, part: Tensor, x: Tensor) -> Tensor:
        return part + self.step

    def spec(self) -> dict[str, Any]:
        return {"width": len(self.step)}


def changed(model: Any) -> tuple[Any, tuple[Swap, ...]]:
    """A changed copy of the model, with random gates, a learned sink in one layer and one trained weight."""
    torch.manual_seed(3)
    other = copy.deepcopy(model)
    insert(other, "G1", gates_for(other, "G1", kind="headwise", bias=True))
    insert(other, "G2", gates_for(other, "G2", form="add-silu"), layers=[0, 2])
    sinks = nn.Parameter(torch.randn(4))
    swaps = (
        swap(normaliser=Softmax(sink=sinks), layers=1),
        swap(normaliser=Sigmoid(-2.0), pattern=causal() & (window(6) | sink(2)), layers=[0, 2]),
    )
    with torch.no_grad():
        other.model.layers[2].self_attn.v_proj.weight.normal_()
    return other, swaps


@torch.no_grad()
def test_loaded_again_the_logits_are_the_same_bitwise(
    llama: Any, tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    ids, (other, swaps) = tokens(2, 15), changed(llama)
    original = llama(ids).logits
    with applied(other, swaps):
        wanted = other(ids).logits
    folder = save_changes(other, tmp_path / "gated", swap=swaps, weights=["*.2.self_attn.v_proj.weight"])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    changes = load_changes(llama, folder)
    assert [type(one) for one in changes.swap] == [Swap, Swap]
    assert len(changes.swap[0].parameters()) == 1 and changes.swap[1].layers == (0, 2)
    with applied(llama, changes.swap):
        assert torch.equal(llama(ids).logits, wanted)
    assert not torch.equal(llama(ids).logits, original)
    changes.remove()
    assert torch.equal(llama(ids).logits, original) and not inserted(llama)
    with load_changes(llama, folder), applied(llama, changes.swap):
        assert torch.equal(llama(ids).logits, wanted)
    assert torch.equal(llama(ids).logits, original)


def test_saving_again_leaves_one_whole_set(llama: Any, tmp_path: Path) -> None:
    with insert(llama, "G1", gates_for(llama, "G1"), layers=0) as handle:
        save_changes(llama, tmp_path)
        with torch.no_grad():
            next(handle.parameters()).zero_()
        save_changes(llama, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    with load_changes(llama, tmp_path) as changes:
        assert next(changes.insertions[0].parameters()).abs().max() == 0


def test_another_base_model_is_refused(llama: Any, families: Any, tmp_path: Path) -> None:
    with insert(llama, "G1", gates_for(llama, "G1")):
        save_changes(llama, tmp_path)
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.neg_()
    for model in (other, families("qwen3")):
        with pytest.raises(ValueError, match="made for another base model: .*llama.*its weights differ"):
            load_changes(model, tmp_path)
        assert not inserted(model)
    half = copy.deepcopy(llama).bfloat16()
    with load_changes(half, tmp_path):
        assert len(inserted(half)) == 3


def test_modules_of_your_own_are_named_when_loading(
    llama: Any, tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    ids = tokens(1, 5)
    with insert(llama, "v", Push(8), layers=1), torch.no_grad():
        wanted = llama(ids).logits
        save_changes(llama, tmp_path)
    with pytest.raises(ValueError, match=r"kind 'Push', which is not .*modules={'Push': make}.*'width': 8"):
        load_changes(llama, tmp_path)
    with load_changes(llama, tmp_path, modules={"Push": Push}), torch.no_grad():
        assert torch.equal(llama(ids).logits, wanted)
    with pytest.raises(ValueError, match="the weights of Push in layer 1 do not fit"):
        load_changes(llama, tmp_path, modules={"Push": lambda width: Push(1)})
    assert not inserted(llama)


def test_damage_is_told(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="changes .*changes.json does not exist; check the path"):
        load_changes(llama, tmp_path)
    with insert(llama, "G1", gates_for(llama, "G1"), layers=0):
        save_changes(llama, tmp_path)
    body = json.loads((tmp_path / "changes.json").read_text())
    (held,) = tmp_path.glob("*.safetensors")
    good = held.read_bytes()
    held.write_bytes(good[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged: its content is not what .*changes.json says"):
        load_changes(llama, tmp_path)
    held.unlink()
    with pytest.raises(ValueError, match="safetensors, which .* names, cannot be read: No such file"):
        load_changes(llama, tmp_path)
    held.write_bytes(good)
    for change, text in (
        ({"version": 2}, "written by a newer Attlas"),
        ({"schema": "attlas.plan"}, "is not a file of schema 'attlas.changes'"),
        ({"weights": ["a.b"]}, r"holds weights that this model or the tensor file has not: \['a.b'\]"),
        (
            {"swap": [{**EMPTY, "normaliser": {"kind": "os.system", "fields": {}}}]},
            "is damaged, or of a newer Attlas: .*os.system.* is no normaliser or score",
        ),
        (
            {"swap": [{**EMPTY, "score": {"kind": "Dot", "fields": {"slope": 1}}}]},
            "is damaged, or of a newer Attlas: .*unexpected keyword argument",
        ),
    ):
        (tmp_path / "changes.json").write_text(json.dumps({**body, **change}))
        with pytest.raises(ValueError, match=text):
            load_changes(llama, tmp_path)
        assert not inserted(llama)


EMPTY = {"layers": None, "normaliser": None, "score": None, "pattern": None, "plan": None}


def test_what_cannot_be_written_is_said(llama: Any, tmp_path: Path) -> None:
    class Mine(Sigmoid):
        pass

    with pytest.raises(ValueError, match=r"swap.0.normaliser cannot be written: .*save without swap="):
        save_changes(llama, tmp_path, swap=swap(normaliser=Mine(-1.0)))
    with pytest.raises(ValueError, match=r"no parameter of LlamaForCausalLM is named 'a\*'; they are named"):
        save_changes(llama, tmp_path, weights=["a*"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "part",
    [
        Softmax() >> Threshold(0.2) >> L1(),
        Ratio("relu", 1e-3),
        Dot(0.5) + DistanceBias(torch.tensor([0.5, 0.25])),
        RowScale(torch.arange(4.0)) * Cosine(3.0),
    ],
)
def test_parts_come_back_as_they_were(part: Any) -> None:
    tensors: dict[str, Tensor] = {}
    written = json.loads(json.dumps(write_part(part, "x", tensors)))
    again = read_part(written, tensors, "here")
    assert type(again) is type(part) and again.name == part.name
    q, k = torch.randn(1, 2, 4, 6), torch.randn(1, 2, 4, 6)
    from attlas.attend import Normaliser, attend

    name = "normaliser" if isinstance(part, Normaliser) else "score"
    found = [attend(q, k, k, pattern=parse("causal"), **{name: one}) for one in (part, again)]
    assert torch.equal(*found)
