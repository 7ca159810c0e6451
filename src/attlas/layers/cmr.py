"""Contextual memory reweaving: hidden states of earlier segments, kept by salience, woven back in later.

The paper's abstract names the idea and no more; what stands here is a definition of our own.
Legend: B batch, H heads, N tokens, S captured layers, R items, T = ceil(N / C) segments of C, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.layers.inputs import check_tokens
from attlas.scan import State
from attlas.score import Dot, EdgeBias

__all__ = [
    "LayeredReconstruction",
    "NewestLayer",
    "RandomRank",
    "Rank",
    "Reweaving",
    "Salience",
    "keep_best",
    "normal",
]

Captured = Sequence[Tensor]
"""Hidden states (B, N, D) of the captured layers, one after the other."""
EPSILON, SPREAD = 1e-6, 0.02
EMPTY = -1  # place of an item that is not there


def normal(hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """RMSNorm without weights."""
    return functional.rms_norm(hidden, hidden.shape[-1:], eps=EPSILON)


class Salience(nn.Module):
    """r_j = sum_l w_l . RMSNorm(h^l_j): how much an item wants to be kept."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(SPREAD * torch.randn(layers, width))

    def forward(self, captured: Captured) -> Float[Tensor, "B N"]:
        """One number per token."""
        parts = [normal(hidden) @ weight for hidden, weight in zip(captured, self.weight, strict=True)]
        return torch.stack(parts).sum(0)


class LayeredReconstruction(nn.Module):
    """z_j = sum_l softmax(g)_l (h^l_j + U_l gelu(D_l h^l_j)), D_l to a quarter of the width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        inner = max(1, width // 4)
        self.share = nn.Parameter(torch.zeros(layers))
        self.down = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(inner, width, bias=False) for _ in range(layers))

    def forward(self, captured: Captured) -> Float[Tensor, "B N D"]:
        """One latent per token."""
        parts = [
            share * (hidden + up(functional.gelu(down(hidden))))
            for share, hidden, down, up in zip(
                self.share.softmax(0), captured, self.down, self.up, strict=True
            )
        ]
        return torch.stack(parts).sum(0)


class NewestLayer(nn.Module):
    """z_j = h^l_j of the last captured layer: a memory without layered reconstruction, to compare with."""

    def forward(self, captured: Captured) -> Float[Tensor, "B N D"]:
        """One latent per token."""
        return captured[-1]


@runtime_checkable
class Rank(Protocol):
    """What decides which items are kept, the largest first: (B, N) from the saliences (B, N)."""

    def __call__(self, salience: Tensor) -> Tensor: ...


class RandomRank:
    """Kept by chance, to compare with."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, salience: Tensor) -> Tensor:
        """Drawn anew at each call."""
        return torch.rand(salience.shape, generator=self.generator).to(salience)


def _salience(salience: Tensor) -> Tensor:
    return salience


