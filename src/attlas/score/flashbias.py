"""FlashBias: a bias over pairs written as a low-rank product, so that it runs inside the dot product.

Source: Wu et al. 2025, FlashBias, arXiv 2505.12044. Legend: N queries, M keys, R rank, H query heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.score.base import Edge, Lowering, PairResult, Score, ScoreSum, side_by_side, times
from attlas.score.bias import EdgeBias

__all__ = [
    "LowRankBias",
    "Modulated",
    "alibi",
    "alibi_slopes",
    "cosine_of_distance",
    "factored",
    "rank_of",
    "squared_distance",
]

# Factors are often positions or squares of them: half precision would round the bias itself.
_LOWERED = (torch.float32, torch.float64)
ENERGY, MOST = 0.995, 16
"""Share of squared singular values to keep, and the largest rank that pays (the official Swin code)."""


@dataclass(frozen=True, eq=False)
class LowRankBias(Score):
    """logit = phi_q_i . phi_k_j, to be added to another score: `Dot() + LowRankBias(phi_q, phi_k)`.

    phi_q (N, R), (H, N, R) or (B, H, N, R), phi_k the same with M; axes of length 1 broadcast; finite. Rows
    and keys are counted from 0, as in `EdgeBias`. The scale of the other score does not touch the bias.
    Gradients reach both factors. Lowers to a dot product with R more columns (R times the group where a
    grouped key head serves query heads with factors of their own); never below float32, where integers
    beyond 256 are lost. Cost: 2 R FLOPs a pair, memory O((N + M) R) instead of O(N M).
    """

    phi_q: Tensor
    phi_k: Tensor

    def __post_init__(self) -> None:
        one, other = _four_axes("phi_q", self.phi_q), _four_axes("phi_k", self.phi_k)
        if one.shape[-1] != other.shape[-1] or not one.shape[-1]:
            raise ValueError(
                "LowRankBias: phi_q and phi_k must have the same last axis, the rank, of at least 1, got "
                f"{tuple(self.phi_q.shape)} and {tuple(self.phi_k.shape)}"
            )

    @classmethod
    def from_svd(cls, bias: Tensor, *, energy: float = ENERGY, rank: int | None = None) -> "LowRankBias":
        """The best factors of a table (N, M), (H, N, M) or (B, H, N, M), head by head: U S^1/2 and V S^1/2.

        The rank is `rank`, or the smallest that keeps the share `energy` of sum S^2 in every head. What is
        the same for a whole row changes no weight but counts as energy: where a table is far from zero,
        take `bias - bias.mean(-1, keepdim=True)`. The factors are constants: no gradient reaches the table.
        ValueError: a rank or energy out of range.
        """
        _check_table(bias, energy)
        largest = min(bias.shape[-2:])
        if rank is not None and not 1 <= rank <= largest:
            raise ValueError(
                f"from_svd: rank must be in 1..{largest} for a table {tuple(bias.shape)}, got {rank}"
            )
        left, values, right = torch.linalg.svd(bias.detach().double(), full_matrices=False)
        kept = _rank(values, energy) if rank is None else rank
        root = values[..., :kept].sqrt()
        phi_q = left[..., :kept] * root.unsqueeze(-2)
        phi_k = right[..., :kept, :].transpose(-1, -2) * root.unsqueeze(-2)
        return cls(phi_q.to(_exact(bias)), phi_k.to(_exact(bias)))

    @property
    def rank(self) -> int:
        """R."""
        return self.phi_q.shape[-1]

    @property
    def largest(self) -> float:
        """The largest absolute value of a factor."""
        return max(float(t.detach().abs().max()) if t.numel() else 0.0 for t in (self.phi_q, self.phi_k))

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"low_rank_bias(rank={self.rank})"

    def __mul__(self, score: Score) -> "Modulated":
        """A multiplicative mask instead of a bias: `cosine_of_distance(...) * Dot()`."""
        if not isinstance(score, Score):
            return NotImplemented
        return Modulated(self, score)

    def tensors(self) -> tuple[Tensor, ...]:
        one, other = _four_axes("phi_q", self.phi_q), _four_axes("phi_k", self.phi_k)
        return one.unsqueeze(3), other.unsqueeze(2)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(torch.einsum("...d,...d->...", tensors[0], tensors[1]), value)

    def lowers(self, dtype: torch.dtype) -> bool:
        return dtype in _LOWERED

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        if not self.lowers(query.dtype):
            return None
        rows, keys = self.columns(query, key)
        return Lowering(rows, keys, 1.0, None, self.largest, rows.shape[-1] - query.shape[-1])

    def columns(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The factors as columns of queries (B, H, N, R') and keys (B, G, M, R'), in the dtype of `query`."""
        rows = _four_axes("phi_q", self.phi_q).to(query.dtype)
        keys = _four_axes("phi_k", self.phi_k).to(query.dtype)
        heads, kv_heads = query.shape[1], key.shape[1]
        if keys.shape[1] == heads != kv_heads:
            rows, keys = _slots(rows.expand(-1, heads, -1, -1), keys, heads // kv_heads)
        return _as_wide_as(rows, query), _as_wide_as(keys, key)


@dataclass(frozen=True, eq=False)
class Modulated(Score):
    """logit = (phi_q_i . phi_k_j) * inner_ij, a multiplicative low-rank mask; made by `bias * score`.

    An inner logit of -inf stays absent whatever the factor. Lowers to a dot product of R times the inner
    width: the products of every column with every factor.
    """

    factor: LowRankBias
    inner: Score

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"low_rank(rank={self.factor.rank}) * ({self.inner.name})"

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.factor.tensors(), *self.inner.tensors())

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return self.inner.edge_tensors()

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        factor = self.factor.pair(query, key, value, edge, *tensors[:2]).logit
        result = self.inner.pair(query, key, value, edge, *tensors[2:])
        return result._replace(logit=times(factor, result.logit))

    def lowers(self, dtype: torch.dtype) -> bool:
        return self.factor.lowers(dtype) and self.inner.lowers(dtype)

    def lower(self, query: Tensor, key: Tensor, edge: Edge) -> Lowering | None:
        inner = self.inner.lower(query, key, edge) if self.lowers(query.dtype) else None
        if inner is None:
            return None
        rows, keys = self.factor.columns(query, key)
        wide_query, wide_key = _outer(inner.query, rows), _outer(inner.key, keys)
        if inner.shift is not None:
            # A shift of the inner row is no shift here: the factor differs from key to key.
            wide_query = side_by_side(wide_query, rows * (inner.shift / inner.scale).unsqueeze(-1))
            wide_key = side_by_side(wide_key, keys)
        largest = self.factor.largest * max(1.0, inner.largest)
        extra = wide_query.shape[-1] - query.shape[-1]
        return Lowering(wide_query, wide_key, inner.scale, None, largest, extra)


