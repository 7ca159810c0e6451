"""Agent attention without training, inside the attention of a diffusion model: agents are merged tokens.

Legend: B batch, H heads, N tokens of an h x w grid, A agents, D head width, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend, via
from attlas.layers.attention import SelfAttention
from attlas.score import Dot

__all__ = ["AgentSD", "agent_attention", "merge_tokens"]

MERGED, STRIDE, POWER, SHORTCUT = 0.8, 2, 0.3, 0.075
ROWS = 1024  # tokens compared at once


def merge_tokens(
    x: Float[Tensor, "B N C"], grid: tuple[int, int], merged: int, *, stride: int = STRIDE
) -> Float[Tensor, "B A C"]:
    """N - merged tokens: the `merged` most alike become part of the mean of a token near to them.

    The first token of every stride x stride box of the grid stays; each other one looks for the one of these
    with the largest cosine. Those of largest cosine are merged (at most all), the others stay and come first.
    Source: ToMe for diffusion as in agentsd/merge.py, without its random choice inside the boxes. Cost:
    N^2 / stride^2 C FLOPs, 1024 rows of it in memory.
    """
    height, width = grid
    if x.shape[1] != height * width:
        raise ValueError(f"a grid of {height} x {width} needs {height * width} tokens, got {x.shape[1]}")
    if height < stride or width < stride or stride < 2:
        raise ValueError(f"stride must be at least 2 and fit in the grid of {height} x {width}, got {stride}")
    stays = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    stays[: height - height % stride : stride, : width - width % stride : stride] = True
    stays = stays.flatten()
    unit = functional.normalize(x.detach(), dim=-1)
    kept = unit[:, stays].mT
    best = [(part @ kept).max(-1) for part in unit[:, ~stays].split(ROWS, 1)]
    likeness = torch.cat([one.values for one in best], 1)
    nearest = torch.cat([one.indices for one in best], 1)
    order = likeness.argsort(1, descending=True)
    merged = min(merged, order.shape[1])

    def rows(source: Tensor, index: Tensor) -> Tensor:
        return source.gather(1, index[..., None].expand(-1, -1, source.shape[2]))

    others, target = x[:, ~stays], x[:, stays]
    joined, alone = order[:, :merged], order[:, merged:]
    where = nearest.gather(1, joined)[..., None].expand(-1, -1, x.shape[2])
    target = target.scatter_reduce(1, where, rows(others, joined), "mean")
    return torch.cat([rows(others, alone), target], 1)


def agent_attention(
    query: Float[Tensor, "B H N D"],
    agents: Float[Tensor, "B H A D"],
    key: Float[Tensor, "B H N D"],
    value: Float[Tensor, "B H N V"],
    *,
    power: float = POWER,
    shortcut: float = SHORTCUT,
) -> Float[Tensor, "B H N V"]:
    """softmax(q A^T D^(-power / 2)) softmax(A k^T / sqrt D) v + shortcut v, where 2 A < N; else attention.

    The second softmax is flatter than in training, and the shortcut keeps what agents blur.
    """
    if 2 * agents.shape[2] >= query.shape[2]:
        return torch.as_tensor(attend(query, key, value))
    found = via(query, agents, key, value, onward=Dot(scale=query.shape[-1] ** (-0.5 * power)))
    return found + shortcut * value


class AgentSD(nn.Module):
    """A trained `SelfAttention` of image tokens, computed through agents; no new parameters.

    Args:
        attention: whose projections are used, as many key as query heads, without pattern and positions.
        grid: of the tokens. merged: share of the tokens that are merged to make the agents (at most 3/4 are).
        power, shortcut: of `agent_attention`.

    The official code uses it in early denoising steps only; exchange the module back afterwards. Source: Han
    et al. 2023, arXiv 2312.08874, agentsd/patch.py.
    """

    def __init__(
        self,
        attention: SelfAttention,
        grid: tuple[int, int],
        *,
        merged: float = MERGED,
        power: float = POWER,
        shortcut: float = SHORTCUT,
    ) -> None:
        super().__init__()
        plain = attention.pattern is None and attention.base is None
        if not plain or attention.heads != attention.kv_heads or attention.score != Dot():
            raise ValueError(
                "AgentSD replaces plain attention: no pattern, no rotary positions, the dot product, and as "
                "many key heads as query heads"
            )
        if not 0 < merged < 1:
            raise ValueError(f"merged is a share of the tokens between 0 and 1, got {merged}")
        self.attention, self.grid, self.merged = attention, grid, merged
        self.power, self.shortcut = power, shortcut

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """All tokens of the grid."""
        inner = self.attention
        agents = merge_tokens(x, self.grid, int(self.merged * x.shape[1]))
        query, agents, key, value = (
            part.unflatten(-1, (inner.heads, -1)).transpose(1, 2)
            for part in (inner.query(x), inner.query(agents), inner.key(x), inner.value(x))
        )
        found = agent_attention(query, agents, key, value, power=self.power, shortcut=self.shortcut)
        return inner.out(found.transpose(1, 2).flatten(2))
