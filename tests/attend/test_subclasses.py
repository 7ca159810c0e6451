"""A subclass with a definition of its own is computed by it, never by the fused form of its parent."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.attend import KVView, RowContext, Softmax, Sum, attend, explain, merge, weights
from attlas.pattern import Tokens, causal, window
from attlas.score import Dot, Edge, EdgeBias, PairResult


class Bounded(Dot):
    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        found = super().pair(query, key, value, edge, *tensors)
        return found._replace(logit=found.logit.tanh())


class Shifted(EdgeBias):
    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(tensors[0] + edge.key_position, value)


class Sharper(Softmax):
    def rows(self, logits: Tensor, mask: Tensor, ctx: RowContext, *tensors: Tensor) -> Tensor:
        return super().rows(logits * 3, mask, ctx, *tensors)


class Doubled(Sum):
    def rows(self, weights: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return 2 * super().rows(weights, value, mask)


Named = type("Sum", (Doubled,), {})
"""A class that only bears the name of another."""


@dataclass(frozen=True)
class Rescaled(Dot):
    """Changes a number that pair and fused form share: the fused form stays."""

    def scale_for(self, width: int) -> float:
        return 0.1


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 2, 2, 200, 8, generator=torch.Generator().manual_seed(5))
    return query, key, value


OWN: dict[str, dict[str, Any]] = {
    "score": {"score": Bounded()},
    "bias of rows": {"score": Dot() + Shifted(torch.zeros(200, 1))},
    "normaliser": {"normaliser": Sharper()},
    "normaliser with a sink": {"normaliser": Sharper(0.5)},
    "aggregate": {"aggregate": Doubled()},
    "aggregate by name": {"aggregate": Named()},
    "aggregate and more": {
        "aggregate": Doubled(),
        "extra": [(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 8))],
    },
}


@pytest.mark.parametrize("pattern", [None, causal(), causal() & window(20)], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_an_own_definition_is_computed(name: str, pattern: Any) -> None:
    options = {"pattern": pattern, **OWN[name]}
    expected = attend(*qkv(), backend="reference", **options)
    torch.testing.assert_close(attend(*qkv(), **options), expected, rtol=1.3e-5, atol=1e-5)
    text = explain(*qkv(), **options)
    assert "backend     rows" in text
    for backend in ("block", "sdpa", "flex"):
        with pytest.raises(ValueError, match=f"backend '{backend}' cannot run this request"):
            attend(*qkv(), backend=backend, **options)
    plain = {"pattern": pattern, **({"extra": options["extra"]} if "extra" in options else {})}
    assert not torch.allclose(expected, attend(*qkv(), **plain), atol=1e-2)


def test_an_own_definition_is_computed_on_a_view() -> None:
    query, key, value = qkv()
    held, place = KVView.of(key, value), Tokens(200)
    for options in ({"score": Bounded()}, {"normaliser": Sharper()}, {"aggregate": Doubled()}):
        found = attend(query, held, q_at=place, **options)
        expected = attend(query, key, value, backend="reference", **options)
        torch.testing.assert_close(found, expected, rtol=1.3e-5, atol=1e-5)


def test_refusals_name_the_class() -> None:
    texts = [explain(*qkv(), **OWN[name]) for name in ("score", "normaliser", "aggregate")]
    assert "the score bounded is no dot product" in texts[0]
    assert "its normaliser is softmax, not its subclass Sharper" in texts[1]
    assert "its aggregate is the sum, not its subclass Doubled" in texts[2]


def test_a_shared_definition_stays_fused() -> None:
    assert Bounded().kernel is None and Rescaled().kernel == "dot"
    found = attend(*qkv(), score=Rescaled(), backend="block")
    torch.testing.assert_close(
        found, attend(*qkv(), score=Dot(0.1), backend="reference"), rtol=1e-5, atol=1e-5
    )


def test_aggregates_declare_whether_parts_merge() -> None:
    query, key, value = qkv()
    parts = [
        attend(query, key[:, :, half], value[:, :, half], aggregate=Doubled(), return_state=True)
        for half in (slice(0, 80), slice(80, 200))
    ]
    expected = attend(query, key, value, aggregate=Doubled())
    torch.testing.assert_close(merge(parts)[0], expected, rtol=1e-5, atol=1e-5)

    class Own(Sum):
        mergeable = False

    with pytest.raises(ValueError, match="return_state=True needs parts that merge, but softmax with"):
        attend(query, key, value, aggregate=Own(), return_state=True)


def test_weights_from_a_state_are_those_of_softmax_itself() -> None:
    query, key, _ = qkv()
    with pytest.raises(ValueError, match="a state gives weights for softmax only"):
        weights(query, key, columns=torch.tensor([0]), normaliser=Sharper())
