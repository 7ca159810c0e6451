"""Modules inserted into pretrained models of every known architecture, at every point."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attlas.bridges import UnsupportedModel, applied, describe, gates_for, insert, inserted, paused
from attlas.bridges.models import wiring
from attlas.bridges.points import ARCHITECTURES, POINTS
from attlas.layers import Gate, LearnedGate
from attlas.pattern import causal, sink, uniform_plan, window

MORE = {
    "phi, normed": ("Phi", {"qk_layernorm": True}),
    "phi3": ("Phi3", {"num_key_value_heads": 2}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 8}),
}
KNOWN = (
    "llama, grouped",
    "qwen2",
    "qwen3",
    "gpt-neox",
    "gemma3, partly sliding",
    "phi",
    "bert",
    "gpt2",
    *MORE,
)
GATES = {"G1": "head_out", "G2": "v", "G3": "k_normed", "G4": "q_normed", "G5": "attn_out"}


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    sizes = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def network(request: Any, families: Any, encoder: Any, make_tiny: Any) -> Any:
    name = request.param
    if name == "bert":
        return encoder
    if name == "gpt2":
        return gpt2()
    if name in MORE:
        return make_tiny(MORE[name][0], **MORE[name][1])
    return families(name)


every = pytest.mark.parametrize("network", KNOWN, indirect=True)


class Record(nn.Module):
    """Keeps what passes, and lets it pass."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, part: Tensor, x: Tensor) -> Tensor:
        self.seen.append((part.detach(), x.detach()))
        return part * self.factor


def traces(model: Any) -> Any:
    return (
        [name for name, _ in model.named_modules()],
        sorted(model.state_dict()),
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
    )


def shapes(model: Any, batch: int, count: int) -> dict[str, tuple[int, ...]]:
    found = describe(model)
    hidden = (batch, count, model.config.hidden_size)
    query, key = ((batch, heads, count, found.head_width) for heads in (found.heads, found.kv_heads))
    return {
        "layer_in": hidden, "attn_out": hidden, "q": query, "q_normed": query, "head_out": query, "k": key,
        "k_normed": key, "v": key,
    }  # fmt: skip


