"""Blocks of consecutive rows with the keys that they see.

Legend: B batch, G KV heads, g query heads per KV head, r rows and c keys of a block, V value width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attlas.attend.request import Piece
from attlas.attend.work import Pairs, Work
from attlas.pattern import Tokens
from attlas.pattern.evaluate import key_ranges
from attlas.pattern.tokens import common_sizes
from attlas.score import Edge

__all__ = ["BLOCK", "Block", "RowWork", "block_mask", "blocks_of", "positions_of"]

BLOCK = 64
"""Rows of a block."""
WIDE_BLOCK = 8
"""Rows of a block when every pair has its own message: r * c * V numbers are held."""
EMPTY = (0, 1)
"""Keys of a block that sees none: one key, masked, so that every block has the same form."""


@dataclass(frozen=True)
class Block:
    """Rows r0..r1 and the keys that any of them sees: a range, or explicit numbers where there are gaps."""

    r0: int
    r1: int
    columns: tuple[int, int] | Tensor

    @property
    def count(self) -> int:
        if isinstance(self.columns, Tensor):
            return self.columns.numel()
        return self.columns[1] - self.columns[0]

    def of_keys(self, tensor: Tensor, axis: int) -> Tensor:
        """The block's keys of a tensor."""
        if isinstance(self.columns, Tensor):
            return tensor.index_select(axis, self.columns.to(tensor.device))
        return tensor.narrow(axis, self.columns[0], self.count)

    def put_keys(self, total: Tensor, axis: int, part: Tensor) -> None:
        """total[keys of the block] = part."""
        if isinstance(self.columns, Tensor):
            total.index_copy_(axis, self.columns.to(total.device), part)
        else:
            total.narrow(axis, self.columns[0], self.count).copy_(part)

    def add_to_keys(self, total: Tensor, axis: int, part: Tensor) -> None:
        """total[keys of the block] += part."""
        if isinstance(self.columns, Tensor):
            total.index_add_(axis, self.columns.to(total.device), part)
        else:
            total.narrow(axis, self.columns[0], self.count).add_(part)


def blocks_of(piece: Piece, q_at: Tokens, rows: int = BLOCK) -> Iterator[Block]:
    """The row blocks of a piece with the keys that they need; O(rows) for contiguous tokens."""
    for r0 in range(0, q_at.length, rows):
        r1 = min(r0 + rows, q_at.length)
        if piece.pattern is None:
            yield Block(r0, r1, (0, piece.k_at.length))
        elif q_at.plain and piece.k_at.plain and piece.pattern.batch is None:
            seen = key_ranges(piece.pattern, q_at, piece.k_at, (r0, r1))
            yield Block(r0, r1, _union(np.asarray(seen.lo), np.asarray(seen.hi)))
        else:
            mask = piece.pattern.tile(q_at, piece.k_at, r0, r1, 0, piece.k_at.length)
            yield Block(r0, r1, _numbers(mask.reshape(-1, piece.k_at.length).any(0).nonzero().squeeze(1)))


def _union(low: np.ndarray, high: np.ndarray) -> tuple[int, int] | Tensor:
    some = high > low
    if not some.any():
        return EMPTY
    start, end = low[some], high[some]
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    # A new range begins where a start lies beyond every former end.
    first = np.concatenate(([True], start[1:] > end[:-1]))
    last = np.concatenate((first[1:], [True]))
    ranges = list(zip(start[first].tolist(), end[last].tolist(), strict=True))
    if len(ranges) == 1:
        return ranges[0]
    return torch.cat([torch.arange(a, b) for a, b in ranges])


def _numbers(columns: Tensor) -> tuple[int, int] | Tensor:
    if not columns.numel():
        return EMPTY
    first, last = int(columns[0]), int(columns[-1])
    return (first, last + 1) if last - first + 1 == columns.numel() else columns


