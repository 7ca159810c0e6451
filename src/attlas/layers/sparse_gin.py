"""Sparse GIN: a small graph network on the few strong edges of a frozen layer's attention.

Source: Buehler 2025, arXiv 2501.02393; lamm-mit/Graph-Aware-Transformers.
Legend: B batch, H heads, N queries, M keys, C width, W inner width, E edges.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import Reducer, reduce, sum_over_edges, weights
from attlas.attend.reducers import Seen
from attlas.layers.gin_attention import check_dropout, check_ratio
from attlas.pattern import Pattern, Tokens, causal
from attlas.score import Dot

__all__ = ["SparseEdges", "SparseGIN", "lambda_schedule", "strong_edges"]


class SparseEdges(NamedTuple):
    """A batch of graphs as one, in CSR over B * N receivers: row_ptr, senders b * M + j, and weights (E,).

    sizes: (B, N, M), by which `SparseGIN` knows that they were made for its tokens; None: not known.
    """

    row_ptr: Tensor
    col: Tensor
    weight: Tensor
    sizes: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _Strong(Reducer):
    """(E, 3) numbers (batch row, query, key) of the pairs whose weights, summed over heads, are strong."""

    kappa: float
    theta: float
    tau: float

    name = "strong"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> list[Tensor]:
        return []

    def add(self, total: list[Tensor], seen: Seen) -> None:
        found = _squashed(seen.weights.sum(1), self.kappa, self.theta) > self.tau
        # A pair off the pattern has weight 0, which a low tau would let through.
        b, row, column = (found & (seen.weights > 0).any(1)).nonzero(as_tuple=True)
        total.append(torch.stack([b, seen.rows[row], seen.keys[column]], 1))

    def finish(self, total: list[Tensor], queries: int) -> Tensor:
        return torch.cat(total)


def _squashed(summed: Tensor, kappa: float, theta: float) -> Tensor:
    return (kappa * (summed.clamp(max=1.0) - theta)).sigmoid()


def strong_edges(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G M D"],
    *,
    scale: float | None = None,
    kappa: float = 10.0,
    theta: float = 0.1,
    tau: float = 0.6,
    self_loops: bool = True,
    pattern: Pattern | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
    official: bool = False,
) -> SparseEdges:
    """adj = σ(κ (min(1, Σ_r A_r) - θ)) where it is above τ, A_r the softmax maps of the heads.

    With κ = 10, θ = 0.1 and τ = 0.6 an edge needs a summed weight above 0.141. pattern: causal unless given,
    one for all heads. self_loops: of tokens with their own. official: what the released code keeps. It stores
    (query, key) as (source, target) and then asks for source ≤ target, which on a causal map leaves the
    self-loops alone. A pair whose softmax weights are all rounded to 0 is no edge, which the formula would
    keep where τ < σ(-κ θ), 0.269 by default. The edges are found 64 rows at a time, without gradient; their
    weights carry the gradient of queries and keys. Cost: one forward's logits, O(N · 64 + E H) memory.
    ValueError: a pattern per head, no token, κ that is not positive, τ that no σ can be above, or below 0.
    """
    if not kappa > 0:
        raise ValueError(f"strong_edges: kappa must be above 0, got {kappa}: strong pairs are to be kept")
    if not 0 <= tau < 1:
        raise ValueError(f"strong_edges: tau must be from 0 to below 1, as a sigmoid is, got {tau}")
    for name, part in (("query", query), ("key", key)):
        if not (part.shape[0] and part.shape[2]):
            raise ValueError(
                f"strong_edges: {name} must have at least one batch row and one token, got shape "
                f"{tuple(part.shape)}"
            )
    pattern = causal() if pattern is None else pattern
    if pattern.heads is not None:
        raise ValueError("strong_edges: the pattern must be one for all heads, whose maps are summed")
    score = Dot() if scale is None else Dot(scale)
    options: dict[str, Any] = {"pattern": pattern, "score": score}
    found = reduce(query, key, None, [_Strong(kappa, theta, tau)], q_at=q_at, k_at=k_at, **options)["strong"]
    if not self_loops or official:
        row, column = _positions(found, query.shape[2], key.shape[2], q_at, k_at)
        # Receivers come first: `row <= column` is the released source <= target.
        found = found[(row <= column) if official else (row != column)]
    queries, keys = query.shape[2], key.shape[2]
    # Found block of rows by block of rows: now by batch row, query and key.
    found = found[((found[:, 0] * queries + found[:, 1]) * keys + found[:, 2]).argsort()]
    b, row, column = found.unbind(1)
    counts = torch.bincount(b * queries + row, minlength=query.shape[0] * queries)
    weight = _squashed(_weights_of(query, key, found, q_at, k_at, options), kappa, theta)
    sizes = query.shape[0], queries, keys
    return SparseEdges(functional.pad(counts.cumsum(0), (1, 0)), b * keys + column, weight, sizes)


def _positions(
    found: Tensor, queries: int, keys: int, q_at: Tokens | None, k_at: Tokens | None
) -> tuple[Tensor, Tensor]:
    b, row, column = found.unbind(1)
    places = []
    for space, count, at in ((q_at, queries, row), (k_at, keys, column)):
        where = (space or Tokens(count)).positions(found.device)
        places.append(where[at] if where.dim() == 1 else where[b, at])
    return places[0], places[1]


def _weights_of(
    query: Tensor,
    key: Tensor,
    found: Tensor,
    q_at: Tokens | None,
    k_at: Tokens | None,
    options: dict[str, Any],
) -> Tensor:
    """Σ_r A_r at the found pairs, sorted by batch row, with gradient; each row has pairs of its own."""
    parts = [query.new_zeros(0)]
    for b in range(query.shape[0]):
        _, row, column = found[found[:, 0] == b].unbind(1)
        if not row.numel():
            continue
        one = weights(
            query[b : b + 1], key[b : b + 1], edges=(row, column), q_at=_row_of(q_at, b),
            k_at=_row_of(k_at, b), **options,
        )  # fmt: skip
        parts.append(one[0].sum(0))
    return torch.cat(parts)


def _row_of(space: Tokens | None, b: int) -> Tokens | None:
    """The token space of one batch row."""
    if space is None:
        return None
    index, valid = (
        tensor[b] if tensor is not None and tensor.dim() == 2 else tensor
        for tensor in (space.index, space.valid)
    )
    return Tokens(space.length, space.start, index=index, valid=valid, total=space.total)


def lambda_schedule(layers: int, first: float = 0.0, last: float = 0.5) -> tuple[float, ...]:
    """λ at the start of training, from `first` in layer 1 linearly to `last` in the last layer."""
    if layers < 1:
        raise ValueError(f"lambda_schedule: layers must be at least 1, got {layers}")
    return tuple(first + (last - first) * layer / max(1, layers - 1) for layer in range(layers))


class SparseGIN(nn.Module):
    """x -> x + λ norm(W_out gnn(W_in x)): a GIN layer over `SparseEdges`, for x behind attention's residual.

        z = W_in x;  s_i = ε z_i + Σ_j adj_ij z_j;  y = W_2 relu(W_1 s) + s;  gnn = z + dropout(relu(y))

    Args:
        width: C; inner: W, 155 in the paper's run. amount: λ at the start (`lambda_schedule`), trained.
        ratio: width of the hidden layer of the MLP over W. dropout: share that is dropped.
        weighted: adj_ij multiplies z_j; else neighbours are summed as they are. ε starts at 0.
        norm: RMSNorm, eps 1e-5, without which the change is as large as x itself from the start; or none.

    `advance` also gives z, which later tokens need of their neighbours: W numbers a token, beside the keys.
    ratio, dropout and norm are those of the released run, which has PReLU for ReLU and leaves out "z +".
    Cost: O(N C W + E W).
    """

    def __init__(
        self,
        width: int,
        inner: int = 155,
        *,
        amount: float = 0.5,
        ratio: float = 1.0,
        dropout: float = 0.1,
        weighted: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if inner < 1:
            raise ValueError(f"SparseGIN: inner must be at least 1, got {inner}")
        check_ratio("SparseGIN", ratio)
        check_dropout("SparseGIN", dropout)
        self.weighted, self.dropout = weighted, dropout
        hidden = max(1, int(ratio * inner))
        self.enter, self.leave = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first, self.second = nn.Linear(inner, hidden), nn.Linear(hidden, inner)
        self.norm = nn.RMSNorm(width, eps=1e-5) if norm else nn.Identity()
        self.eps = nn.Parameter(torch.zeros(1))
        self.amount = nn.Parameter(torch.tensor(float(amount)))

    def forward(self, x: Float[Tensor, "B N C"], edges: SparseEdges) -> Float[Tensor, "B N C"]:
        """The whole sequence: as many senders as receivers."""
        return self.advance(x, edges, None)[0]

    def advance(
        self, x: Float[Tensor, "B N C"], edges: SparseEdges, past: Float[Tensor, "B M W"] | None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B L W"]]:
        """The next N tokens behind `past`, the z of all earlier ones; senders count from the first of them.

        Returns x and the z of all tokens. ValueError: edges made for other numbers of tokens.
        """
        change, every = self.change(x, edges, past)
        return x + change, every

    def change(
        self, x: Float[Tensor, "B N C"], edges: SparseEdges, past: Float[Tensor, "B M W"] | None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B L W"]]:
        """What `advance` adds to x, and the z of all tokens."""
        mine = self.enter(x)
        every = mine if past is None else torch.cat([past.to(mine.dtype), mine], 1)
        _check(edges, x, every)
        weight = edges.weight.to(mine.dtype)
        weight = weight if self.weighted else torch.ones_like(weight)
        near = sum_over_edges(weight, every.flatten(0, 1), edges.row_ptr, edges.col).view_as(mine)
        summed = self.eps * mine + near
        found = self.second(functional.relu(self.first(summed))) + summed
        found = mine + functional.dropout(functional.relu(found), self.dropout, self.training)
        return self.amount * self.norm(self.leave(found)), every


def _check(edges: SparseEdges, x: Tensor, every: Tensor) -> None:
    made = edges.sizes
    if made is not None and (made[0] != x.shape[0] or made[1] != x.shape[1] or made[2] != every.shape[1]):
        raise ValueError(
            f"SparseGIN: edges were made for {made[0]} rows of {made[1]} tokens that see {made[2]}, x has "
            f"{x.shape[0]} rows of {x.shape[1]} tokens, {every.shape[1]} with the past: make them by "
            "strong_edges for the same tokens"
        )
    if edges.row_ptr.numel() != x.shape[0] * x.shape[1] + 1:
        raise ValueError(
            f"SparseGIN: edges have {edges.row_ptr.numel() - 1} receivers, x has {x.shape[0]} rows of "
            f"{x.shape[1]} tokens: make them by strong_edges for the same tokens"
        )
    if edges.col.numel() and int(edges.col.max()) >= every.shape[0] * every.shape[1]:
        raise ValueError(
            f"SparseGIN: an edge comes from sender {int(edges.col.max())}, but there are {every.shape[0]} "
            f"rows of {every.shape[1]} tokens: give the past of all earlier tokens"
        )
