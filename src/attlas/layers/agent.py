"""Agent attention: a few pooled queries gather from all keys and hand out to all queries.

Legend: B batch, H heads, N tokens, A agents, h x w grid of image tokens, D head width, C width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import via
from attlas.layers.inputs import check_tokens
from attlas.layers.mixers import MixerEntry, register_mixer
from attlas.score import Dot, EdgeBias

__all__ = ["AgentAttention", "AgentBias", "pooled_agents"]

SPREAD, BASE = 0.02, (7, 7)


def pooled_agents(
    query: Float[Tensor, "B N C"], grid: tuple[int, int], pool: tuple[int, int]
) -> Float[Tensor, "B A C"]:
    """Means of the queries of a grid over A = pool[0] * pool[1] boxes (adaptive pooling), row-major."""
    image = query.mT.unflatten(2, grid)
    return functional.adaptive_avg_pool2d(image, pool).flatten(2).mT


class AgentBias(nn.Module):
    """A bias of every agent for every token: a resized base map, plus one per row, plus one per column.

        bias[h, a] = bilinear(base[h, a] (7 x 7) -> grid) + rows[h, a] + columns[h, a]

    in front of them, if there is one, the class token's own number.

    Shapes: (H, A, N), N = grid and one for a class token. Starts truncated normal, std 0.02.
    """

    def __init__(
        self,
        heads: int,
        agents: int,
        grid: tuple[int, int],
        *,
        class_token: bool = False,
        base: tuple[int, int] = BASE,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.base = nn.Parameter(torch.empty(heads, agents, *base))
        self.rows = nn.Parameter(torch.empty(heads, agents, grid[0], 1))
        self.columns = nn.Parameter(torch.empty(heads, agents, 1, grid[1]))
        self.class_token = nn.Parameter(torch.empty(heads, agents, 1)) if class_token else None
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=SPREAD)

    def forward(self) -> Float[Tensor, "H A N"]:
        """The table for all tokens."""
        base = functional.interpolate(self.base, self.grid, mode="bilinear", align_corners=False)
        whole = (base + self.rows + self.columns).flatten(2)
        return whole if self.class_token is None else torch.cat([self.class_token, whole], 2)


class AgentAttention(nn.Module):
    """x -> W_o (softmax(q A^T / sqrt D + B2) softmax(A k^T / sqrt D + B1) v + DWC(v)), A pooled from q.

    Args:
        width, heads; grid: (h, w) of the tokens, row-major; None: a sequence, pooled along its length,
            without biases. pool: agents per side (3 x 3; 7 x 7 in the published models for 14 x 14 tokens).
        class_token: one token in front that is no agent's and no pixel's, but is query, key and value.
        biases: B1, B2 (`AgentBias`). convolution: DWC, a depthwise 3 x 3 convolution of v on the grid.
        reduced: keys and values from a convolution over reduced x reduced tokens and a LayerNorm (PVT);
            v is resized for DWC. bias: of the projections of query, key and value.

    Shapes: (B, N, width) -> (B, N, width). Cost: 4 A N D FLOPs per head and hop, never N x N; the weights
    have rank A at most. Agents are means over all queries: there is no causal form. Raises ValueError if the
    tokens are not those of the grid. Source: Han et al. 2023, arXiv 2312.08874, LeapLabTHU/Agent-Attention,
    agent_deit.py, agent_pvt.py. Without dropout.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        grid: tuple[int, int] | None = None,
        pool: tuple[int, int] = (3, 3),
        class_token: bool = False,
        biases: bool = True,
        convolution: bool = True,
        reduced: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        _check_grid(grid, pool, class_token, reduced)
        self.heads, self.grid, self.pool, self.reduced = heads, grid, pool, reduced
        self.front = int(class_token)
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width) if convolution else None
        self.gather: AgentBias | None = None
        self.hand_out: AgentBias | None = None
        if grid is not None and biases:
            agents, inner = math.prod(pool), (grid[0] // reduced, grid[1] // reduced)
            self.gather = AgentBias(heads, agents, inner, class_token=class_token)
            self.hand_out = AgentBias(heads, agents, grid, class_token=class_token)
        if reduced > 1:
            self.reduction = nn.Conv2d(width, width, reduced, stride=reduced)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """All tokens, a class token first."""
        check_tokens("agent attention", x=x)
        grid = self._grid_of(x)
        source, inner = self._reduced(x, grid)
        query, key, value = self.query(x), self.key(source), self.value(source)
        agents = pooled_agents(query[:, self.front :], grid, self.pool)
        score = Dot() if self.gather is None else Dot() + EdgeBias(self.gather())
        onward = Dot() if self.hand_out is None else Dot() + EdgeBias(self.hand_out().mT)
        found = via(
            *(self._by_head(part) for part in (query, agents, key, value)), score=score, onward=onward
        )
        found = found.transpose(1, 2).flatten(2)
        if self.convolution is not None:
            image = value[:, self.front :].mT.unflatten(2, inner)
            if inner != grid:
                image = functional.interpolate(image, grid, mode="bilinear", align_corners=False)
            local = self.convolution(image).flatten(2).mT
            found = found + functional.pad(local, (0, 0, self.front, 0))
        return self.out(found)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        count = x.shape[1] - self.front
        if self.grid is None:
            return 1, count
        if count != math.prod(self.grid):
            behind = " and the class token" if self.front else ""
            raise ValueError(
                f"agent attention is made for a grid of {self.grid[0]} x {self.grid[1]} tokens{behind}, got "
                f"{x.shape[1]} tokens"
            )
        return self.grid

    def _reduced(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        if self.reduced == 1:
            return x, grid
        image = self.reduction(x.mT.unflatten(2, grid))
        return self.norm(image.flatten(2).mT), (image.shape[2], image.shape[3])


def _check_grid(grid: tuple[int, int] | None, pool: tuple[int, int], class_token: bool, reduced: int) -> None:
    if min(pool) < 1 or reduced < 1:
        raise ValueError(f"pool and reduced must be at least 1, got {pool} and {reduced}")
    if reduced > 1 and (grid is None or class_token):
        raise ValueError("reduced keys need a grid and no class token: the reduction is a convolution on it")
    if grid is not None and (grid[0] % reduced or grid[1] % reduced):
        raise ValueError(f"reduced {reduced} must divide the grid of {grid[0]} x {grid[1]} tokens")


register_mixer(
    MixerEntry(
        "agent",
        lambda setting: AgentAttention(
            setting.width, setting.heads, grid=setting.grid, pool=(1, 9) if setting.grid is None else (3, 3)
        ),
        frozenset({"NS"}),
        why_not=(
            "agents are means over all queries, so that every output sees the whole sequence; the published "
            "form has no causal one and is for one sequence of image tokens"
        ),
    )
)