def block_mask(piece: Piece, q_at: Tokens, block: Block, device: torch.device) -> Tensor:
    """Allowed pairs of a block, bool (B or 1, 1, 1, r, c)."""
    i, j = positions_of(piece, q_at, block, device)
    if piece.pattern is None:
        mask = torch.ones(block.r1 - block.r0, block.count, dtype=torch.bool, device=device)
    else:
        mask = piece.pattern.pair(i, j, common_sizes(q_at, piece.k_at))
    if q_at.valid is not None:
        mask = mask & _lead(q_at.valid[..., block.r0 : block.r1], device).unsqueeze(-1)
    if piece.k_at.valid is not None:
        mask = mask & _lead(block.of_keys(piece.k_at.valid, -1), device).unsqueeze(-2)
    return mask.view((1,) * (5 - mask.dim()) + tuple(mask.shape))


def positions_of(piece: Piece, q_at: Tokens, block: Block, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the block's rows (B or 1, 1, 1, r, 1) and keys (B or 1, 1, 1, 1, c)."""
    rows = _lead(q_at.positions(device)[..., block.r0 : block.r1], device)
    keys = _lead(block.of_keys(piece.k_at.positions(device), -1), device)
    return rows.unsqueeze(-1), keys.unsqueeze(-2)


def _lead(tokens: Tensor, device: torch.device) -> Tensor:
    return tokens.to(device).reshape(-1, 1, 1, tokens.shape[-1])


@dataclass(frozen=True, eq=False)
class RowWork(Work[Block]):
    """A piece in blocks of consecutive rows, with the keys that any of them sees."""

    @cached_property
    def blocks(self) -> list[Block]:
        narrow = self.request.aggregate.linear and not self.request.return_edge
        return list(blocks_of(self.piece, self.request.q_at, BLOCK if narrow else WIDE_BLOCK))

    @cached_property
    def first_extra_value(self) -> int:
        return len(self.operands()) - len(self.request.extra)

    def cut(self, number: int, operand: Tensor, block: Block) -> Tensor:
        """The block's share of an operand: axes of length 1 broadcast, extra values have no key axis."""
        if operand.shape[3] > 1:
            operand = operand.narrow(3, block.r0, block.r1 - block.r0)
        if self.has_keys(number, operand):
            operand = block.of_keys(operand, 4)
        return operand

    def has_keys(self, number: int, operand: Tensor) -> bool:
        return number < self.first_extra_value and operand.shape[4] > 1

    def add(self, number: int, total: Tensor, block: Block, part: Tensor) -> None:
        """The adjoint of `cut`."""
        if total.shape[3] > 1:
            total = total.narrow(3, block.r0, block.r1 - block.r0)
        if self.has_keys(number, total):
            block.add_to_keys(total, 4, part)
        else:
            total.add_(part)

    def inputs(self, block: Block, wide: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The block's share of (query, key, value, *operands)."""
        query, key, value, *operands = wide
        return (
            query[:, :, :, block.r0 : block.r1],
            block.of_keys(key, 2),
            block.of_keys(value, 2),
            [self.cut(number, operand, block) for number, operand in enumerate(operands)],
        )

    def give_back(self, number: int, total: Tensor, block: Block, part: Tensor) -> None:
        """The adjoint of `inputs`: add the block's gradient to that of input `number`."""
        if number == 0:
            total[:, :, :, block.r0 : block.r1] += part
        elif number in (1, 2):
            block.add_to_keys(total, 2, part)
        else:
            self.add(number - 3, total, block, part)

    def pairs(
        self, block: Block, query: Tensor, key: Tensor, value: Tensor, score: Sequence[Tensor]
    ) -> "Pairs":
        """The score of a block's pairs: query (B, G, g, r, D), key (B, G, c, D), value (B, G, c, V)."""
        mask = block_mask(self.piece, self.request.q_at, block, query.device)
        edge = Edge(*positions_of(self.piece, self.request.q_at, block, query.device))
        found = self.request.score.pair(
            query.unsqueeze(-2), key[:, :, None, None], value[:, :, None, None], edge, *score
        )
        shape = torch.broadcast_shapes(found.logit.shape, (*query.shape[:4], 1), mask.shape)
        logit = found.logit.expand(shape)
        return Pairs(logit, mask, mask & (logit != -float("inf")), found.value, found.state, edge)