def keep_best(rank: Float[Tensor, "B M"], place: Int[Tensor, "B M"], items: int) -> Int[Tensor, "B K"]:
    """Which of M candidates are the `items` of highest rank, newest first; ties: the newer one.

    Candidates come newest first; those at place `EMPTY` are behind all others.
    """
    order = rank.masked_fill(place == EMPTY, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    return order[:, :items].sort(1).values


class Reweaving(nn.Module):
    """h_t -> h_t + sigmoid(W_g [n(h_t); c_t] + b_g) ⊙ W_o c_t, c_t attention over R earlier items.

        c_t = sum_j softmax_j(q_t . k_j / sqrt d - delta_h ln(1 + t - j)) sigmoid(r_j) v_j

    q = W_q n(h_t), k = W_k n(z_j), v = W_v n(z_j), n = RMSNorm, since hidden states grow from layer to layer.
    An item is a token: its latents of the captured layers, of which `reconstruction` makes z_j, with salience
    r_j. After each segment of C tokens the R items of highest
    salience among the kept ones and the new ones stay. Without items c_t = 0. W_o starts at 0: at first this
    is exactly the identity.

    Args:
        width, heads; layers: captured ones. items: R; segment: C.
        reconstruction: of the latents (`LayeredReconstruction` unless given). rank: of what is kept, by
            salience unless given. explore: in training mode, Gumbel noise of this scale on the rank, so that
            items are drawn with probability ∝ exp(r / explore): what is never kept does not learn to be.
        detach: no gradient reaches the captured layers through the memory.

    Shapes: (B, N, width) and captured layers of the same shape -> (B, N, width). Causal by segments: an item
    is seen from the next segment on. State: R items and those of the segment that is not full yet. Cost:
    O(N R width) beside the projections. The choice itself has no gradient, w_l learns by sigmoid(r_j) alone.
    Source: definition of ours after the abstract of arXiv 2502.02046; no quantitative statement of that paper
    is claimed.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        items: int = 32,
        segment: int = 64,
        reconstruction: nn.Module | None = None,
        rank: Rank | None = None,
        explore: float = 0.0,
        detach: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if min(items, segment, layers) < 1:
            raise ValueError(
                f"items, segment and layers must be at least 1, got {items}, {segment}, {layers}"
            )
        self.heads, self.layers, self.items, self.segment, self.detach = heads, layers, items, segment, detach
        self.salience = Salience(width, layers)
        self.reconstruction = (
            LayeredReconstruction(width, layers) if reconstruction is None else reconstruction
        )
        if explore < 0:
            raise ValueError(f"explore is a scale of noise and must be at least 0, got {explore}")
        self.rank, self.explore = _salience if rank is None else rank, explore
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, width)
        self.age = nn.Parameter(torch.full((heads,), -2.0))  # delta = softplus(age), 0.13 at the start
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "B N D"], captured: Captured) -> Float[Tensor, "B N D"]:
        """The whole sequence; what it remembers is lost afterwards."""
        check_tokens("reweaving", x=x)
        latent, salience = self.items_of(captured)
        batch, count, size = x.shape[0], x.shape[1], self.segment
        segments = -(-count // size)
        chosen = self._kept(self._rank(salience), segments)  # (B, T, R)
        index = chosen.clamp_min(0).flatten(1)
        latent = latent.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        latent = latent.unflatten(1, (segments, -1)).flatten(0, 1)
        salience = salience.gather(1, index).unflatten(1, (segments, -1)).flatten(0, 1)
        padded = functional.pad(x, (0, 0, 0, segments * size - count)).unflatten(1, (segments, size))
        at = torch.arange(segments * size, device=x.device).view(1, segments, size).expand(batch, -1, -1)
        gathered = self._read(padded.flatten(0, 1), at.flatten(0, 1), latent, salience, chosen.flatten(0, 1))
        return self._woven(x, gathered.unflatten(0, (batch, segments)).flatten(1, 2)[:, :count])

    def items_of(self, captured: Captured) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N"]]:
        """(z, r): what every token would be as an item."""
        if len(captured) != self.layers:
            raise ValueError(
                f"captured must hold the hidden states of {self.layers} layers, got {len(captured)}"
            )
        latents = [hidden.detach() for hidden in captured] if self.detach else captured
        return self.reconstruction(latents), self.salience(latents)

    def start(self, batch: int) -> State:
        """An empty memory at the start of a segment."""
        weight = self.out.weight
        width = weight.shape[0]

        def empty(count: int) -> dict[str, Tensor]:
            place = torch.full((batch, count), EMPTY, device=weight.device)
            return {
                "latent": weight.new_zeros(batch, count, width),
                "salience": weight.new_zeros(batch, count),
                "rank": weight.new_zeros(batch, count),
                "place": place,
            }

        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return State({"kept": State(empty(self.items), position), "new": State(empty(0), position)}, position)

    def advance(
        self, x: Float[Tensor, "B N D"], captured: Captured, state: State
    ) -> tuple[Float[Tensor, "B N D"], State]:
        """The next N tokens, one or more: outputs, and the memory after them."""
        check_tokens("reweaving", x=x)
        latent, salience = self.items_of(captured)
        rank = self._rank(salience)
        at = state.position[:, None] + torch.arange(x.shape[1], device=x.device)
        kept, new, pieces, done = state.nested("kept"), state.nested("new"), [], 0
        while done < x.shape[1]:
            filled = new["place"].shape[1]
            part = slice(done, min(x.shape[1], done + self.segment - filled))
            read = self._read(x[:, part], at[:, part], kept["latent"], kept["salience"], kept["place"])
            pieces.append(self._woven(x[:, part], read))
            more = {"latent": latent, "salience": salience, "rank": rank, "place": at}
            # Newest first, as `keep_best` wants them.
            new = _joined({name: tensor[:, part].flip(1) for name, tensor in more.items()}, new)
            done = part.stop
            if new["place"].shape[1] == self.segment:
                both = _joined({name: new[name] for name in new.parts}, kept)
                best = keep_best(both["rank"], both["place"], self.items)
                kept, new = _rows(both, best), _rows(new, best[:, :0])
        position = state.position + x.shape[1]
        return torch.cat(pieces, 1), State({"kept": kept, "new": new}, position)

    def _rank(self, salience: Tensor) -> Tensor:
        rank = self.rank(salience.detach())
        if self.training and self.explore:
            rank = rank - self.explore * torch.empty_like(rank).exponential_().log()
        return rank

    def _kept(self, rank: Float[Tensor, "B N"], segments: int) -> Int[Tensor, "B T R"]:
        """Places of the items that each segment sees, newest first; `EMPTY` where there are fewer."""
        batch, size = rank.shape[0], self.segment
        place = torch.full((batch, self.items), EMPTY, device=rank.device)
        ranks, found = torch.zeros_like(place, dtype=rank.dtype), [place]
        for segment in range(segments - 1):
            new = torch.arange((segment + 1) * size - 1, segment * size - 1, -1, device=rank.device)
            place = torch.cat([new.expand(batch, -1), place], 1)
            ranks = torch.cat([rank[:, new], ranks], 1)
            best = keep_best(ranks, place, self.items)
            place, ranks = place.gather(1, best), ranks.gather(1, best)
            found.append(place)
        return torch.stack(found, 1)

    def _read(self, x: Tensor, at: Tensor, latent: Tensor, salience: Tensor, place: Tensor) -> Tensor:
        query, key, value = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (
                self.query(normal(x)),
                self.key(normal(latent)),
                salience.sigmoid()[..., None] * self.value(normal(latent)),
            )
        )
        old = (at[:, :, None] - place[:, None, :]).to(x.dtype)
        bias = -functional.softplus(self.age).view(-1, 1, 1) * old.clamp_min(0).log1p()[:, None]
        bias = bias.masked_fill((place == EMPTY)[:, None, None], float("-inf"))
        found = torch.as_tensor(attend(query, key, value, score=Dot() + EdgeBias(bias)))
        return found.transpose(1, 2).flatten(2)

    def _woven(self, x: Tensor, read: Tensor) -> Tensor:
        return x + self.gate(torch.cat([normal(x), read], -1)).sigmoid() * self.out(read)


def _joined(front: Mapping[str, Tensor], state: State) -> State:
    parts = {name: torch.cat([tensor, state[name]], 1) for name, tensor in front.items()}
    return State(parts, state.position)


def _rows(state: State, index: Tensor) -> State:
    def chosen(tensor: Tensor) -> Tensor:
        wide = index if tensor.dim() == 2 else index[..., None].expand(-1, -1, tensor.shape[2])
        return tensor.gather(1, wide)

    return State({name: chosen(state[name]) for name in state.parts}, state.position)
