"""Every backend equals the reference in value and gradient, over the pairwise table."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.attend import BACKENDS, attend
from attlas.pattern import causal, sink, window
from contracts.grids import GRIDS
from contracts.table import (
    COLUMNS,
    LENGTHS,
    NARROW,
    READS_GRAPHS,
    READS_VIEWS,
    Case,
    cases,
    given_to,
    refusal,
)

TESTED = [name for name in BACKENDS if name not in ("reference", "flex")]
OF_PATTERNS = [name for name in TESTED if name not in READS_GRAPHS]
ALL = [case for name in TESTED for case in cases(name)]
ON_GRIDS = [
    Case(backend, name, "dot", "softmax", "sum", "nothing", LENGTHS[(row + turn) % len(LENGTHS)], 2, 8)
    for turn, backend in enumerate(OF_PATTERNS)
    for row, name in enumerate(GRIDS)
]

# rtol, atol against the float64 reference; that of float32 grows with the root of the length.
TOLERANCE = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6 * 257**0.5, 1e-5),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


def answers(case: Case, backend: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """(out, gradients of a linear function of it for every leaf) with leaves of `dtype`.

    Without gradients for a case of a backend that has none.
    """
    leaves, options = case.arguments(dtype)
    given = given_to(case.backend, leaves)
    if case.backend in READS_VIEWS:
        with torch.no_grad():
            return attend(*given, backend=backend, **options), []
    out = attend(*given, backend=backend, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    found = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
    return out, [
        torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)
    ]


def amplification(case: Case) -> float:
    options = case.arguments(torch.float64)[1]
    factor = options["normaliser"].amplification
    # Weights that do not add up to one are as large as the logits times the number of edges.
    return factor * (case.length if case.normaliser in ("identity", "sigmoid") else 1.0)


def close(got: Tensor, wanted: Tensor, tolerance: tuple[float, float], factor: float, what: str) -> None:
    assert not got.isnan().any(), f"NaN in {what}"
    rtol, atol = tolerance
    torch.testing.assert_close(
        got, wanted.to(got.dtype), rtol=rtol * factor, atol=atol * factor, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("case", ALL + ON_GRIDS, ids=str)
def test_backend_equals_reference(case: Case) -> None:
    leaves, options = case.arguments(torch.float64)
    reason = refusal(case, leaves, options)
    if reason is not None:
        given = given_to(case.backend, leaves)
        with pytest.raises(ValueError, match=f"backend '{case.backend}' cannot run this request: "):
            attend(*given, backend=case.backend, **options)
        return
    got, found = answers(case, case.backend, torch.float64)
    wanted, expected = answers(case, "reference", torch.float64)
    close(got, wanted, TOLERANCE[torch.float64], amplification(case), "out")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        close(one, other, TOLERANCE[torch.float64], amplification(case), f"gradient {number}")


@pytest.mark.parametrize("backend", TESTED)
def test_most_cases_run(backend: str) -> None:
    mine = cases(backend)
    ran = sum(refusal(case, *case.arguments(torch.float64)) is None for case in mine)
    assert ran >= 0.6 * len(mine), f"{backend} runs {ran} of {len(mine)} cases: adapt NARROW or the backend"


def test_pairs_are_covered() -> None:
    for backend in TESTED:
        columns = {**COLUMNS, **NARROW.get(backend, {})}
        met = {(c.pattern, c.extra) for c in cases(backend)} | {(c.score, c.length) for c in cases(backend)}
        for pattern in columns["pattern"]:
            assert all((pattern, extra) in met for extra in columns["extra"])
        for score in columns["score"]:
            assert all((score, length) in met for length in columns["length"])


PRECISE = [
    Case(backend, pattern, "dot", "softmax", "sum", "nothing", length, group, 8)
    for backend in OF_PATTERNS
    for pattern, length, group in (("causal", 257, 2), ("window and sink", 257, 4), ("per head", 100, 1))
] + [
    Case(backend, "graph", "dot", "softmax", "sum", "nothing", length, group, 8)
    for backend in READS_GRAPHS
    for length, group in ((257, 2), (100, 4))
]


@pytest.mark.parametrize("case", PRECISE, ids=str)
def test_single_precision(case: Case) -> None:
    got, found = answers(case, case.backend, torch.float32)
    wanted, expected = answers(rounded(case, torch.float32), "reference", torch.float64)
    for one, other in zip([got, *found], [wanted, *expected], strict=True):
        close(one, other, TOLERANCE[torch.float32], 1.0, "float32")


def rounded(case: Case, dtype: torch.dtype) -> Any:
    """The case with leaves that a lower precision can hold, in float64."""

    class Rounded:
        backend = case.backend

        def arguments(self, wide: torch.dtype) -> Any:
            leaves, options = case.arguments(dtype)
            return [leaf.detach().to(wide).requires_grad_() for leaf in leaves], options

    return Rounded()


@pytest.mark.parametrize("case", PRECISE, ids=str)
def test_half_precision_is_no_worse_than_twice_plain_bfloat16(case: Case) -> None:
    leaves, options = case.arguments(torch.bfloat16)
    query, key, value = (leaf.detach() for leaf in leaves[:3])
    exact = attend(
        query.double(), key.double(), value.double(), backend="reference", **{**options, "k_at": None}
    )
    given = given_to(case.backend, [query, key, value])
    got = attend(*given, backend=case.backend, **options)
    plain = _plain(query, key, value, options["pattern"])
    error, allowed = (got.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= 2 * allowed
    torch.testing.assert_close(got.double(), exact, rtol=1.6e-2, atol=1.6e-2)


def _plain(query: Tensor, key: Tensor, value: Tensor, pattern: Any) -> Tensor:
    """The definition with every step rounded to bfloat16."""
    from attlas.pattern import Tokens

    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    mask = torch.stack(
        [
            one.mask(Tokens(length), Tokens(length))
            for one in pattern.expand(query.shape[1], query.shape[1] // group)
        ]
    )
    logits = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(~mask, -float("inf"))
    return logits.softmax(-1).nan_to_num(0.0) @ value


@pytest.mark.parametrize("backend", ["rows", "block"])
def test_gradcheck(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, heads, 7, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, width in ((2, 3), (1, 3), (1, 2))
    )
    pattern = causal() & (window(4) | sink(1)) & ~window(1)  # row 0 sees nothing

    def outputs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, state = attend(*tensors, pattern=pattern, return_state=True, backend=backend)
        return out, state.lse[:, :, 1:]

    assert torch.autograd.gradcheck(outputs, (query, key, value), eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("backend", OF_PATTERNS)
def test_rows_without_edges_are_zero_with_zero_gradient(backend: str) -> None:
    case = Case(backend, "empty rows", "dot", "softmax", "sum", "nothing", 63, 2, 8)
    out, found = answers(case, backend, torch.float32)
    # Rows 0..14 see only keys before 15, which the pattern takes away.
    assert (out[:, :, :15] == 0).all() and (out[:, :, 15:] != 0).any()
    if backend in READS_VIEWS:
        return
    query, key, value = found
    assert (query[:, :, :15] == 0).all()
    assert (key[:, :, :15] == 0).all() and (value[:, :, :15] == 0).all()
    assert not any(gradient.isnan().any() for gradient in found)


@pytest.mark.parametrize("case", [case for case in ALL if case.length == 63], ids=str)
def test_uninitialised_memory_is_never_read(case: Case) -> None:
    leaves, options = case.arguments(torch.float32)
    if refusal(case, leaves, options) is not None:
        return
    plain = answers(case, case.backend, torch.float32)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN
    try:
        assert torch.empty(3).isnan().all()
        poisoned = answers(case, case.backend, torch.float32)
    finally:
        torch.use_deterministic_algorithms(before)
    for one, other in zip([plain[0], *plain[1]], [poisoned[0], *poisoned[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
