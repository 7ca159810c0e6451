"""Token mixers whose past is what its tokens tell later ones: keys and values, kept as they are.

Legend: B batch, H heads, N tokens, C width.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attlas.layers.inputs import check_tokens
from attlas.pattern import Pattern, Tokens
from attlas.scan import State

__all__ = ["PastMixer"]

Sides = tuple[dict[str, Tensor], dict[str, Tensor]]


class PastMixer(nn.Module):
    """Whole sequences and piece by piece from two methods of the mixer itself.

    `_sides(x, at)` -> (what these tokens ask with, what they tell others), tensors (B, H, N, ...) by name;
    `_mixed(asks, tells, q_at, k_at)` -> (B, N, C), where `tells` holds the past too. The state is what was
    told, at any length, whatever the pattern.
    """

    def __init__(self, width: int, heads: int, pattern: Pattern | None) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"{type(self).__name__}: heads must be at least 1, got {heads}")
        if width < 1 or width % heads:
            raise ValueError(
                f"{type(self).__name__}: width must be a multiple of heads, got {width} and {heads}"
            )
        self.width, self.heads, self.pattern = width, heads, pattern

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence; `valid` False marks padding, which no token sees."""
        check_tokens(type(self).__name__, x=x)
        count = x.shape[1]
        own = Tokens(count, total=count)
        asks, tells = self._sides(x, own)
        return self._mixed(
            asks, tells, own, own if valid is None else Tokens(count, total=count, valid=valid)
        )

    def start(self, batch: int) -> State:
        """Before the first token."""
        like = next(self.parameters())
        nothing = torch.zeros(batch, 0, self.width, dtype=like.dtype, device=like.device)
        position = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return State(self._sides(nothing, Tokens(0))[1], position).detach()

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and what they and the past tell later ones."""
        name = type(self).__name__
        if self.pattern is None or not self.pattern.is_causal:
            raise ValueError(
                f"{name} goes on piece by piece with a causal pattern only: earlier outputs would need later "
                f"tokens under {self.pattern}"
            )
        check_tokens(name, x=x)
        before, count = int(state.position[0]), x.shape[1]
        if bool((state.position != before).any()):
            raise ValueError(f"{name}: all rows of a state must stand at one position to go on together")
        own = Tokens(count, start=before)
        asks, new = self._sides(x, own)
        told = {part: torch.cat([state[part].to(tensor.dtype), tensor], 2) for part, tensor in new.items()}
        out = self._mixed(asks, told, own, Tokens(before + count))
        return out, State(told, state.position + count)

    def _sides(self, x: Tensor, at: Tokens) -> Sides:
        raise NotImplementedError

    def _mixed(
        self, asks: Mapping[str, Tensor], tells: Mapping[str, Tensor], q_at: Tokens, k_at: Tokens
    ) -> Tensor:
        raise NotImplementedError

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, H D) -> (B, H, N, D)."""
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)
