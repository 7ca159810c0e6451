"""Normalisers on the strip kernel: values and gradients of formulas written out in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from attend.memory import allocations
from attlas.attend import (
    L1,
    OverCount,
    Sigmoid,
    Softmax,
    TimesLogCount,
    attend,
    lssa,
    lssar,
)
from attlas.pattern import (
    NeighbourList,
    Pattern,
    Tokens,
    along,
    causal,
    distance,
    key,
    per_kv_head,
    sink,
    window,
)
from attlas.score import Cosine, DistanceBias, Dot, EdgeBias

WIDTH = 24
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
Oracle = Callable[[Tensor, Tensor, Tensor], Tensor]


def _cosines(query: Tensor, keys: Tensor) -> Tensor:
    unit = (tensor / tensor.norm(dim=-1, keepdim=True) for tensor in (query, keys))
    return torch.einsum("bhid,bhjd->bhij", *unit)


def _dots(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bhid,bhjd->bhij", query, keys) / query.shape[-1] ** 0.5


def _shares(values: Tensor) -> Tensor:
    total = values.sum(-1, keepdim=True)
    return values / torch.where(total == 0, 1.0, total)


def _lssa(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    many = mask.sum(-1, keepdim=True).clamp_min(1)
    return _shares(softplus(math.log(WIDTH) * many.log() * _cosines(query, keys)) * mask)


def _lssar(power: float) -> Oracle:
    def weights(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        many = mask.sum(-1, keepdim=True)
        kept = (many * _lssa(query, keys, mask) - (many > 3).double()).clamp_min(0.0) * mask
        return _shares(kept**power)

    return weights


FORMS: dict[str, tuple[dict[str, Any], Oracle]] = {
    "sigmoid": ({"normaliser": Sigmoid(-3.0)}, lambda q, k, m: (_dots(q, k) - 3).sigmoid() * m),
    "sigmoid by count": (
        {"normaliser": Sigmoid()},
        lambda q, k, m: (_dots(q, k) - m.sum(-1, keepdim=True).clamp_min(1).log()).sigmoid() * m,
    ),
    "over count": (
        {"normaliser": Sigmoid(0.0) >> OverCount(0.5)},
        lambda q, k, m: _dots(q, k).sigmoid() * m / m.sum(-1, keepdim=True).clamp_min(1) ** 0.5,
    ),
    "softplus": ({"normaliser": L1("softplus")}, lambda q, k, m: _shares(softplus(_dots(q, k)) * m)),
    "lssa": ({**lssa(WIDTH)}, _lssa),
    "lssar 1": ({**lssar(WIDTH, 1)}, _lssar(1)),
    "lssar 3": ({**lssar(WIDTH, 3)}, _lssar(3)),
    "lssar 15": ({**lssar(WIDTH, 15)}, _lssar(15)),
    "lssar 2.5": ({**lssar(WIDTH, 2.5)}, _lssar(2.5)),
}
CASES: dict[str, tuple[Pattern, int, int]] = {
    "causal": (causal(), 200, 200),
    "stream": (causal() & (window(70) | sink(5)), 150, 150),
    "holes": (causal() & (distance(0, 3) | distance(11, 40)), 131, 131),
    "empty rows": ((causal() & window(12)) - key(0, 75), 140, 140),
    "nothing": (key(0, 0), 66, 66),
    "cross": (window(50) | sink(2), 70, 130),
}


def tensors(rows: int, keys: int, dtype: torch.dtype = torch.float32, value: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + keys)
    shapes = [(2, 4, rows, WIDTH), (2, 2, keys, WIDTH), (2, 2, keys, value)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def against(
    options: dict[str, Any], oracle: Oracle, given: list[Tensor], mask: Tensor, tolerance: dict[str, float]
) -> None:
    """Out and gradients of `attend` on strips are those of the weights that `oracle` writes out."""
    out = attend(*given, backend="block", strict=True, **options)
    leaves = [tensor.detach().double().requires_grad_() for tensor in given]
    keys, values = (tensor.repeat_interleave(2, 1) for tensor in leaves[1:])
    wanted = oracle(leaves[0], keys, mask.double().expand(2, 4, -1, -1)) @ values
    grad = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view(wanted.shape).sin()
    (out * grad.to(out.dtype)).sum().backward()
    (wanted * grad).sum().backward()
    torch.testing.assert_close(out.double(), wanted, **tolerance)
    for mine, leaf in zip(given, leaves, strict=True):
        assert mine.grad is not None and leaf.grad is not None and mine.grad.dtype == out.dtype
        # Sums of many terms: their rounding is that of the largest of them.
        largest = max(1.0, float(leaf.grad.abs().max()))
        torch.testing.assert_close(
            mine.grad.double(), leaf.grad, rtol=tolerance["rtol"], atol=tolerance["atol"] * largest
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_their_formulas(form: str, case: str) -> None:
    options, oracle = FORMS[form]
    pattern, rows, keys = CASES[case]
    spaces = {"q_at": Tokens(rows), "k_at": Tokens(keys)}
    mask = pattern.mask(*spaces.values())
    against({**options, "pattern": pattern, **spaces}, oracle, tensors(rows, keys), mask, TOLERANCE)


@pytest.mark.parametrize("form", ["sigmoid", "lssa"])
def test_bfloat16_is_no_worse_than_twice_plain_bfloat16(form: str) -> None:
    options, oracle = FORMS[form]
    given = [tensor.detach() for tensor in tensors(150, 150, torch.bfloat16)]
    mask = causal().mask(Tokens(150), Tokens(150))

    def written(kind: torch.dtype) -> Tensor:
        query, keys, values = (tensor.to(kind) for tensor in given)
        keys, values = (tensor.repeat_interleave(2, 1) for tensor in (keys, values))
        return (oracle(query, keys, mask.to(kind)) @ values).double()

    exact = written(torch.float64)
    error = (attend(*given, pattern=causal(), backend="block", **options).double() - exact).abs().max()
    assert error <= 2 * (written(torch.bfloat16) - exact).abs().max()


def test_patterns_of_heads_and_of_batch_rows_count_their_own_edges() -> None:
    n = 120
    table = torch.randint(-1, n, (2, 1, n, 9), generator=torch.Generator().manual_seed(0))
    pattern = per_kv_head([causal() & window(9), causal()]) & (NeighbourList(table) | sink(1))
    mask = pattern.mask(Tokens(n), Tokens(n)).repeat_interleave(2, 1)
    options, oracle = FORMS["lssar 3"]
    against({**options, "pattern": pattern}, oracle, tensors(n, n), mask, TOLERANCE)
    grid = Tokens.grid(H=12, W=10)
    pattern = along("H", 3) & along("W", 5)
    spaces = {"q_at": grid, "k_at": grid, "pattern": pattern}
    mask = pattern.mask(grid, grid)
    against({**options, **spaces}, oracle, tensors(n, n), mask, TOLERANCE)


def test_biases_of_rows_are_no_shift_that_could_be_left_out() -> None:
    """Softmax does not see what is added to a whole row; sigmoid and softplus do."""
    n = 90
    slopes, own = torch.tensor([0.5, 0.25, 0.1, 0.02]).requires_grad_(), torch.randn(4, n, 1).requires_grad_()
    for normaliser in (Sigmoid(-2.0), L1("softplus"), TimesLogCount() >> L1("softplus")):
        for score in (Dot() + DistanceBias(slopes), Dot() + EdgeBias(own)):
            found = []
            for backend in ("block", "rows"):
                leaves = [*tensors(n, n), *score.terms()[1].tensors()]
                out = attend(
                    *leaves[:3], pattern=causal(), score=score, normaliser=normaliser, backend=backend
                )
                held = slopes if isinstance(score.terms()[1], DistanceBias) else own
                grads = torch.autograd.grad(out.square().sum(), [*leaves[:3], held])
                found.append([out, *grads])
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(
                    one, other, rtol=1e-4, atol=2e-4 * float(other.detach().abs().max())
                )


def test_one_query_for_all_batch_rows_and_a_bias_for_each() -> None:
    n = 70
    query, keys, values = (tensor.detach() for tensor in tensors(n, n))
    score = Dot() + EdgeBias(torch.linspace(-1, 1, 2 * n).view(2, 1, n, 1))
    found = [
        attend(query[:1], keys, values, pattern=causal(), score=score, normaliser=Sigmoid(-2.0), backend=one)
        for one in ("block", "reference")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_extreme_logits() -> None:
    query = torch.tensor([200.0, -200.0, 0.0]).view(1, 1, 3, 1).repeat(1, 1, 1, 16) / 4
    keys = torch.ones(1, 1, 3, 16) * torch.tensor([1.0, 2.0, -1.0]).view(3, 1)
    given = [query.requires_grad_(), keys.requires_grad_(), torch.eye(3, 16).view(1, 1, 3, 16)]
    logits = (query.detach()[0, 0] @ keys.detach()[0, 0].T / 4).double()
    for normaliser, wanted in ((Sigmoid(-1.0), (logits - 1).sigmoid()), (L1("softplus"), softplus(logits))):
        if isinstance(normaliser, L1):
            wanted = wanted / wanted.sum(-1, keepdim=True)
        out = attend(*given, normaliser=normaliser, backend="block")
        torch.testing.assert_close(out[0, 0, :, :3].double(), wanted, rtol=1e-6, atol=1e-30)
        assert all(one.isfinite().all() for one in torch.autograd.grad(out.sum(), given[:2]))


@pytest.mark.parametrize("at", [40, 41, 42, 43])
@pytest.mark.parametrize("normaliser", [Softmax(), Sigmoid(-2.0), lssar(WIDTH, 15)["normaliser"]])
def test_nan_is_not_hidden_and_stays_in_the_groups_of_four_rows_that_see_it(normaliser: Any, at: int) -> None:
    """Rows at .. at + 19 see it; what else is not finite lies in the groups of the first and the last."""
    given = [tensor.detach() for tensor in tensors(130, 130)]
    plain = attend(*given, pattern=causal() & window(20), normaliser=normaliser, backend="block")
    for tensor in given[1:]:
        tensor[:, :, at] = torch.nan
    out = attend(*given, pattern=causal() & window(20), normaliser=normaliser, backend="block")
    assert out[:, :, at : at + 20].isnan().all()
    first, end = at // 4 * 4, -(-(at + 20) // 4) * 4
    assert torch.equal(out[:, :, :first], plain[:, :, :first])
    assert torch.equal(out[:, :, end:], plain[:, :, end:])


def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given = tensors(700, 700)
            out = attend(*given, pattern=causal() & window(300), backend="block", **lssar(WIDTH, 3))
            out.square().sum().backward()
            found.append([out, *(tensor.grad for tensor in given)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_memory_grows_with_the_length() -> None:
    def run(length: int) -> Any:
        given = [torch.randn(1, 1, length, 16).requires_grad_() for _ in range(3)]
        return allocations(
            lambda: attend(*given, pattern=causal(), backend="block", **lssar(16)).sum().backward()
        )

    once, twice = run(1024), run(2048)
    assert twice.largest <= 2.2 * once.largest and once.largest < 1024 * 1024 / 4


def test_cosine_of_bfloat16_is_widened_before_it_is_scaled() -> None:
    given = [tensor.detach() for tensor in tensors(80, 80, torch.bfloat16)]
    out = attend(*given, score=Cosine(9.0), normaliser=Sigmoid(0.0), backend="block")
    exact = attend(
        *(tensor.double() for tensor in given),
        score=Cosine(9.0),
        normaliser=Sigmoid(0.0),
        backend="reference",
    )
    torch.testing.assert_close(out.double(), exact, rtol=5e-3, atol=2e-2)