def alibi_slopes(heads: int) -> Tensor:
    """2^(-8 h / heads) for h = 1 .. heads, float32 (heads,). Source: ALiBi, arXiv 2108.12409."""
    if heads < 1:
        raise ValueError(f"alibi_slopes: heads must be at least 1, got {heads}")
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def alibi(slopes: Tensor, n: int) -> ScoreSum:
    """ALiBi over n rows and n keys: logit = -slope_h (i - j), to be added to another score.

    slopes (H,). One column, slope_h * (j - c) with c the middle, so that factors stay small; the rest,
    -slope_h * (i - c), is the same for a whole row: it changes no weight, only the lse. Keys after the
    query would be rewarded: combine with `causal()`. `DistanceBias` is the same by the positions of token
    spaces, for decoded tokens and chunks. Departs from the official file, whose sign rewards distance.
    """
    if not isinstance(slopes, Tensor) or slopes.dim() != 1:
        got = tuple(slopes.shape) if isinstance(slopes, Tensor) else type(slopes).__name__
        raise ValueError(f"alibi: slopes must be a tensor with one number per query head, got {got}")
    _check_count("alibi", n)
    slopes = slopes.to(_exact(slopes))
    place = torch.arange(n, dtype=slopes.dtype, device=slopes.device) - (n - 1) / 2
    column = LowRankBias(slopes.view(-1, 1, 1), place.unsqueeze(-1))
    return column + EdgeBias((-slopes[:, None] * place).unsqueeze(-1))


def squared_distance(x: Tensor, y: Tensor | None = None, *, weight: float | Tensor) -> LowRankBias:
    """logit = weight_h |x_i - y_j|^2; a negative weight prefers what is near. Rank D + 2, exact.

    x (N, D), (H, N, D) or (B, H, N, D), y the same with M (default: x); weight a number or (H,). The
    coordinates are centred first: squares are large. (The distance itself is not of low rank.)
    """
    one = _four_axes("x", x, "squared_distance")
    other = one if y is None else _four_axes("y", y, "squared_distance")
    one, other = one.to(_exact(one)), other.to(_exact(other))
    if one.shape[-1] != other.shape[-1]:
        raise ValueError(
            "squared_distance: x and y must have as many coordinates, got shapes "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )
    if isinstance(weight, Tensor) and weight.dim() != 1:
        raise ValueError(
            f"squared_distance: weight must be a number or a tensor (heads,), got {tuple(weight.shape)}"
        )
    centre = other.detach().mean(-2, keepdim=True)
    one, other = one - centre, other - centre
    factor = weight.view(1, -1, 1, 1) if isinstance(weight, Tensor) else weight
    lengths, other_lengths = (t.square().sum(-1, keepdim=True) for t in (one, other))
    phi_q = torch.cat((lengths, torch.ones_like(lengths), -2 * one), -1) * factor
    phi_k = torch.cat((torch.ones_like(other_lengths), other_lengths, other), -1)
    return LowRankBias(phi_q, phi_k)


