"""Attention over parts of the keys, merged, is attention over all keys: in value and in gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attlas.attend import L1, Identity, Normaliser, Ratio, Sigmoid, Softmax, State, attend, merge
from attlas.pattern import Pattern, causal, dense, key, sink, window

LENGTH = 70
MERGEABLE: dict[str, Normaliser] = {
    "softmax": Softmax(),
    "softmax, sink": Softmax(0.4),
    "softmax, large sink": Softmax(60.0),
    "sigmoid": Sigmoid(-1.0),
    "identity": Identity(),
    "softplus": L1("softplus"),
    "ratio": Ratio("relu", 0.1),
}
PATTERNS: dict[str, Pattern] = {
    "dense": dense(),
    "causal": causal(),
    "window and sink": causal() & (window(9) | sink(2)),
    "empty rows": causal() - window(30),
}
BACKENDS = ("reference", "rows", "block")


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    query, key, value = (
        torch.randn(2, heads, LENGTH, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for heads, width in ((4, 8), (2, 8), (2, 8))
    )
    return query, key, value


def gradients(out: Tensor, state: State, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Of a function of out and of the lse of rows that have edges."""
    some = state.lse > -float("inf")
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    loss = (out * weight).sum() + torch.where(some, state.lse, 0.0).sin().sum()
    return [g for g in torch.autograd.grad(loss, inputs, allow_unused=True) if g is not None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("normaliser", MERGEABLE)
def test_merged_parts_equal_the_whole(normaliser: str, pattern: str, backend: str) -> None:
    if backend == "block" and not normaliser.startswith("softmax"):
        with pytest.raises(ValueError, match="backend 'block' cannot run this request"):
            attend(*tensors(), normaliser=MERGEABLE[normaliser], backend=backend)
        return
    options = {"normaliser": MERGEABLE[normaliser], "return_state": True, "backend": backend}
    inputs = tensors()
    whole = attend(*inputs, pattern=PATTERNS[pattern], **options)
    pieces = [
        attend(*inputs, pattern=PATTERNS[pattern] & key(a, b), **options)
        for a, b in ((0, 1), (1, 33), (33, 99))
    ]
    merged = merge(pieces)
    torch.testing.assert_close(merged[0], whole[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(merged[1].lse, whole[1].lse, rtol=1e-9, atol=1e-10)
    for one, other in zip(gradients(*merged, inputs), gradients(*whole, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_parts_of_different_backends_merge() -> None:
    inputs = tensors(torch.float32)
    names = ("rows", "block", "reference")
    parts = [
        attend(*inputs, pattern=causal() & key(a, b), backend=name, return_state=True)
        for name, (a, b) in zip(names, ((0, 20), (20, 50), (50, 99)), strict=True)
    ]
    out, _ = merge(parts)
    torch.testing.assert_close(
        out, attend(*inputs, pattern=causal(), backend="reference"), rtol=1e-4, atol=1e-5
    )


def test_two_empty_parts_stay_empty() -> None:
    out = torch.zeros(1, 1, 3, 2, requires_grad=True)
    lse = torch.full((1, 1, 3), -float("inf"), requires_grad=True)
    for sink_logit in (None, 0.5):
        normaliser = Softmax(sink_logit)
        merged, state = merge([(out, State(lse, None, normaliser)), (out, State(lse, None, normaliser))])
        assert (merged == 0).all() and (state.lse == -float("inf")).all()
        found = torch.autograd.grad(merged.sum() + state.lse.exp().sum(), (out, lse))
        assert all((gradient == 0).all() for gradient in found)


@given(
    st.lists(st.floats(-50, 50) | st.just(-float("inf")), min_size=1, max_size=6), st.permutations(range(6))
)
def test_merge_does_not_depend_on_order_or_grouping(logits: list[float], order: list[int]) -> None:
    parts = [
        (
            torch.full((1, 1, 1, 1), float(number)) * (logit > -float("inf")),
            State(torch.full((1, 1, 1), logit)),
        )
        for number, logit in enumerate(logits)
    ]
    whole, state = merge(parts)
    shuffled = [parts[i] for i in order if i < len(parts)]
    out, other = merge(shuffled)
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.lse, state.lse, rtol=1e-5, atol=1e-5)
    stepwise = parts[0]
    for part in parts[1:]:
        stepwise = merge([stepwise, part])
    torch.testing.assert_close(stepwise[0], whole, rtol=1e-5, atol=1e-5)


def test_merge_errors() -> None:
    out, lse = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="merge: expected at least one"):
        merge([])
    with pytest.raises(ValueError, match=r"part 1 has out \(1, 1, 2, 2\)"):
        merge([(out, State(lse)), (out[:, :, :2], State(lse[:, :, :2]))])
    with pytest.raises(ValueError, match="different normalisers: part 0 from softmax, part 1 from identity"):
        merge([(out, State(lse)), (out, State(lse, None, Identity()))])
    with pytest.raises(ValueError, match="parts of a row cannot be merged"):
        Sigmoid().merge([(out, State(lse))])


def empty(normaliser: Normaliser | None) -> tuple[Tensor, State]:
    lse, total = torch.full((1, 2, 3), -float("inf")), torch.zeros(1, 2, 3)
    return torch.zeros(1, 2, 3, 2), State(lse, total, normaliser)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (Softmax(0.0), Softmax(5.0), r"part 0 from softmax\(sink=0\), part 1 from softmax\(sink=5\)"),
        (Softmax(), Softmax(5.0), r"part 0 from softmax, part 1 from softmax\(sink=5\)"),
        (None, Softmax(5.0), r"part 0 from softmax, part 1 from softmax\(sink=5\)"),
        (Softmax(5.0), None, r"part 0 from softmax\(sink=5\), part 1 from softmax"),
        (
            Softmax(torch.zeros(2)),
            Softmax(torch.ones(2)),
            r"softmax\(sink per head\) with other values in it",
        ),
        (Softmax(torch.zeros(2)), Softmax(0.0), r"softmax\(sink per head\), part 1 from softmax\(sink=0\)"),
        (Ratio("relu", 1e-6), Ratio("relu", 5.0), r"ratio\(relu, eps=1e-06\), part 1 from .* eps=5\)"),
        (L1("softplus"), L1("relu"), r"part 0 from l1\(softplus\), part 1 from l1\(relu\)"),
        (Sigmoid(-1.0), Sigmoid(-8.0), r"sigmoid\(bias=-1\), part 1 from sigmoid\(bias=-8\)"),
        # Told apart by no name of six digits.
        (Sigmoid(-1.0), Sigmoid(-1.0000001), r"part 1 from sigmoid\(bias=-1\) with other values in it"),
        (L1("relu"), Ratio("relu"), r"part 0 from l1\(relu\), part 1 from ratio"),
        (Identity(), None, "part 0 from identity, part 1 from softmax"),
    ],
)
def test_parts_of_other_normalisers_do_not_merge(
    one: Normaliser | None, other: Normaliser | None, told: str
) -> None:
    with pytest.raises(ValueError, match=f"merge: parts come from different normalisers: .*{told}"):
        merge([empty(one), empty(other)])
    with pytest.raises(ValueError, match="part 2 from"):
        merge([empty(one), empty(one), empty(other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, Softmax()),
        (Softmax(), None),
        (Softmax(0.5), Softmax(0.5)),
        (Softmax(torch.ones(2)), Softmax(torch.ones(2).requires_grad_())),
        (Ratio("relu", 0.1), Ratio("relu", 0.1)),
        (L1("softplus"), L1("softplus")),
        (Sigmoid(-1.0), Sigmoid(-1.0)),
        (Identity(), Identity()),
    ],
)
def test_parts_of_equal_normalisers_made_twice_merge(
    one: Normaliser | None, other: Normaliser | None
) -> None:
    out, state = merge([empty(one), empty(other)])
    assert (out == 0).all() and (state.lse == -float("inf")).all()
