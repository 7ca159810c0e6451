"""Where valid tokens stand in the chunks of a memory: padding takes no place, a state may end inside one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Alignment", "align", "blocks"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Slots of the chunks, and which token of which row stands in each.

    cuts: slots where pieces begin, and the end of the last. begins: per piece None (all rows begin a chunk
    with it) or bool (B,). token (B, slots): the token in a slot, N for none; slot (B, N): its inverse, for
    valid tokens; both None where slots are tokens.
    """

    cuts: list[int]
    begins: list[Tensor | None]
    token: Tensor | None = None
    slot: Tensor | None = None

    @property
    def pieces(self) -> Iterator[tuple[slice, Tensor | None]]:
        """Slots of each piece and the rows that begin a chunk with it."""
        for (first, stop), begins in zip(pairwise(self.cuts), self.begins, strict=True):
            yield slice(first, stop), begins

    def spread(self, x: Tensor, fill: float) -> Tensor:
        """(B, H, N, ...) by token -> by slot, `fill` in empty ones."""
        if self.token is None:
            return x
        empty = x.new_full((*x.shape[:2], 1, *x.shape[3:]), fill)
        return torch.cat([x, empty], 2).gather(2, _along(self.token, x))

    def collect(self, x: Tensor) -> Tensor:
        """(B, H, slots, V) by slot -> by token; what invalid tokens get is of no meaning."""
        return x if self.slot is None else x.gather(2, _along(self.slot, x))


def _along(index: Tensor, x: Tensor) -> Tensor:
    ones = (1,) * (x.dim() - 3)
    return index[:, None].unflatten(-1, (-1, *ones)).expand(*x.shape[:2], -1, *x.shape[3:])


def align(length: int, chunk: int, position: Tensor, valid: Tensor | None) -> Alignment:
    """Put the tokens of every row behind those of its chunk that `position` has counted already."""
    phase = position % chunk
    lowest, highest = (int(x) for x in phase.aminmax()) if phase.numel() else (0, 0)
    cuts = _cuts(length, chunk, lowest)
    if lowest == highest and (valid is None or bool((valid[:, 1:] <= valid[:, :-1]).all())):
        begins = [None if valid is None else valid[:, first] for first in cuts[:-1]]
        return Alignment(cuts, [None if not phase.any() else phase == 0, *begins[1:]])
    seen = (
        valid if valid is not None else torch.ones_like(phase, dtype=torch.bool)[:, None].expand(-1, length)
    )
    slot = phase[:, None] - lowest + seen.cumsum(1) - 1
    slots = max(1, int((phase - lowest + seen.sum(1)).max()))
    # Invalid tokens all write to one slot behind the last, which is then cut off.
    token = torch.full((len(phase), slots + 1), length, dtype=torch.int64, device=seen.device)
    token.scatter_(1, slot.where(seen, slots), torch.arange(length, device=seen.device).expand_as(slot))
    cuts = _cuts(slots, chunk, lowest)
    begins = [token[:, first] < length for first in cuts[1:-1]]
    return Alignment(cuts, [phase == 0, *begins], token[:, :slots], slot.where(seen, 0))


def blocks(length: int, size: int) -> Alignment:
    """Tokens as they stand, in pieces of `size`: where nothing depends on the chunks."""
    cuts = _cuts(length, size, 0)
    return Alignment(cuts, [None] * (len(cuts) - 1))


def _cuts(slots: int, chunk: int, phase: int) -> list[int]:
    """0, then every chunk's end."""
    return [0, *range(chunk - phase, slots, chunk), slots]
