"""What composing promises and the pairwise table leaves to chance: grids, fewer queries than keys, gates."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.attend import attend
from attlas.layers.gated import PLACES, GatedAttention, gate_for
from attlas.pattern import Pattern, Tokens, causal, key, per_head, sink, window
from contracts.table import BATCH, COLUMNS, HEADS, NORMALISERS, SCORES, WIDTH, Case, Inputs, cases, refusal
from contracts.test_operators import TOLERANCE, amplification, answers, close, rounded

ROWS, KEYS = 29, 63  # queries that stand behind 34 earlier keys
SPACES = {"q_at": Tokens(ROWS, start=KEYS - ROWS), "k_at": Tokens(KEYS)}
HEADWISE = per_head([causal(), causal() & window(7), causal() & (window(5) | sink(2)), causal() & key(0, 40)])
ACROSS: dict[str, Pattern | None] = {
    "none": None,
    "causal": causal(),
    "window": window(11),
    "per head": HEADWISE,
}
# Their tables have no axis of queries, which are fewer here.
SHORT = ("dot", "cosine", "distance", "key bias", "clamp", "bilinear", "bilinear, per head")
NEIGHBOURHOODS = ("1-D dilated", "2-D halo", "2-D with text", "3-D neighbourhood")
UNDIVIDED = ("identity", "sigmoid")
STREAMED = ("sigmoid", "sigmoid by count", "softplus", "over count", "log count softplus", "shift power")


@pytest.mark.parametrize("grid", NEIGHBOURHOODS)
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_every_normaliser_over_neighbourhoods(normaliser: str, grid: str) -> None:
    case = Case("rows", grid, "dot", normaliser, "sum", "nothing", 63, 2, 5)
    got, found = answers(case, "rows", torch.float64)
    wanted, expected = answers(case, "reference", torch.float64)
    for one, other in zip((got, *found), (wanted, *expected), strict=True):
        close(one, other, TOLERANCE[torch.float64], amplification(case), str(case))


@pytest.mark.parametrize("pattern", [*NEIGHBOURHOODS, "per head", "segments", "empty rows"])
@pytest.mark.parametrize("normaliser", STREAMED)
def test_streaming_forms_on_the_strip_kernel(normaliser: str, pattern: str) -> None:
    """In float32, which is what they compute in, with grouped heads."""
    case = Case("block", pattern, "cosine", normaliser, "sum", "nothing", 100, 2, 5)
    assert refusal(case, *case.arguments(torch.float32)) is None
    got, found = answers(case, "block", torch.float32)
    wanted, expected = answers(rounded(case, torch.float32), "reference", torch.float64)
    for one, other in zip((got, *found), (wanted, *expected), strict=True):
        close(one, other, TOLERANCE[torch.float32], amplification(case), str(case))


def across(score: str, normaliser: str, pattern: Pattern | None, backend: str) -> tuple[list[Tensor], float]:
    """(out and gradients with fewer queries than keys, factor of the tolerance)."""
    given = Inputs(KEYS, torch.float64, torch.Generator().manual_seed(4), [])
    leaves = [
        given.leaf(BATCH, heads, tokens, width)
        for heads, tokens, width in ((HEADS, ROWS, WIDTH), (2, KEYS, WIDTH), (2, KEYS, 5))
    ]
    made = NORMALISERS[normaliser](given)
    out = attend(
        *leaves, pattern=pattern, score=SCORES[score](given), normaliser=made, backend=backend, **SPACES
    )
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    found = torch.autograd.grad((out * weight).sum(), given.leaves, allow_unused=True)
    factor = made.amplification * (KEYS if normaliser in UNDIVIDED else 1.0)
    return [out, *(torch.zeros(1) if one is None else one for one in found)], factor


@pytest.mark.parametrize("pattern", ACROSS)
@pytest.mark.parametrize(
    ("score", "normaliser"),
    [
        *(("dot", normaliser) for normaliser in NORMALISERS),
        *((score, normaliser) for score in SHORT[1:] for normaliser in ("softmax", "sigmoid by count")),
    ],
)
def test_fewer_queries_than_keys(score: str, normaliser: str, pattern: str) -> None:
    """With grouped heads, and rows that stand at the end."""
    got, factor = across(score, normaliser, ACROSS[pattern], "rows")
    wanted, _ = across(score, normaliser, ACROSS[pattern], "reference")
    for one, other in zip(got, wanted, strict=True):
        close(one, other, TOLERANCE[torch.float64], factor, f"{score}, {normaliser}, {pattern}")


@pytest.mark.parametrize("place", PLACES)
def test_a_gate_at_every_place_on_heads_with_patterns_of_their_own(place: str) -> None:
    def ran(backend: str) -> list[Tensor]:
        torch.manual_seed(0)
        layer: Any = GatedAttention(
            16, HEADS, kv_heads=2, gates={place: gate_for(place, 16, HEADS, kv_heads=2)}, pattern=HEADWISE,
            base=10000.0, backend=backend,
        ).double()  # fmt: skip
        x = torch.randn(BATCH, KEYS, 16, dtype=torch.float64, requires_grad=True)
        out = layer(x)
        weights = dict(layer.named_parameters())
        assert any("gates" in name for name in weights)
        return [out, *torch.autograd.grad(out.sin().sum(), (x, *weights.values()))]

    for one, other in zip(ran("rows"), ran("reference"), strict=True):
        close(one, other, TOLERANCE[torch.float64], 1.0, place)


def test_the_generic_backend_met_every_pair() -> None:
    """Patterns, groups and gates with every score and normaliser; `rows` refuses nothing."""
    met = cases("rows")
    for first, second in (
        ("normaliser", "pattern"),
        ("normaliser", "group"),
        ("normaliser", "score"),
        ("normaliser", "extra"),
        ("score", "pattern"),
        ("score", "group"),
        ("extra", "pattern"),
    ):
        pairs = {(getattr(case, first), getattr(case, second)) for case in met}
        missing = {(a, b) for a in COLUMNS[first] for b in COLUMNS[second]} - pairs
        # An extra term has no sender to share itself out; a pattern per KV head fits one number of them.
        missing -= {("sender softmax", "extra")}
        assert not {(a, b) for a, b in missing if "per KV head" not in (a, b)}, (first, second)
    assert all(refusal(case, *case.arguments(torch.float64)) is None for case in met[::7])
