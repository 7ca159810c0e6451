"""Memory: `auto` never holds an N × M matrix; what sparse backends hold grows with the length alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attend.memory import Allocations, allocations
from attlas.attend import KVView, Mean, Sigmoid, attend, counting, explain
from attlas.pattern import Pattern, Tokens, causal, dense, opaque, per_head, sink, window
from attlas.score import Cosine, DistanceBias, Dot, EdgeBias

LENGTH = 1024
STREAM = causal() & (window(64) | sink(4))


def tensors(length: int, width: int = 8, **kind: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(1, heads, length, width, generator=generator).to(**kind).requires_grad_()
        for heads in (2, 1, 1)
    ]


def trained(given: list[Tensor], **options: Any) -> Allocations:
    """What forward and backward allocate."""
    return allocations(lambda: attend(*given, **options).sum().backward())


def shuffled(length: int) -> Tokens:
    return Tokens.at(torch.randperm(length, generator=torch.Generator().manual_seed(0)))


def padded(length: int, pads: int = 100) -> Tokens:
    return Tokens(length, valid=torch.arange(length) >= pads)


SPACES = {
    "plain": Tokens(LENGTH),
    "explicit positions": shuffled(LENGTH),
    "padded": padded(LENGTH),
    "padded, explicit positions": Tokens.at(
        (torch.arange(LENGTH) - 100).clamp_min(0)[None], valid=torch.arange(LENGTH)[None] >= 100
    ),
}
PATTERNS: dict[str, Pattern | None] = {
    "none": None,
    "causal": causal(),
    "window and sink": STREAM,
    "two-sided window": window(100),
    "per head": per_head([causal(), STREAM]),
    "opaque": causal() & opaque(lambda i, j: (i + j) % 3 != 1, "thirds"),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_auto_never_holds_a_square(pattern: str, space: str) -> None:
    at = SPACES[space]
    options: dict[str, Any] = {"pattern": PATTERNS[pattern], "q_at": at, "k_at": at}
    assert trained(tensors(LENGTH), **options).largest < LENGTH * LENGTH
    with torch.no_grad():
        forward = allocations(lambda: attend(*tensors(LENGTH), **options))
    assert forward.largest < LENGTH * LENGTH


@pytest.mark.parametrize(
    "options",
    [
        {"score": Cosine(4.0)},
        {"score": Dot() + DistanceBias(torch.ones(2))},
        {"normaliser": Sigmoid(-3.0)},
        {"aggregate": Mean()},
        {"return_state": True},
        {"dropout": 0.2},
    ],
    ids=str,
)
def test_auto_never_holds_a_square_whatever_is_composed(options: dict[str, Any]) -> None:
    given = tensors(LENGTH)

    def run() -> None:
        found = attend(*given, pattern=STREAM, **options)
        (found[0] if isinstance(found, tuple) else found).sum().backward()

    assert allocations(run).largest < LENGTH * LENGTH


def test_a_table_of_the_callers_is_not_copied() -> None:
    table = torch.randn(LENGTH, LENGTH)
    with counting() as heard:
        found = trained(tensors(LENGTH), score=Dot() + EdgeBias(table))
    assert found.largest < LENGTH * LENGTH and len(heard) == 0
    assert "backend     sdpa: " in explain(*tensors(LENGTH), score=Dot() + EdgeBias(table))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pattern": STREAM}, "sdpa needs an N × M mask here"),
        ({"pattern": causal(), "k_at": shuffled(LENGTH)}, "sdpa needs an N × M mask here"),
        ({"k_at": padded(LENGTH)}, "sdpa needs an N × M mask here"),
        (
            {"score": Dot() + EdgeBias(torch.zeros(LENGTH, LENGTH)), "pattern": causal()},
            "sdpa needs an N × M mask here",
        ),
        (
            {"score": Dot() + EdgeBias(torch.ones(LENGTH, LENGTH).tril().requires_grad_())},
            "sdpa computes the whole N × M matrix when a bias needs gradient",
        ),
    ],
    ids=["window", "explicit positions", "padded", "table and pattern", "table with gradient"],
)
def test_a_square_that_was_named_is_counted(options: dict[str, Any], reason: str) -> None:
    given = tensors(LENGTH)
    with counting() as heard:
        found = trained(given, backend="sdpa", **options)
    assert found.largest >= LENGTH * LENGTH  # and so the tests above would see one
    assert heard.records() == [{"what": "attend ran on sdpa", "why": reason, "count": 1}]
    with pytest.raises(ValueError, match=f"strict=True forbids a fallback, but {reason}"):
        attend(*given, backend="sdpa", strict=True, **options)
    assert f"  sdpa      cannot: {reason}" in explain(*given, **options)


def test_a_mask_of_a_few_rows_is_no_square() -> None:
    query, key, value = tensors(LENGTH)
    last = Tokens(8, start=LENGTH - 8)
    options: dict[str, Any] = {"pattern": causal(), "q_at": last, "k_at": shuffled(LENGTH), "strict": True}
    assert "backend     sdpa: " in explain(query[:, :, -8:], key, value, **options)
    assert allocations(lambda: attend(query[:, :, -8:], key, value, **options)).largest < 20 * LENGTH


GROWTH: dict[str, tuple[str, Pattern | None, Any]] = {
    "block, window": ("block", STREAM, Tokens),
    "block, causal": ("block", causal(), Tokens),
    "block, dense": ("block", dense(), Tokens),
    "block, per head": ("block", per_head([causal(), STREAM]), Tokens),
    "rows, window": ("rows", STREAM, Tokens),
    "rows, causal": ("rows", causal(), Tokens),
    "rows, explicit positions": ("rows", causal(), shuffled),
    "rows, padded": ("rows", STREAM, padded),
}


@pytest.mark.parametrize("name", GROWTH)
def test_training_grows_with_the_length(name: str) -> None:
    backend, pattern, space = GROWTH[name]

    def run(length: int) -> Allocations:
        at = space(length)
        return trained(tensors(length, 4), pattern=pattern, q_at=at, k_at=at, backend=backend)

    grows(run(2048), run(4096))


@pytest.mark.parametrize("rows", [1, 40, None], ids=["token", "chunk", "whole prompt"])
@pytest.mark.parametrize("space", ["plain", "invalid slots"])
@torch.no_grad()
def test_decoding_grows_with_the_length(rows: int | None, space: str) -> None:
    def run(length: int) -> Allocations:
        query, key, value = tensors(length, 4)
        view = KVView.of(key, value)
        if space != "plain":
            group = view.groups[0]
            valid = torch.arange(length)[None] % 7 != 3
            view = KVView((type(group)(group.heads, key, value, group.positions, valid),))
        count = rows or length
        at = Tokens(count, start=length - count)
        return allocations(
            lambda: attend(query[:, :, -count:], view, pattern=causal(), q_at=at, backend="decode")
        )

    grows(run(2048), run(4096))


def grows(once: Allocations, twice: Allocations) -> None:
    """Twice the length holds about twice the memory; a square would hold four times."""
    assert 0 < twice.largest <= 2.2 * once.largest
    assert 0 < twice.peak <= 2.2 * once.peak


@pytest.mark.parametrize(("kv_heads", "span"), [(4, 256), (2, 256), (4, 64)])
def test_block_trains_in_twice_the_memory_of_its_gradients(kv_heads: int, span: int) -> None:
    """Tiles overlap: were all of them worked on at once, a window would need several times as much."""
    shapes = ((1, heads, 2048, 64) for heads in (4, kv_heads, kv_heads))
    given = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    out = attend(*given, pattern=causal() & (window(span) | sink(4)), backend="block")
    gradient, found = torch.randn_like(out), []

    def back() -> None:
        found.append(torch.autograd.grad(out, given, gradient, retain_graph=True))

    backward = allocations(back)
    assert backward.peak <= 2 * sum(tensor.nbytes for tensor in given)
    assert backward.largest <= max(tensor.numel() for tensor in given)
    back()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
