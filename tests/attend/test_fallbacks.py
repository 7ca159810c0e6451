"""What leaves the fused path is told: by torch's own attention, by edge features, by a plan."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.attend import KVView, attend, counting, explain, plan
from attlas.pattern import Tokens, causal, per_head, window
from attlas.score import Cosine, Dot, Edge, EdgeBias, PairResult, Score


def qkv(
    length: int = 50, heads: int = 4, kv_heads: int = 2, width: int = 8, **kind: Any
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, heads, length, width), (2, kv_heads, length, width), (2, kv_heads, length, width))
    query, key, value = (torch.randn(*shape, generator=generator, **kind) for shape in shapes)
    return query, key, value


def test_sdpa_tells_of_torchs_silent_fallbacks() -> None:
    tensors = qkv()
    bias = torch.zeros(50, 50, requires_grad=True)
    bias.data[3, 4] = 1.0
    with counting() as heard:
        attend(*tensors, score=Dot() + EdgeBias(bias), backend="sdpa")
    assert [record["why"] for record in heard.records()] == [
        "sdpa computes the whole N × M matrix when a bias needs gradient"
    ]
    with pytest.raises(ValueError, match="strict=True forbids a fallback, but sdpa computes the whole"):
        attend(*tensors, score=Dot() + EdgeBias(bias), backend="sdpa", strict=True)
    # Torch itself agrees: 0 is its plain path, 1 its fused one.
    wide = tensors[1].repeat_interleave(2, 1)
    assert torch._fused_sdp_choice(tensors[0], wide, wide, attn_mask=bias) == 0
    assert torch._fused_sdp_choice(tensors[0], wide, wide, attn_mask=bias.detach()) == 1
    assert torch._fused_sdp_choice(tensors[0], wide, wide[..., :5]) == 0  # hence the zero columns
    strided = wide.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch._fused_sdp_choice(tensors[0], strided, wide) == 0  # hence the copy


class Asked(torch.overrides.TorchFunctionMode):
    """Asks torch, at each call of its attention, which way it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.ways.append(torch._fused_sdp_choice(*args, **kwargs))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "pattern", [None, causal(), causal() & window(9), per_head([causal(), window(9)] * 2)]
)
@pytest.mark.parametrize("score", [Dot(), Cosine(), Dot() + EdgeBias(torch.eye(50))], ids=lambda s: s.name)
@pytest.mark.parametrize(
    "form", ["plain", "one query batch", "narrow values", "strided", "one KV head", "padded"]
)
def test_sdpa_stays_fused_where_it_tells_of_no_fallback(form: str, score: Score, pattern: Any) -> None:
    query, key, value = qkv(kv_heads=1 if form == "one KV head" else 2)
    if form == "one query batch":
        query, key = query[:1], key[:1]
    elif form == "narrow values":
        value = value[..., :5]
    elif form == "strided":
        query, key, value = (t.transpose(1, 3).contiguous().transpose(1, 3) for t in (query, key, value))
    options: dict[str, Any] = {"pattern": pattern, "score": score}
    if form == "padded":
        options["k_at"] = Tokens(50, valid=torch.arange(50) > 3)
    query.requires_grad_()
    with Asked() as asked, counting() as heard:
        attend(query, key, value, backend="sdpa", **options)
    assert asked.ways == [1] and len(heard) == 0


def test_edge_features_leave_a_trace() -> None:
    """`return_edge` runs on rows whatever else could run: that is a fallback like any other."""

    class Telling(Dot):
        def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
            found = super().pair(query, key, value, edge)
            return found._replace(state=found.logit)

    tensors = qkv()
    with counting() as heard:
        attend(*tensors, pattern=causal(), score=Telling(), return_edge=True)
    (record,) = heard.records()
    assert record["what"] == "attend ran on rows" and "the generic row-block backend runs it" in str(
        record["why"]
    )
    options = {"pattern": causal(), "score": Telling(), "return_edge": True}
    assert "fallback    the generic row-block backend runs it" in explain(*tensors, **options)
    with pytest.raises(ValueError, match="strict=True forbids a fallback.*telling is no dot product"):
        attend(*tensors, strict=True, **options)


def test_a_plan_tells_when_a_later_call_falls_back() -> None:
    tensors = qkv(100)
    places = Tokens.at(torch.arange(100).flip(0))
    step, strict = (plan(*tensors, pattern=causal(), strict=strict) for strict in (False, True))
    assert step.choice.name == "sdpa"
    with counting() as heard:
        step(*tensors)
        found = step(*tensors, q_at=places, k_at=places)
    assert [record["why"] for record in heard.records()] == ["sdpa needs an N × M mask here"]
    wanted = attend(*tensors, pattern=causal(), q_at=places, k_at=places, backend="reference")
    torch.testing.assert_close(found, wanted, rtol=1.3e-5, atol=1e-5)
    with pytest.raises(ValueError, match="strict=True forbids a fallback, but sdpa needs an N × M mask"):
        strict(*tensors, q_at=places, k_at=places)
    with pytest.raises(
        ValueError, match="the plan's backend 'sdpa' cannot run this call: it takes key and value tensors"
    ):
        step(tensors[0], KVView.of(*tensors[1:]), q_at=Tokens(100))
