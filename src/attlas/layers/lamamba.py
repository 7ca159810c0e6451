"""LaMamba's layers: a selective scan along four paths over a map, shifted windows, conditioned blocks.

Source: LaMamba-Diff, arXiv 2408.02615. Legend: B batch, H x W map, C width, E = expand C channels; maps are
channels-last.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.layers.mamba import SelectiveSSM
from attlas.layers.maxvit import block_partition
from attlas.layers.relative_bias import RelativeBias
from attlas.pattern import Tokens, serpentine
from attlas.pattern.order import Order
from attlas.score import Dot, EdgeBias

__all__ = ["PATHS", "SS2D", "ModulatedBlock", "ShiftedWindowAttention", "lamamba_block", "paths"]

PATHS = (("H", "W"), ("-H", "W"), ("W", "-H"), ("-W", "-H"))
"""Serpentines: rows from the top left, rows from the bottom left, columns from the bottom left and right."""
HIDDEN = -100.0
"""Added to logits of pairs that lie together only because the map was rolled, as in the released code."""


@lru_cache(maxsize=64)
def paths(height: int, width: int) -> tuple[Order, ...]:
    """The four orders of a map; along each, the next token is a neighbour.

    Where a side is even, the second is the first reversed (rows) and the fourth the third (columns).
    """
    space = Tokens.grid(H=height, W=width)
    return tuple(serpentine(space, *axes) for axes in PATHS)


class SS2D(nn.Module):
    """out(norm(sum over paths of unordered SSM_p(ordered u)) * silu(z)), u = silu(conv 3x3), (u, z) = in(x).

    Every path has projections, rates and skips of its own (`SelectiveSSM`). Args: width: C; states: S;
    expand: E / C. No projection has a bias, nor has the depthwise convolution. Shapes: (B, H, W, C) -> the
    same, sides of any parity. Cost: linear in H W.
    """

    def __init__(self, width: int, *, states: int = 1, expand: int = 2, backend: str = "auto") -> None:
        super().__init__()
        channels = expand * width
        self.into = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.scans = nn.ModuleList(
            SelectiveSSM(channels, states=states, rank=-(-width // 16), backend=backend) for _ in PATHS
        )
        self.norm = nn.LayerNorm(channels)
        self.out = nn.Linear(channels, width, bias=False)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """The scanned map."""
        u, z = self.into(x).chunk(2, -1)
        u = functional.silu(self.conv(u.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
        summed = torch.zeros_like(u)
        for order, scan in zip(paths(*x.shape[1:3]), self.scans, strict=True):
            summed = summed + order.inverse(scan(order.permute(u))[0])
        return self.out(self.norm(summed).unflatten(1, x.shape[1:3]) * functional.silu(z))


class ShiftedWindowAttention(nn.Module):
    """Attention inside windows of a map that is rolled by `shift`, with a table of relative biases.

        logit_ij = q_i . k_j / sqrt(d) + table[head, place_j - place_i] - 100 [i, j of different regions]

    Args:
        width, heads: of the map; window: side of a window; shift: 0, or about half a window in every second
            block. A side of the map that is no longer than the window is one window, without shift.
        backend: as in `attend`; the default holds the windows' own n window^2 weights.

    A map that windows do not divide is padded; padding is a region of its own. Shapes: (B, H, W, width) ->
    the same. Source: Swin, arXiv 2103.14030.
    """

    def __init__(self, width: int, *, heads: int, window: int, shift: int = 0, backend: str = "sdpa") -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"shifted windows: width must be a multiple of heads, got {width} and {heads} heads"
            )
        if not 0 <= shift < window:
            raise ValueError(
                f"shifted windows: shift must be at least 0 and below window, got {shift} and {window}"
            )
        self.heads, self.window, self.shift, self.backend = heads, window, shift, backend
        self.project = nn.Linear(width, 3 * width)
        self.bias = RelativeBias(heads, (window, window))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """The attended map."""
        lengths = (x.shape[1], x.shape[2])
        sides = tuple(min(self.window, length) for length in lengths)
        shifts = tuple(self.shift if length > self.window else 0 for length in lengths)
        missing = [-length % side for length, side in zip(lengths, sides, strict=True)]
        rolled = functional.pad(x, (0, 0, 0, missing[1], 0, missing[0])) if any(missing) else x
        rolled = rolled.roll([-shift for shift in shifts], (1, 2)) if any(shifts) else rolled
        partition = block_partition(*sides)
        windows = partition.split(rolled)
        count = windows.shape[1]
        # Windows stand beside the heads: a table of them all is one for every image.
        query, key, value = self.project(windows).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        table = self._table(sides)[None]
        apart = _apart(lengths, sides, shifts)
        if apart is not None:
            table = table + HIDDEN * apart.to(table)[:, None]
        found = attend(
            *(part.flatten(1, 2) for part in (query, key, value)),
            score=Dot() + EdgeBias(table.expand(count, -1, -1, -1).flatten(0, 1)),
            backend=self.backend,
        )
        found = torch.as_tensor(found).unflatten(1, (count, self.heads)).transpose(2, 3).flatten(3)
        joined = partition.join(self.out(found), *rolled.shape[1:3])
        joined = joined.roll(shifts, (1, 2)) if any(shifts) else joined
        return joined[:, : lengths[0], : lengths[1]]

    def _table(self, sides: tuple[int, ...]) -> Tensor:
        """The bias of every pair of a window, (heads, n, n); smaller windows read the middle of the table."""
        table: Tensor = self.bias()
        if sides == (self.window, self.window):
            return table
        held = torch.arange(self.window**2, device=table.device).view(self.window, self.window)
        held = held[: sides[0], : sides[1]].flatten()
        return table[:, held[:, None], held]


@lru_cache(maxsize=64)
def _apart(lengths: tuple[int, int], sides: tuple[int, ...], shifts: tuple[int, ...]) -> Tensor | None:
    """Which pairs of each window come from different regions, bool (windows, n, n); None where none do."""
    labels = []
    for length, side, shift in zip(lengths, sides, shifts, strict=True):
        padded = length + -length % side
        at = (torch.arange(padded) + shift) % padded
        wrapped = torch.arange(padded) >= padded - shift
        labels.append(wrapped.long() + 2 * (at >= length))
    regions = (4.0 * labels[0][:, None] + labels[1])[None, :, :, None]
    in_windows = block_partition(*sides).split(regions)[0, :, :, 0]
    apart = in_windows[:, :, None] != in_windows[:, None, :]
    return apart if bool(apart.any()) else None


class ModulatedBlock(nn.Module):
    """x -> x + gate_p part_p(norm_p(x) (1 + scale_p) + shift_p), part after part, steered by a condition.

    (shift, scale, gate) of all parts = Linear(silu(proj(c))), zero at first: the block begins as the
    identity. Args: width: C; condition: width of c; parts: modules of maps (B, H, W, C); project: whether c
    is projected to C even where it has that width.
    """

    def __init__(
        self, width: int, condition: int, parts: Sequence[nn.Module], *, project: bool = True
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in parts)
        same = condition == width and not project
        self.project = nn.Identity() if same else nn.Linear(condition, width)
        self.modulation = nn.Linear(width, 3 * len(self.parts) * width)
        self.begin_as_identity()

    def begin_as_identity(self) -> None:
        """Set the modulation to zero."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "B H W C"], condition: Float[Tensor, "B K"]
    ) -> Float[Tensor, "B H W C"]:
        """All parts, one after the other."""
        steered = self.modulation(functional.silu(self.project(condition)))[:, None, None]
        numbers = steered.chunk(3 * len(self.parts), -1)
        for k, (norm, part) in enumerate(zip(self.norms, self.parts, strict=True)):
            shift, scale, gate = numbers[3 * k : 3 * k + 3]
            x = x + gate * part(norm(x) * (1 + scale) + shift)
        return x


def lamamba_block(
    width: int,
    condition: int,
    *,
    heads: int,
    window: int,
    shift: int = 0,
    states: int = 1,
    ratio: float = 4.0,
    project: bool = True,
    backend: str = "auto",
) -> ModulatedBlock:
    """LaMamba's block: `SS2D`, then `ShiftedWindowAttention`, then an MLP of `ratio` times the width."""
    inner = int(width * ratio)
    parts = [
        SS2D(width, states=states, backend=backend),
        ShiftedWindowAttention(width, heads=heads, window=window, shift=shift),
        nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)),
    ]
    return ModulatedBlock(width, condition, parts, project=project)
