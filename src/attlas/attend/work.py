"""Attention on a block of rows by its definition, in plain torch: what walks over rows and edges share.

Legend: B batch, G KV heads, g query heads per KV head, r rows and c keys of a block, V value width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from attlas.attend.aggregate import Sum
from attlas.attend.dropout import drop, keeps
from attlas.attend.normaliser import RowContext
from attlas.attend.request import Piece, Request, take
from attlas.score import Edge

__all__ = ["Blocks", "Pairs", "Work"]


class Pairs(NamedTuple):
    """A block's logits (B, G, g, r, c), the pattern's pairs, those of them with a logit, values, states."""

    logit: Tensor
    allowed: Tensor
    seen: Tensor
    value: Tensor
    state: Tensor | None
    edge: Edge


One = TypeVar("One")
Some = TypeVar("Some", covariant=True)


@runtime_checkable
class Blocks(Protocol[Some]):
    """Blocks of rows, in order; each has its rows r0 .. r1."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Some]: ...


@dataclass(frozen=True, eq=False)
class Work(Generic[One]):
    """A piece in blocks; operands: score and its edge tensors, normaliser, gate, extra logits, extra values.

    A walk says what its blocks are, and cuts and scores one.
    """

    request: Request
    piece: Piece

    who = "attend: the backend 'rows'"
    """Begins the text of its errors."""

    @property
    def blocks(self) -> Blocks[One]:
        raise NotImplementedError

    def inputs(self, block: One, wide: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The block's share of (query, key, value, *operands)."""
        raise NotImplementedError

    def give_back(self, number: int, total: Tensor, block: One, part: Tensor) -> None:
        """The adjoint of `inputs`: add the block's gradient to that of input `number`."""
        raise NotImplementedError

    def pairs(self, block: One, query: Tensor, key: Tensor, value: Tensor, score: Sequence[Tensor]) -> Pairs:
        """The score of a block's pairs, of what `inputs` gave."""
        raise NotImplementedError

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.request.dtype == torch.float64 else torch.float32

    def nothing(self) -> tuple[Tensor | None, ...]:
        """What no blocks at all give."""
        request = self.request
        shape = (request.batch, len(self.piece.kv_heads), self.piece.group, 0)
        lse = request.query.new_zeros(shape, dtype=self.dtype)
        return request.query.new_zeros(*shape, request.value_width), lse, None, None

    def operands(self) -> list[Tensor]:
        """All operands but edge tensors, as (b, G or 1, g or 1, n, m, ...); extra values have no axis m."""
        request = self.request
        flat = [*request.score.tensors(), *request.normaliser.tensors()]
        flat += [] if request.gate is None else [request.gate]
        flat += [logit for logit, _ in request.extra] + [value for _, value in request.extra]
        return [self.grouped(take(tensor, self.piece.heads)) for tensor in flat]

    def grouped(self, tensor: Tensor) -> Tensor:
        """(b, H or 1, ...) of the piece's heads as (b, G or 1, g or 1, ...)."""
        if tensor.shape[1] == 1:
            return tensor.unsqueeze(1)
        return tensor.unflatten(1, (len(self.piece.kv_heads), self.piece.group))

    def split(self, operands: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        """(score tensors, normaliser tensors, gate, extra logits, extra values)."""
        score = len(self.request.score.tensors()) + len(self.request.edge_tensors)
        sizes = [score, len(self.request.normaliser.tensors())]
        sizes += [int(self.request.gate is not None), len(self.request.extra), len(self.request.extra)]
        found, start = [], 0
        for size in sizes:
            found.append(operands[start : start + size])
            start += size
        return tuple(found)

    def tile(
        self, block: One, query: Tensor, key: Tensor, value: Tensor, operands: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """(out (B, G, g, r, V), lse (B, G, g, r), total, edge states) of one block, all in `dtype`."""
        request = self.request
        score, own, gate, extra_logits, extra_values = self.split(operands)
        pairs = self.pairs(block, query, key, value, score)
        whole, seen, edge = pairs.logit, pairs.seen, pairs.edge
        columns = seen.shape[-1]
        everything = seen
        for more in extra_logits:
            more = more.expand(*seen.shape[:-1], 1)
            whole = torch.cat((whole, more), -1)
            everything = torch.cat((everything, more != -float("inf")), -1)
        ctx = RowContext(edge.query_position, edge.key_position, everything.sum(-1, keepdim=True))
        weights = request.normaliser.rows(whole, everything, ctx, *own)
        plain, rest = weights[..., :columns], weights[..., columns:]
        if gate:
            plain = plain * gate[0]
        if request.dropout:
            plain = drop(plain, self.kept(block, edge), request.dropout)
        out = self._aggregate(plain, rest, pairs.value, extra_values, seen, everything)
        edges = None
        if request.return_edge and pairs.state is not None:
            edges = pairs.state[:, :, :, pairs.allowed[0, 0, 0]]
        total = ctx.statistics.get("total")
        lse = ctx.statistics["lse"].squeeze(-1)
        return out, lse, None if total is None else total.squeeze(-1), edges

    def kept(self, block: One, edge: Edge) -> Tensor:
        """Which of the block's pairs dropout keeps."""
        device = edge.query_position.device
        batch = torch.arange(self.request.batch, device=device).view(-1, 1, 1, 1, 1)
        head = torch.tensor(self.piece.heads, device=device).view(1, -1, self.piece.group, 1, 1)
        return keeps(
            self.request.seed, batch, head, edge.query_position, edge.key_position, self.request.dropout
        )

    def _aggregate(
        self,
        plain: Tensor,
        rest: Tensor,
        carried: Tensor,
        extra_values: Sequence[Tensor],
        seen: Tensor,
        everything: Tensor,
    ) -> Tensor:
        aggregate = self.request.aggregate
        if not extra_values:
            return aggregate.rows(plain, carried, seen)
        if type(aggregate) is Sum:
            out = aggregate.rows(plain, carried, seen)
            for number, value in enumerate(extra_values):
                out = out + rest[..., number : number + 1] * value
            return out
        weights = torch.cat((plain, rest.expand(*plain.shape[:-1], -1)), -1)
        lead = weights.shape[:-1]
        values = [
            carried.expand(*lead, -1, -1),
            *(v.unsqueeze(-2).expand(*lead, -1, -1) for v in extra_values),
        ]
        return aggregate.rows(weights, torch.cat(values, -2), everything)
