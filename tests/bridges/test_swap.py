"""Other normalisers and scores in a pretrained model, against a dense attention function of the test's "
"own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.attend import L1, Identity, SenderSoftmax, Sigmoid, Softmax
from attlas.bridges import Swap, UnsupportedModel, applied, describe, swap
from attlas.bridges.swap import _check_kinds
from attlas.cache import H2O, EvictingCache
from attlas.pattern import causal, sink, uniform_plan, window
from attlas.score import Cosine, DistanceBias, Dot

WEIGHTS: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "sigmoid": (Sigmoid(bias=-3.0), lambda s, seen: torch.sigmoid(s - 3) * seen),
    "sigmoid by edges": (
        Sigmoid(),
        lambda s, seen: torch.sigmoid(s - seen.sum(-1, keepdim=True).log()) * seen,
    ),
    "softplus": (
        L1("softplus"),
        lambda s, seen: torch.nn.functional.normalize(torch.nn.functional.softplus(s) * seen, p=1, dim=-1),
    ),
    "off by one": (
        Softmax(sink=0.0),
        lambda s, seen: s.exp() * seen / (1 + (s.exp() * seen).sum(-1, keepdim=True)),
    ),
}


@pytest.fixture
def dtype() -> torch.dtype:
    return torch.float64


@contextmanager
def dense_attention(model: Any, weigh: Any, unit: bool = False, layers: Any = None) -> Iterator[None]:
    """The model with attention written out densely: `weigh(logits, seen)`; unit: cosines of 10."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attention(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any
    ) -> tuple[Tensor, None]:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool) if mask is None else mask == 0
        if unit and (layers is None or module.layer_idx in layers):
            q, k = (10**0.5 * part / part.norm(dim=-1, keepdim=True) for part in (q, k))
            logits = q @ k.mT
        else:
            logits = q @ k.mT * more["scaling"]
        rule = weigh if layers is None or module.layer_idx in layers else _softmax
        return (rule(logits, seen.to(q.dtype)) @ v).transpose(1, 2), None

    AttentionInterface.register("test-dense", attention)
    AttentionMaskInterface.register("test-dense", eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("test-dense")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _softmax(logits: Tensor, seen: Tensor) -> Tensor:
    return torch.softmax(logits.masked_fill(seen == 0, -torch.inf), -1)


@torch.no_grad()
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("family", ["llama, grouped", "gemma3, partly sliding"])
def test_a_swapped_normaliser_is_the_formula(
    families: Any, tokens: Callable[..., Tensor], family: str, name: str
) -> None:
    model, ids = families(family, torch.float64), tokens(2, 20)
    normaliser, weigh = WEIGHTS[name]
    with dense_attention(model, weigh):
        wanted = model(ids, use_cache=False).logits
    with applied(model, swap(normaliser=normaliser)):
        found = model(ids, use_cache=False).logits
    # The models' norms and rotary angles are float32 inside, in both.
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert (found - model(ids, use_cache=False).logits).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", WEIGHTS)
def test_decoding_agrees_with_the_whole(llama: Any, tokens: Callable[..., Tensor], name: str) -> None:
    """By the ragged cache and by transformers' own, in chunks and token by token; and `generate`."""
    from transformers import DynamicCache

    ids, normaliser = tokens(2, 18), WEIGHTS[name][0]
    for pattern in (None, causal() & (window(5) | sink(2))):
        with applied(llama, swap(normaliser=normaliser, pattern=pattern)) as handle:
            whole = llama(ids, use_cache=False).logits
            for cache in (handle.new_cache(total=18), DynamicCache(config=llama.config)):
                rows = [
                    llama(piece, past_key_values=cache).logits for piece in ids.split([9, 4, *[1] * 5], 1)
                ]
                torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-7, atol=1e-7)
    with applied(llama, swap(normaliser=normaliser), total=23):
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
        assert torch.equal(llama.generate(ids, **settings), llama.generate(ids, use_cache=False, **settings))