@torch.no_grad()
@every
def test_every_point_passes_what_the_attention_gets(network: Any, tokens: Callable[..., Tensor]) -> None:
    """q, k, v and head_out make up attention; rotation and positions apart, keys and values are the "
    "cached."""
    ids = tokens(2, 7)
    logits, before = network(ids).logits, traces(network)
    records = {where: Record() for where in POINTS}
    handles = [insert(network, where, record, layers=1) for where, record in records.items()]
    assert torch.equal(network(ids).logits, logits)
    assert len(inserted(network)) == len(POINTS)
    wanted = shapes(network, 2, 7)
    for where, record in records.items():
        ((part, x),) = record.seen
        assert tuple(part.shape) == wanted[where], where
        assert torch.equal(x, records["layer_in"].seen[0][0])

    class Caught(Exception):
        pass

    def catch(layer: int, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        if layer < 1:
            out: Tensor = torch.zeros_like(query)
            return out
        if layer == 1:
            raised.append((query, key, value))
        raise Caught

    raised: list[tuple[Tensor, Tensor, Tensor]] = []
    from attlas.bridges.attention import installed

    class Handler:
        attention = staticmethod(catch)

    with installed(network, wiring(network), Handler(), {}), pytest.raises(Caught):
        network(ids, **({} if network.config.model_type == "bert" else {"use_cache": False}))
    ((query, key, value),) = raised
    parts = {where: record.seen[1][0] for where, record in records.items() if where[0] in "qkv"}
    assert torch.equal(parts["v"], value)
    for where, whole in (("q_normed", query), ("k_normed", key)):
        # Rotation keeps lengths; the first token stands where nothing is rotated.
        torch.testing.assert_close(parts[where].norm(dim=-1), whole.norm(dim=-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts[where][:, :, 0], whole[:, :, 0], rtol=1e-5, atol=1e-5)
    for handle in handles:
        handle.remove()
        handle.remove()
    assert traces(network) == before
    assert torch.equal(network(ids).logits, logits)


@every
def test_gates_start_unchanged_are_trained_and_leave_no_trace(
    network: Any, tokens: Callable[..., Tensor]
) -> None:
    ids = tokens(2, 7)
    with torch.no_grad():
        logits, before = network(ids).logits, traces(network)
    shape, plan = describe(network), None if network.config.model_type == "bert" else True
    for form, start, kind in (("2-sigmoid", 1.0, "elementwise"), ("add-silu", 0.0, "headwise")):
        handles = []
        for place in GATES:
            handles.append(
                insert(network, place, gates_for(network, place, form=form, start=start, kind=kind))
            )
        assert describe(network) == shape
        if plan:
            assert uniform_plan(describe(network), density=0.5).model == shape
        out = network(ids).logits
        assert torch.equal(out, logits)
        out.sum().backward()
        names = [name for name, _ in network.named_parameters() if ".attlas_" in name]
        assert len(names) == 5 * shape.layers and all(name in network.state_dict() for name in names)
        moved = {
            name: weight.grad.abs().max() for name, weight in network.named_parameters() if name in names
        }
        assert min(moved.values()) > 0
        with torch.no_grad():
            for handle in handles:
                for parameter in handle.parameters():
                    parameter.normal_()
            changed = network(ids).logits
            assert not torch.equal(changed, logits)
            with paused(network):
                assert torch.equal(network(ids).logits, logits)
            assert torch.equal(network(ids).logits, changed)
        for handle in handles:
            handle.remove()
    network.zero_grad()
    assert traces(network) == before
    with torch.no_grad():
        assert torch.equal(network(ids).logits, logits)


@torch.no_grad()
@every
def test_a_gate_is_the_formula_in_the_weights(network: Any, tokens: Callable[..., Tensor]) -> None:
    """A gate that is one constant per head and channel is a factor of the projections' weights."""
    found, ids = describe(network), tokens(2, 7)
    kind, heads, width = network.config.model_type, found.heads, found.head_width
    gate = LearnedGate(heads, width, form="add-identity", start=0.0)
    gate.theta.normal_()
    other = copy.deepcopy(network)
    site = wiring(other).modules[1]
    out = {"bert": None, "gpt2": "c_proj", "gpt_neox": "dense", "phi": "dense"}.get(kind, "o_proj")
    linear = other.bert.encoder.layer[1].attention.output.dense if out is None else getattr(site, out)
    added = gate.theta[0, :, 0].flatten()
    weight = linear.weight.T if kind == "gpt2" else linear.weight
    extra = weight @ added
    if linear.bias is None:
        linear.bias = nn.Parameter(extra)
    else:
        linear.bias += extra
    with insert(network, "G1", gate, layers=1):
        torch.testing.assert_close(network(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cached_decoding_agrees_also_under_a_plan(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 20)
    torch.manual_seed(3)
    handles = [insert(llama, place, gates_for(llama, place)) for place in GATES]
    try:
        whole = llama(ids, use_cache=False).logits
        cache, rows = None, []
        for piece in ids.split([9, *[1] * 11], 1):
            out = llama(piece, past_key_values=cache)
            cache = out.past_key_values
            rows.append(out.logits)
        torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-4)
        with applied(llama, causal() & (window(4) | sink(2))) as handle:
            whole = llama(ids, use_cache=False).logits
            ragged = handle.new_cache(total=20)
            rows = [llama(piece, past_key_values=ragged).logits for piece in ids.split([9, *[1] * 11], 1)]
            torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-4)
    finally:
        for one in handles:
            one.remove()


@torch.no_grad()
def test_the_order_is_that_of_insertion_and_copies_are_their_own(
    llama: Any, tokens: Callable[..., Tensor]
) -> None:
    class Plus(nn.Module):
        def forward(self, part: Tensor, x: Tensor) -> Tensor:
            return part + 1.0

    class Twice(nn.Module):
        def forward(self, part: Tensor, x: Tensor) -> Tensor:
            return 2.0 * part

    ids, record = tokens(1, 5), Record()
    with (
        insert(llama, "v", Record(), layers=0) as first,
        insert(llama, "v", Plus(), layers=0),
        insert(llama, "v", Twice(), layers=0),
        insert(llama, "v", record, layers=0),
    ):
        logits = llama(ids).logits
        other = copy.deepcopy(llama)
        before = first.slots[0].module.seen[0][0]
        torch.testing.assert_close(record.seen[0][0], 2 * (before + 1))
        for parameter in other.model.layers[0].self_attn.attlas_v_0.parameters():
            parameter.zero_()
        assert torch.equal(llama(ids).logits, logits)
        assert not torch.equal(other(ids).logits, logits)
    assert len(inserted(other)) == 4 and not inserted(llama)


def test_what_is_described(llama: Any) -> None:
    with insert(llama, "G2", gates_for(llama, "G2", kind="headwise"), layers=[0, 2]) as handle:
        spec = {
            "width": 32, "heads": 2, "head_width": 8, "kind": "headwise", "form": "sigmoid", "bias": False
        }  # fmt: skip
        assert handle.describe() == [
            {"layer": layer, "where": "v", "kind": "Gate", "spec": spec} for layer in (0, 2)
        ]
        assert handle.names == ("attlas_v_0", "attlas_v_0")


def test_it_takes_the_models_type(llama: Any, tokens: Callable[..., Tensor]) -> None:
    half = copy.deepcopy(llama).bfloat16()
    insert(half, "G1", gates_for(half, "G1", form="2-sigmoid", start=1.0))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert half(tokens(1, 5)).logits.isfinite().all()


@torch.no_grad()
def test_padding_does_not_leak(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids, mask = tokens(1, 9), torch.ones(1, 9, dtype=torch.long)
    mask[:, 6:] = 0
    torch.manual_seed(3)
    with insert(llama, "G1", gates_for(llama, "G1")), insert(llama, "G2", gates_for(llama, "G2")):
        alone = llama(ids[:, :6]).logits
        torch.testing.assert_close(llama(ids, attention_mask=mask).logits[:, :6], alone, rtol=1e-4, atol=1e-4)


def test_errors(llama: Any, families: Any, tokens: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must be one of layer_in: .*; or G1 .. G5 for a gate; got 'mlp'"):
        insert(llama, "mlp", Record(), layers=0)
    with pytest.raises(
        ValueError, match="one module goes into one layer, but 3 are meant: name it by layers="
    ):
        insert(llama, "v", Record())
    with pytest.raises(ValueError, match=r"Identity must be callable as module\(part, x\)"):
        insert(llama, "v", nn.Identity(), layers=0)
    wrong: Any = lambda layer: 3  # noqa: E731
    with pytest.raises(
        TypeError, match="module must be a torch.nn.Module, or a function that makes one, got 3"
    ):
        insert(llama, "v", wrong)
    with pytest.raises(ValueError, match="must be for 2 heads of width 8, got 4 and 8; gates_for"):
        insert(llama, "G2", Gate(32, 4, 8), layers=0)
    with pytest.raises(ValueError, match="takes inputs of width 32, got one for 16"):
        insert(llama, "G1", Gate(16, 4, 8), layers=0)
    qwen3 = families("qwen3")
    with pytest.raises(
        ValueError, match=r"cancels a factor per head: insert the gate at k_normed \(G3, G4\)"
    ):
        insert(qwen3, "k", Gate(32, 2, 8, kind="headwise"), layers=0)
    with insert(qwen3, "k", Gate(32, 2, 8), layers=0):
        pass

    class Short(nn.Module):
        def forward(self, part: Tensor, x: Tensor) -> Tensor:
            return part[..., :1]

    with (
        insert(llama, "v", Short(), layers=1),
        pytest.raises(
            ValueError, match=r"Short at v of layer 1 must give a tensor of the shape \(1, 2, 5, 8\)"
        ),
    ):
        llama(tokens(1, 5))
    assert not inserted(llama)


def test_other_architectures_are_refused(make_tiny: Any) -> None:
    model = make_tiny("StableLm", num_key_value_heads=2)
    with pytest.raises(
        UnsupportedModel, match="is of the type stablelm, whose points of attention are not known"
    ):
        insert(model, "v", Record(), layers=0)


def test_every_architecture_is_tested() -> None:
    assert set(ARCHITECTURES) == {
        "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "bert"
    }  # fmt: skip


def test_a_module_of_two_layers_is_refused(llama: Any) -> None:
    one = Gate(32, 4, 8)
    with pytest.raises(ValueError, match="the Gate for layer 1, or a weight of it, stands in layer 0: saved"):
        insert(llama, "G1", lambda layer: one)
    assert not inserted(llama)
    with insert(llama, "G1", one, layers=0):
        with pytest.raises(ValueError, match="the Gate for layer 1, .* stands in the model already"):
            insert(llama, "G1", one, layers=1)
        tied = Gate(32, 4, 8)
        tied.weight = one.weight
        with pytest.raises(ValueError, match="the Gate for layer 2, .* stands in the model already"):
            insert(llama, "G1", tied, layers=2)
        assert len(inserted(llama)) == 1
    with insert(llama, "G1", lambda layer: copy.deepcopy(one)) as handle:
        assert len({id(weight) for weight in handle.parameters()}) == 3
