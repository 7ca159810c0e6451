"""Scores: one text for tiles and gathered edges, the algebra, lowerings, errors."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attlas.score import (
    Bilinear,
    Cosine,
    DistanceBias,
    Dot,
    Edge,
    EdgeBias,
    Given,
    LowRankBias,
    PairResult,
    RowScale,
    Score,
)

B, H, N, M, D = 2, 3, 7, 9, 4


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64
    )


QUERY, KEY, VALUE = double(B, H, N, D), double(B, H, M, D, seed=1), double(B, H, M, 2, seed=2)
EDGE = Edge(torch.arange(N).view(1, 1, N, 1) + 3, torch.arange(M).view(1, 1, 1, M))
SCORES: dict[str, Callable[[], Score]] = {
    "dot": Dot,
    "cosine": lambda: Cosine(3.0),
    "bilinear": lambda: Bilinear(double(B, H, D, D)),
    "bilinear, one matrix": lambda: Bilinear(double(D, D), scale=0.3) + DistanceBias(double(H)),
    "distance": lambda: Dot() + DistanceBias(double(H).abs()),
    "bias": lambda: Dot(0.3) + EdgeBias(double(H, N, M)),
    "key bias": lambda: Dot() + EdgeBias(double(B, 1, 1, M)),
    "query bias": lambda: EdgeBias(double(B, H, N, 1)) + Dot(),
    "row scale": lambda: RowScale(double(H, N)) * (Cosine() + DistanceBias(double(H))),
    "low rank": lambda: Dot(0.3) + LowRankBias(double(H, N, 2), double(B, 1, M, 2)),
    "low rank alone": lambda: LowRankBias(double(N, 5), double(H, M, 5)),
    "low rank mask": lambda: LowRankBias(double(N, 2), double(H, M, 2)) * (Dot() + DistanceBias(double(H))),
    "clamp": lambda: Dot().clamp(-0.2, 0.4),
    "given": lambda: Given(double(N, M)),
    "two dots": lambda: Dot(0.5) + Cosine(2.0),
}


def tile(score: Score) -> Tensor:
    found = score.pair(
        QUERY[..., None, :], KEY[..., None, :, :], VALUE[..., None, :, :], EDGE, *score.tensors()
    )
    return found.logit.expand(B, H, N, M)


@pytest.mark.parametrize("name", SCORES)
def test_gathered_edges_and_tiles_are_one_text(name: str) -> None:
    score = SCORES[name]()
    rows, keys = torch.tensor([0, 6, 3, 3]), torch.tensor([8, 0, 2, 5])
    tensors = [t.expand(B, H, N, M, *t.shape[4:])[:, :, rows, keys] for t in score.tensors()]
    edge = Edge(rows + 3, keys)
    found = score.pair(QUERY[:, :, rows], KEY[:, :, keys], VALUE[:, :, keys], edge, *tensors).logit
    torch.testing.assert_close(found.expand(B, H, 4), tile(score)[:, :, rows, keys])


@pytest.mark.parametrize("name", [name for name in SCORES if SCORES[name]().lowers(torch.float64)])
def test_lowering_is_the_score(name: str) -> None:
    score = SCORES[name]()
    lowered = score.lower(QUERY, KEY, EDGE)
    assert lowered is not None and lowered.extra == lowered.query.shape[-1] - D
    logit = lowered.scale * lowered.query @ lowered.key.transpose(-1, -2)
    if lowered.shift is not None:
        logit = logit + lowered.shift.unsqueeze(-1)
    torch.testing.assert_close(logit.expand(B, H, N, M), tile(score), rtol=1e-10, atol=1e-10)


def test_what_lowers() -> None:
    assert [name for name in SCORES if not SCORES[name]().lowers(torch.float32)] == ["bias", "clamp", "given"]
    # Positions and biases are never rounded to half precision.
    half = [name for name in SCORES if SCORES[name]().lowers(torch.bfloat16)]
    assert half == ["dot", "cosine", "bilinear", "two dots"]
    hole = torch.zeros(1, M)
    hole[0, 2] = -math.inf
    assert (
        not EdgeBias(hole).lowers(torch.float32)
        and EdgeBias(hole).lower(QUERY.float(), KEY.float(), EDGE) is None
    )


def test_formulas() -> None:
    torch.testing.assert_close(tile(Dot()), QUERY @ KEY.transpose(-1, -2) / math.sqrt(D))
    cosine = torch.nn.functional.cosine_similarity(QUERY[..., None, :], KEY[..., None, :, :], dim=-1)
    torch.testing.assert_close(tile(Cosine(3.0)), 3 * cosine)
    matrix = double(H, D, D)
    bilinear = torch.einsum("bhnd,hde,bhme->bhnm", QUERY, matrix, KEY)
    torch.testing.assert_close(tile(Bilinear(matrix)), bilinear / math.sqrt(D))
    torch.testing.assert_close(tile(Bilinear(torch.eye(D, dtype=torch.float64))), tile(Dot()))
    slopes = double(H).abs()
    i, j = torch.arange(N) + 3, torch.arange(M)
    distance = tile(DistanceBias(slopes))[0, 1]
    torch.testing.assert_close(distance, -slopes[1] * (i[:, None] - j[None]).double())
    assert (Cosine().pair(torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 1), EDGE).logit == 0).all()


def test_clamp_keeps_absent_edges() -> None:
    given = Given(torch.tensor([[-math.inf, -9.0, 9.0]]))
    clamped = given.clamp(-1.0, 1.0)
    found = clamped.pair(QUERY, KEY, VALUE, EDGE, *clamped.tensors()).logit.flatten()
    assert found.tolist() == [-math.inf, -1.0, 1.0]


@pytest.mark.parametrize("kind", ["row scale", "low rank mask"])
@pytest.mark.parametrize("factor", [-2.0, 0.0, 2.0])
def test_a_factor_of_any_sign_keeps_absent_edges(kind: str, factor: float) -> None:
    logits = torch.tensor([[-math.inf, -9.0, 3.0]], dtype=torch.float64, requires_grad=True)
    given = torch.full((1,), factor, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(3, 1, dtype=torch.float64)
    product = RowScale(given) if kind == "row scale" else LowRankBias(given[:, None], ones)
    score = product * Given(logits)
    found = score.pair(QUERY, KEY, VALUE, EDGE, *score.tensors()).logit.flatten()
    assert found.tolist() == [-math.inf, -9.0 * factor, 3.0 * factor]
    grads = torch.autograd.grad(found.exp().sum(), (given, logits))
    weight = torch.tensor([0.0, -9.0, 3.0], dtype=torch.float64) * factor
    exact = weight.exp() * torch.tensor([0.0, -9.0, 3.0])
    torch.testing.assert_close(grads[0], exact.sum().view(1))
    torch.testing.assert_close(grads[1][0], factor * weight.exp() * torch.tensor([0.0, 1.0, 1.0]))


def test_a_sum_takes_one_new_value_and_one_state() -> None:
    class Moves(Score):
        def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
            return PairResult((query * key).sum(-1), value + 1, (query - key).sum(-1))

    found = (Dot() + Moves()).pair(QUERY, QUERY, QUERY, EDGE)
    assert torch.equal(found.value, QUERY + 1) and found.state is not None
    with pytest.raises(ValueError, match="both terms change the value"):
        (Moves() + Moves()).pair(QUERY, QUERY, QUERY, EDGE)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Dot(0.0), "Dot: scale must be a finite number other than 0 or None, got 0.0"),
        (lambda: Cosine(math.inf), "Cosine: scale must be a finite number other than 0, got inf"),
        (lambda: Bilinear(torch.zeros(2, 3)), r"matrix must be square, .*got shape \(2, 3\)"),
        (lambda: Bilinear(torch.eye(2), scale=0.0), "Bilinear: scale must be a finite number other than 0"),
        (lambda: EdgeBias(torch.zeros(3)), r"values must have axes \(queries, keys\).*got shape \(3,\)"),
        (lambda: DistanceBias(torch.zeros(2, 2)), "one number per query head, got .2, 2."),
        (lambda: RowScale(torch.zeros(1, 1, 1, 1)), r"RowScale: values must be a tensor \(N,\)"),
        (lambda: Dot().clamp(2.0, 1.0), "low must be below high, got low=2.0, high=1.0"),
    ],
)
def test_errors(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
    with pytest.raises(TypeError, match="matrix must be a floating-point tensor, got torch.int64"):
        Bilinear(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"matrix must have the queries' width 4, got shape"):
        Bilinear(torch.eye(3)).lower(QUERY, KEY, EDGE)
    with pytest.raises(TypeError, match="values must be a floating-point tensor, got torch.int64"):
        EdgeBias(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="unsupported operand"):
        Dot() + 1  # type: ignore[operator]


class OwnEdges(Score):
    """logit = a number per edge + t."""

    def __init__(self, values: torch.Tensor, at: torch.Tensor) -> None:
        self.values, self.at = values, at

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.at,)

    def edge_tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.values,)

    def pair(self, query, key, value, edge, *tensors):  # type: ignore[no-untyped-def]
        return PairResult(tensors[0] + 10 * tensors[1], value)


def test_edge_tensors_reach_the_score_that_owns_them() -> None:
    one, two = (OwnEdges(torch.full((3,), at), torch.full((1, 1, 1, 1), 0.1 * at)) for at in (1.0, 2.0))
    whole = (one + two).clamp(-99.0, 99.0) + RowScale(torch.ones(1)) * one
    assert len(whole.tensors()) == 4 and len(whole.edge_tensors()) == 3
    arguments = [*whole.tensors(), *(tensor.view(1, 1, 3) for tensor in whole.edge_tensors())]
    flat = [tensor.reshape(1, 1, -1) for tensor in arguments]
    logit = whole.pair(QUERY, KEY, KEY, EDGE, *flat).logit
    assert torch.allclose(logit, torch.full_like(logit, 0.1 + 10 + 0.2 + 20 + 0.1 + 10))