@torch.no_grad()
def test_padding_changes_nothing(
    llama: Any, tokens: Callable[..., Tensor], padded: Callable[..., Any]
) -> None:
    rows = [tokens(1, length, seed=length)[0] for length in (5, 12)]
    for side in ("left", "right"):
        ids, mask, positions = padded(rows, side)
        with applied(llama, swap(normaliser=Sigmoid())):
            together = llama(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            for row, prompt in enumerate(rows):
                alone = llama(prompt[None], use_cache=False).logits[0]
                torch.testing.assert_close(together[row, mask[row] > 0], alone, rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_a_score_for_some_layers(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 20)
    with dense_attention(llama, _softmax, unit=True, layers=(0, 2)):
        wanted = llama(ids, use_cache=False).logits
    change = swap(score=Cosine(10.0), layers=[0, 2])
    with applied(llama, change) as handle:
        torch.testing.assert_close(llama(ids, use_cache=False).logits, wanted, rtol=1e-6, atol=1e-6)
        cache = handle.new_cache(total=20)
        rows = [llama(token, past_key_values=cache).logits for token in ids.split(1, 1)]
        torch.testing.assert_close(torch.cat(rows, 1), wanted, rtol=1e-6, atol=1e-6)
    own = llama(ids, use_cache=False).logits
    assert (own - wanted).abs().max() > 1e-3
    with applied(llama, [change, swap(score=Dot(), normaliser=Softmax(), layers=1)]):
        torch.testing.assert_close(llama(ids, use_cache=False).logits, wanted, rtol=1e-6, atol=1e-6)
    with applied(llama, swap(score=Dot())):
        torch.testing.assert_close(llama(ids, use_cache=False).logits, own, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_swaps_compose_with_a_plan(llama: Any, tokens: Callable[..., Tensor]) -> None:
    ids, plan = tokens(1, 200), uniform_plan(describe(llama), density=0.4)
    logits = {}
    for what, given in {
        "plan": plan,
        "softmax": swap(normaliser=Softmax(), plan=plan),
        "biased": swap(score=Dot() + DistanceBias(torch.tensor([0.5] * 4, dtype=torch.float64)), plan=plan),
        "sigmoid": swap(normaliser=Sigmoid(-2.0), plan=plan),
        "dense": swap(normaliser=Sigmoid(-2.0)),
    }.items():
        with applied(llama, given) as handle:
            logits[what] = llama(ids, use_cache=False).logits
            cache = handle.new_cache(total=200)
            rows = [llama(piece, past_key_values=cache).logits for piece in ids.split([196, *[1] * 4], 1)]
            torch.testing.assert_close(torch.cat(rows, 1), logits[what], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(logits["softmax"], logits["plan"], rtol=1e-7, atol=1e-7)
    for one, other in (("plan", "biased"), ("sigmoid", "dense"), ("plan", "sigmoid")):
        assert (logits[one] - logits[other]).abs().max() > 1e-3


@torch.no_grad()
def test_an_encoder(encoder: Any, tokens: Callable[..., Tensor]) -> None:
    ids = tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with dense_attention(encoder, WEIGHTS["sigmoid"][1]):
        wanted = encoder(ids, attention_mask=mask).logits
    for normaliser in (Sigmoid(-3.0), SenderSoftmax()):
        with applied(encoder, swap(normaliser=normaliser)):
            found = encoder(ids, attention_mask=mask).logits
        same = torch.allclose(found[mask > 0], wanted[mask > 0], rtol=1e-6, atol=1e-6)
        assert same == isinstance(normaliser, Sigmoid)


def test_gradients_reach_a_learned_sink(llama: Any, tokens: Callable[..., Tensor]) -> None:
    sink = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    change, ids = swap(normaliser=Softmax(sink=sink)), tokens(1, 9)
    assert change.parameters() == (sink,)
    with applied(llama, change):
        loss = llama(ids, labels=ids, use_cache=False).loss
    loss.backward()
    llama.zero_grad()
    step = 1e-4
    values = []
    for way in (1, -1):
        moved = sink.detach() + way * step * torch.tensor([0.0, 1.0, 0.0, 0.0])
        with torch.no_grad(), applied(llama, swap(normaliser=Softmax(sink=moved))):
            values.append(llama(ids, labels=ids, use_cache=False).loss)
    assert sink.grad is not None
    # The loss is computed in float32, which the difference divides by the step.
    torch.testing.assert_close(
        sink.grad[1], (values[0] - values[1]).double() / (2 * step), rtol=0.05, atol=2e-3
    )


def test_a_cache_that_weighs_by_softmax_is_refused(llama: Any, tokens: Callable[..., Tensor]) -> None:
    for change, text in (
        (swap(normaliser=Sigmoid(-3.0)), "attends by the normaliser sigmoid"),
        (swap(score=Cosine()), "attends by the score cosine"),
    ):
        cache = EvictingCache(H2O(4, 4), layers=3)
        with (
            torch.no_grad(),
            applied(llama, change),
            pytest.raises(UnsupportedModel, match=f"layer 0 {text}.*an EvictingCache weighs its keys by"),
        ):
            llama(tokens(1, 9), past_key_values=cache)


def test_errors(llama: Any, tokens: Callable[..., Tensor]) -> None:
    plan = uniform_plan(describe(llama), density=0.4)
    with pytest.raises(ValueError, match="swap has nothing to exchange: give normaliser, score, pattern or"):
        swap()
    with pytest.raises(ValueError, match="give either pattern or plan, not both"):
        swap(pattern=causal(), plan=plan)
    for given, kind, text in (
        (swap(normaliser=Identity(), layers=[3]), ValueError, r"different numbers of 0 .. 2 .*, got \[3\]"),
        (swap(normaliser=Identity(), layers=[]), ValueError, r"different numbers of 0 .. 2 .*, got \[\]"),
        (swap(normaliser=Identity(), layers=[1, 1]), ValueError, r"different numbers .*, got \[1, 1\]"),
        (
            [swap(score=Dot()), swap(score=Cosine(), layers=2)],
            ValueError,
            "two swaps exchange the score of layer 2: give each layer one",
        ),
        ([swap(score=Dot()), causal()], TypeError, "swaps alone or patterns alone: give a pattern as swap"),
        (
            swap(normaliser=SenderSoftmax(), layers=1),
            ValueError,
            "layer 1 of LlamaForCausalLM would see the future: under the normaliser sender_softmax",
        ),
    ):
        with pytest.raises(kind, match=text), applied(llama, given):
            raise AssertionError("unreachable")
    assert isinstance(swap(score=Dot()), Swap)


def test_the_generic_backend_is_told_and_strict_refuses_it(llama: Any, tokens: Callable[..., Tensor]) -> None:
    with torch.no_grad(), applied(llama, swap(normaliser=Sigmoid(-3.0))) as handle:
        llama(tokens(1, 9), use_cache=False)
    assert "attend ran on rows" in {note["what"] for note in handle.fallbacks}
    with (
        torch.no_grad(),
        applied(llama, swap(normaliser=Sigmoid(-3.0)), strict=True),
        pytest.raises(ValueError, match="strict"),
    ):
        llama(tokens(1, 9), use_cache=False)


def test_a_class_is_told_to_be_made_first() -> None:
    with pytest.raises(TypeError, match="normaliser must be a Normaliser, made ready to use, got <class"):
        _check_kinds({"normaliser": Softmax, "score": None})


def test_layers_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"swap layers must be numbers of layers, whole ones, got \[True\]"):
        swap(normaliser=Identity(), layers=[True])
