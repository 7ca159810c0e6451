"""Gated positional self-attention (GPSA): each head mixes a content softmax with a positional one.

Legend: B batch, H heads, N = rows * columns tokens of a grid, D head width, C width.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.attend import Reducer, attend, reduce
from attlas.attend.reducers import Seen
from attlas.layers.inputs import check_grid
from attlas.layers.mixers import MixerEntry, register_mixer
from attlas.pattern import Tokens

__all__ = [
    "GPSA",
    "content_distance",
    "grid_of",
    "kernel_distance",
    "local_positions",
    "positional_kernels",
    "positional_mix",
]


def local_positions(heads: int, strength: float = 1.0) -> Float[Tensor, "K 3"]:
    """Weights of (dx, dy, dx^2 + dy^2) with which K = floor(sqrt(heads))^2 heads look at the K offsets of a
    convolution's window: head a + k b at (dx, dy) = (b - c, a - c), k = floor(sqrt(heads)).

    c is (k - 1) / 2 for even k, floor(k / 2) for odd k; softmax(-strength |delta - offset|^2).
    """
    side = isqrt(heads)
    centre = (side - 1) / 2 if side % 2 == 0 else side // 2
    offsets = [(b - centre, a - centre) for b in range(side) for a in range(side)]
    return strength * torch.tensor([[2 * dx, 2 * dy, -1.0] for dx, dy in offsets])


def positional_kernels(
    weights: Float[Tensor, "H 3"], rows: int, columns: int
) -> tuple[Float[Tensor, "H rows rows"], Float[Tensor, "H columns columns"]]:
    """softmax_j(w . (dx, dy, dx^2 + dy^2)) of a grid as two softmax matrices, of the rows and the columns.

    delta = (column_j - column_i, row_j - row_i). The logit is a sum over the two axes, so that the softmax
    over the grid is exactly the product of one over rows and one over columns.
    """

    def kernel(linear: Tensor, square: Tensor, size: int) -> Tensor:
        place = torch.arange(size, dtype=weights.dtype, device=weights.device)
        delta = place[None, :] - place[:, None]
        return (linear[:, None, None] * delta + square[:, None, None] * delta.square()).softmax(-1)

    return kernel(weights[:, 1], weights[:, 2], rows), kernel(weights[:, 0], weights[:, 2], columns)


def positional_mix(
    row: Float[Tensor, "H R R"], column: Float[Tensor, "H W W"], value: Float[Tensor, "B H N D"]
) -> Float[Tensor, "B H N D"]:
    """(row ⊗ column) value: one axis after the other, O(N (R + W) D) and nothing N x N."""
    grid = value.unflatten(2, (row.shape[-1], column.shape[-1]))
    across = torch.einsum("hxy,bhryd->bhrxd", column, grid)
    return torch.einsum("hrs,bhsxd->bhrxd", row, across).flatten(2, 3)


def kernel_distance(row: Float[Tensor, "H R R"], column: Float[Tensor, "H W W"]) -> Float[Tensor, "H"]:
    """Mean over queries of Σ_j P_ij |delta_ij| for P = row ⊗ column: from the band sums of both, O(N)."""
    by_row, by_column = (
        torch.stack([kernel.diagonal(offset, -2, -1).sum(-1) for offset in range(1 - size, size)], -1)
        for kernel, size in ((row, row.shape[-1]), (column, column.shape[-1]))
    )
    dy, dx = (
        torch.arange(1 - kernel.shape[-1], kernel.shape[-1], dtype=row.dtype, device=row.device)
        for kernel in (row, column)
    )
    distance = (dy[:, None].square() + dx.square()).sqrt()
    tokens = row.shape[-1] * column.shape[-1]
    return torch.einsum("hr,hc,rc->h", by_row, by_column, distance) / tokens


@dataclass(frozen=True)
class _GridDistance(Reducer):
    """Mean Euclidean distance on a row-major grid from each query to the keys that it looks at, (B, H, N)."""

    columns: int
    name = "grid_distance"

    def empty(self, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, heads, queries)

    def add(self, total: Tensor, seen: Seen) -> None:
        i, j = seen.query_position[:, None, :, None], seen.key_position[:, None, None, :]
        dy, dx = i // self.columns - j // self.columns, i % self.columns - j % self.columns
        distance = (dy.square() + dx.square()).to(seen.weights.dtype).sqrt()
        total[:, :, seen.rows] += (seen.weights * distance).sum(-1)


def content_distance(
    query: Float[Tensor, "B H N D"], key: Float[Tensor, "B H N D"], columns: int
) -> Float[Tensor, "H"]:
    """Mean over queries and batch of Σ_j A_ij |delta_ij| for A = softmax(q . k / sqrt D), by row blocks."""
    found = reduce(query, key, None, [_GridDistance(columns)])["grid_distance"]
    return found.mean((0, 2))


def grid_of(tokens: int, at: Tokens | None) -> tuple[int, int]:
    """(rows, columns) of a token space with two named axes; without one, of the square grid."""
    if at is None:
        side = isqrt(tokens)
        if side * side != tokens:
            raise ValueError(
                f"{tokens} tokens are no square grid: say which with at=Tokens.grid(H=rows, W=columns)"
            )
        return side, side
    if len(at.axes) != 2 or not at.plain or at.length != tokens or at.total != tokens:
        raise ValueError(
            f"at must hold all {tokens} tokens of a grid with two axes, Tokens.grid(H=rows, W=columns), got "
            f"{at.length} tokens with axes {dict(at.axes)}"
        )
    return at.axes[0][1], at.axes[1][1]


class GPSA(nn.Module):
    """x -> W_o concat_h[(1 - s_h) softmax(q k^T / sqrt D) v + s_h P_h v], s_h = sigmoid(gate_h).

    P_h = softmax_j(w_h . (dx, dy, dx^2 + dy^2)) depends on places alone and starts as a convolution: W_v is
    the identity, each of floor(sqrt H)^2 heads looks at an offset of its own, further heads keep random
    weights; gates start at 1 (0.73 positional), all else truncated normal.

    Args:
        width, heads: of the input; strength: alpha, how sharply a head starts to look at its offset;
        spread: standard deviation of the random weights at the start. grid: (rows, columns) of the tokens
        where a call does not say; a square unless given.

    Shapes: (B, N, width) -> (B, N, width), tokens of a grid, row-major, no class token. Cost: the content
    branch is `attend`'s, the positional one O(N^1.5 D): no N x N matrix and no table of offsets.
    Raises ValueError for a width that heads do not divide, and where the tokens are no grid.
    Source: d'Ascoli et al. 2021, arXiv 2103.10697. Departures: the positional logits have no constant, which
    a softmax ignores (official: a bias without gradient); rows, which add up to one, are not divided by their
    sum again; no dropout.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        strength: float = 1.0,
        spread: float = 0.02,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.strength, self.spread, self.grid = heads, strength, spread, grid
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.position = nn.Parameter(torch.empty(heads, 3))
        self.gate = nn.Parameter(torch.ones(heads))
        self.start_local()

    @torch.no_grad()
    def start_local(self) -> None:
        """Draw new initial weights: those of a convolution."""
        for drawn in (self.query.weight, self.key.weight, self.out.weight, self.position):
            nn.init.trunc_normal_(drawn, std=self.spread)
        nn.init.zeros_(self.out.bias)
        nn.init.eye_(self.value.weight)
        self.position.mul_(self.strength)
        local = local_positions(self.heads, self.strength)
        self.position[: len(local)] = local.to(self.position)
        nn.init.ones_(self.gate)

    def forward(self, x: Float[Tensor, "B N C"], at: Tokens | None = None) -> Float[Tensor, "B N C"]:
        """`at`: the grid of the tokens, Tokens.grid(H=rows, W=columns); default: the layer's own."""
        rows, columns = self._sides(x, at)
        query, key, value = (self._by_head(make(x)) for make in (self.query, self.key, self.value))
        content = torch.as_tensor(attend(query, key, value))
        # Under autocast the parameters are float32 and the values are not.
        row, column = positional_kernels(self.position, rows, columns)
        positional = positional_mix(row.to(value.dtype), column.to(value.dtype), value).to(content.dtype)
        share = self.gate.sigmoid().to(content.dtype)
        mixed = torch.lerp(content, positional, share.view(1, -1, 1, 1))
        return self.out(mixed.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def nonlocality(self, x: Float[Tensor, "B N C"], at: Tokens | None = None) -> Float[Tensor, "H"]:
        """Mean over batch and queries of Σ_j A_ij |delta_ij| in token widths, A the mixture of both parts."""
        rows, columns = self._sides(x, at)
        query, key = (self._by_head(make(x)) for make in (self.query, self.key))
        share = self.gate.sigmoid()
        far = content_distance(query, key, columns).to(share.dtype)
        near = kernel_distance(*positional_kernels(self.position, rows, columns))
        return (1 - share) * far + share * near

    def _sides(self, x: Tensor, at: Tokens | None) -> tuple[int, int]:
        if at is not None or self.grid is None:
            return grid_of(x.shape[1], at)
        check_grid("GPSA", x, self.grid)
        return self.grid

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


register_mixer(
    MixerEntry(
        "gpsa",
        lambda setting: GPSA(setting.width, setting.heads, grid=setting.fixed_grid),
        frozenset({"NS"}),
        tokens="grid",
        why_not="its positional weights are those of offsets on the image of one sequence, to all sides",
    )
)