def cosine_of_distance(
    frequencies: Tensor, n: int, *, amplitudes: Tensor | None = None, phases: Tensor | None = None
) -> LowRankBias:
    """logit = sum_f a_f cos(w_f (i - j) + p_f) over n rows and n keys, by angle sums: rank 2 F, exact.

    frequencies w (F,), in radians a token; amplitudes a (F,) or (H, F), 1 unless given; phases p (F,), 0
    unless given. `cosine_of_distance(...) * Dot()` is the multiplicative form.
    """
    if not isinstance(frequencies, Tensor) or frequencies.dim() != 1 or not frequencies.numel():
        got = tuple(frequencies.shape) if isinstance(frequencies, Tensor) else type(frequencies).__name__
        raise ValueError(f"cosine_of_distance: frequencies must be a tensor (F,), got {got}")
    _check_count("cosine_of_distance", n)
    count = len(frequencies)
    amplitudes = torch.ones_like(frequencies) if amplitudes is None else amplitudes
    phases = torch.zeros_like(frequencies) if phases is None else phases
    if amplitudes.dim() not in (1, 2) or amplitudes.shape[-1] != count or phases.shape != (count,):
        raise ValueError(
            f"cosine_of_distance: amplitudes must be ({count},) or (heads, {count}) and phases ({count},), "
            f"one for each frequency, got {tuple(amplitudes.shape)} and {tuple(phases.shape)}"
        )
    # Angles in float64: they grow with the length.
    angle = torch.arange(n, dtype=torch.float64, device=frequencies.device)[:, None] * frequencies.double()
    shifted, scale = angle + phases.double(), amplitudes.double().unsqueeze(-2)
    phi_q = torch.cat((scale * shifted.cos(), scale * shifted.sin()), -1)
    phi_k = torch.cat((angle.cos(), angle.sin()), -1)
    return LowRankBias(phi_q.to(_exact(frequencies)), phi_k.to(_exact(frequencies)))


def rank_of(bias: Tensor, energy: float = ENERGY) -> int:
    """The smallest rank that keeps the share `energy` of the squared singular values in every head."""
    _check_table(bias, energy)
    return _rank(torch.linalg.svdvals(bias.detach().double()), energy)


def factored(bias: Tensor, *, energy: float = ENERGY, most: int = MOST) -> LowRankBias | EdgeBias:
    """`LowRankBias.from_svd`, or the table itself where that would take a rank above `most`."""
    rank = rank_of(bias, energy)
    return LowRankBias.from_svd(bias, rank=rank) if rank <= most else EdgeBias(bias)


def _four_axes(what: str, values: Tensor, owner: str = "LowRankBias") -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{owner}: {what} must be a floating-point tensor, got {kind}")
    if values.dim() not in (2, 3, 4):
        raise ValueError(
            f"{owner}: {what} must have axes (tokens, columns), (heads, tokens, columns) or "
            f"(batch, heads, tokens, columns), got shape {tuple(values.shape)}"
        )
    return values.reshape((1,) * (4 - values.dim()) + tuple(values.shape))


def _exact(given: Tensor) -> torch.dtype:
    """The dtype of factors: positions and squares are never rounded to half precision."""
    return torch.promote_types(given.dtype, torch.float32)


def _check_count(owner: str, n: int) -> None:
    if isinstance(n, bool) or n < 1:
        raise ValueError(f"{owner}: n must be a number of tokens of at least 1, got {n!r}")


def _check_table(bias: Tensor, energy: float) -> None:
    _four_axes("bias", bias, "from_svd")
    if not bias.numel() or not bool(torch.isfinite(bias).all()):
        raise ValueError(
            "from_svd: bias must be finite (a mask of -inf is a pattern) and not empty, got "
            f"{tuple(bias.shape)}"
        )
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"from_svd: energy must be above 0 and at most 1, got {energy}")


def _rank(values: Tensor, energy: float) -> int:
    squares = values.square()
    # A table of zeros has no energy: one column of zeros is all of it.
    total = squares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    short = (squares.cumsum(-1) / total < energy - 1e-12).sum(-1)  # sums end an epsilon below 1
    return min(int(short.max()) + 1, values.shape[-1])


def _slots(rows: Tensor, keys: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """One set of columns for every query head of a group; a query is zero in those of the others."""
    own = torch.eye(group, dtype=rows.dtype, device=rows.device).view(group, 1, group, 1)
    spread = rows.unflatten(1, (-1, group)).unsqueeze(-2) * own
    beside = keys.unflatten(1, (-1, group)).transpose(2, 3)
    return spread.flatten(-2).flatten(1, 2), beside.flatten(-2)


def _as_wide_as(factor: Tensor, tensor: Tensor) -> Tensor:
    """(B, heads, tokens, R'), broadcast to the tokens of a tensor."""
    return factor.expand(max(factor.shape[0], tensor.shape[0]), *tensor.shape[1:3], -1)


def _outer(tensor: Tensor, factor: Tensor) -> Tensor:
    return (tensor.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)
