"""Attention along the edges of a graph by its definition: every score, normaliser and aggregate, plain torch.

The receivers are walked in rectangles of equal degree (`edge_walk`), some ten thousand edges at a time; what
belongs to a rectangle's edges and their ends is gathered, a row is a receiver with its edges, and `rows` of
the normaliser and of the aggregate are what they are anywhere. Nothing of a rectangle is kept: the backward
computes it again. Equal edges are messages of their own. Memory: O(nodes), and some rectangles. Works in
float32 (float64 for float64 input), on any device, differentiable once, bitwise the same every time.
Legend: B batch, G KV heads, g query heads per KV head, r rows and c slots of a rectangle, E edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from attlas.attend.edge_walk import Rectangle, Side, Walk, walk
from attlas.attend.normaliser import RowContext, Softmax
from attlas.attend.reference import assemble
from attlas.attend.request import Request, Result, take
from attlas.attend.rows import in_blocks
from attlas.attend.senders import Shares
from attlas.attend.work import Pairs, Work
from attlas.graph import Graph, kept
from attlas.pattern import GraphEdges
from attlas.score import Edge

__all__ = ["EdgeWork", "along_edges", "evaluate", "graph_of", "sender_shares"]

NUMBERS = 2**20
"""Numbers gathered for the keys of a rectangle, about: they stay in a processor's cache."""
EDGES = (2**10, 2**16)
"""Slots of a rectangle, at least and at most."""

Along = Literal["receiver", "sender", "edge", "pair"] | None


def evaluate(request: Request) -> Result:
    """Out, row statistics, and edge states in the graph's order."""
    request = sender_shares(request)
    pieces = request.pieces()
    work = EdgeWork(request, pieces[0])
    out, lse, total, states = work.placed()
    if out is None or lse is None:
        raise ValueError("edge: a rectangle gave no out or no lse")
    return assemble(request, pieces, [Result(out, lse, total, states)])


def along_edges(request: Request) -> Tensor:
    """The weights (B, H, E) of all edges in the graph's order, of any normaliser; differentiable."""
    request = sender_shares(request)
    weights = _Weights(request, request.pieces()[0]).placed()[3]
    if weights is None:
        return request.query.new_zeros(request.batch, request.heads, 0)
    return weights.expand(request.batch, -1, -1)


def sender_shares(request: Request) -> Request:
    """The same request with what its senders need to know of all their receivers."""
    if request.normaliser.axis != "senders":
        return request
    plain = request.but(normaliser=Softmax(), gate=None, extra=(), dropout=0.0)
    lse = _Statistics(plain, plain.pieces()[0], "sender").placed()[1]
    if lse is None:
        raise ValueError("edge: a rectangle gave no lse")
    return request.but(normaliser=Shares(lse.unsqueeze(2)))


def graph_of(request: Request) -> Graph:
    """The graph that is the request's pattern."""
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("edge: it takes a Graph as the pattern")
    return request.pattern.graph


def _placed(part: Tensor | None, place: Tensor) -> Tensor | None:
    """part (B, G, g, n, ...) as (B, H, n, ...) in another order of n, which comes first in memory."""
    if part is None:
        return None
    return part.flatten(1, 2).movedim(2, 0).index_select(0, place).movedim(0, 2)


@dataclass(frozen=True, eq=False)
class EdgeWork(Work[Rectangle]):
    """A request along the edges of its graph, walked by its receivers or by its senders.

    Every tensor is a table, its first axis that of what it belongs to: (n, b, G, g, ...) for nodes. Operands:
    those of the score, its edge tensors, of the normaliser, gate, extra logits, extra values.
    """

    by: Side = "receiver"

    who = "attend: the backend 'edge'"

    @cached_property
    def graph(self) -> Graph:
        return graph_of(self.request)

    @cached_property
    def blocks(self) -> Walk:
        request = self.request
        each = request.batch * max(request.kv_heads * max(request.width, request.value_width), request.heads)
        least, most = EDGES
        slots = max(least, min(most, NUMBERS // each))
        return walk(self.graph, self.by, 1 << (slots.bit_length() - 1))

    def placed(self) -> tuple[Tensor | None, ...]:
        """What the rectangles give: (B, H, nodes, ...) and states (B, H, E, ...), in the graph's order."""
        *of_nodes, states = in_blocks(self, *(table for table, _ in self.tables))
        found = [_placed(part, self.blocks.place) for part in of_nodes]
        return *found, None if states is None else _placed(states, self.blocks.edge_place)

    @cached_property
    def tables(self) -> list[tuple[Tensor, Along]]:
        """Query, key, value and operands, with what each belongs to."""
        request, count = self.request, len(self.request.extra)
        query = self.grouped(take(request.query, self.piece.heads))
        sides: tuple[Side, ...] = ("receiver", "sender", "sender")
        nodes = (query.unsqueeze(4), *(part[:, :, None, None] for part in (self.piece.key, self.piece.value)))
        found = [(_table(part, side), side) for part, side in zip(nodes, sides, strict=True)]
        plain = self.operands()
        if count:  # their values have no axis of keys
            plain = [*plain[:-count], *(value.unsqueeze(4) for value in plain[-count:])]
        given = [(_table(part, side), side) for part in plain for side in [_along(part)]]
        first = len(request.score.tensors())
        edges: list[tuple[Tensor, Along]] = [
            (self._of_edges(tensor), "edge") for tensor in request.edge_tensors
        ]
        return [*found, *given[:first], *edges, *given[first:]]

    def _of_edges(self, tensor: Tensor) -> Tensor:
        """(E, ...) as (E, 1, G or 1, g or 1, ...)."""
        if tensor.dim() == 1:
            return tensor[:, None, None, None]
        if tensor.shape[1] == 1:
            return tensor[:, None, None]
        groups = (1, len(self.piece.kv_heads), self.piece.group)
        return take(tensor, self.piece.heads).unflatten(1, groups)

    def split(self, operands: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        *parts, values = super().split(operands)
        return *parts, [value.squeeze(4) for value in values]

    def inputs(self, block: Rectangle, wide: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The rectangle's share of the tables: (b, G, g, r, 1 or c, ...)."""
        query, key, value, *operands = (
            self._gathered(table, side, block) for table, (_, side) in zip(wide, self.tables, strict=True)
        )
        return query, key, value, operands

    def _gathered(self, table: Tensor, side: Along, block: Rectangle) -> Tensor:
        if side is None:
            return table
        at = self._at(side, block)
        if block.empty and side != self.by:
            return table.new_zeros(*table.shape[1:4], *at.shape, *table.shape[4:])
        found = table.index_select(0, at.flatten()).unflatten(0, at.shape)
        return found.movedim((0, 1), (3, 4)).contiguous()

    def give_back(self, number: int, total: Tensor, block: Rectangle, part: Tensor) -> None:
        """The adjoint of `inputs`: add the rectangle's gradient to that of table `number`."""
        side = self.tables[number][1]
        if side is None:
            total.add_(part)
        elif not block.empty or side == self.by:
            total.index_add_(0, self._at(side, block).flatten(), part.movedim((3, 4), (0, 1)).flatten(0, 1))

    def _at(self, side: Along, block: Rectangle) -> Tensor:
        """Rows of a table, (r, 1) or (r, c)."""
        if side == "pair":
            return block.receiver * self.graph.senders + block.sender
        return block.edge if side == "edge" else block.receiver if side == "receiver" else block.sender

    def pairs(
        self, block: Rectangle, query: Tensor, key: Tensor, value: Tensor, score: Sequence[Tensor]
    ) -> Pairs:
        """The score of the rectangle's edges; the ends of a slot stand in `inputs`."""
        real = block.real[None, None, None]
        edge = Edge(block.receiver[None, None, None], block.sender[None, None, None])
        found = self.request.score.pair(query, key, value, edge, *score)
        lead = torch.broadcast_shapes(query.shape[:3], key.shape[:3])
        logit = found.logit.expand(torch.broadcast_shapes(found.logit.shape, (*lead, 1, 1), real.shape))
        state = found.state
        if state is not None and self.request.return_edge:
            state = state.expand(*logit.shape, *state.shape[5:])
        return Pairs(logit, real, real & (logit != -float("inf")), found.value, state, edge)

    def kept(self, block: Rectangle, edge: Edge) -> Tensor:
        """As for pairs; the second and further of equal edges have bits of their own."""
        if not self.graph.has_equal_edges:
            return super().kept(block, edge)
        again = _repetition(self.graph)[block.edge] * self.graph.senders
        return super().kept(block, edge._replace(key_position=edge.key_position + again))


class _Statistics(EdgeWork):
    """The lse of every node over its edges, and nothing else."""

    def tile(
        self, block: Rectangle, query: Tensor, key: Tensor, value: Tensor, operands: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        score, own, *_ = self.split(operands)
        pairs = self.pairs(block, query, key, value, score)
        ctx = RowContext(*pairs.edge[:2], pairs.seen.sum(-1, keepdim=True))
        self.request.normaliser.rows(pairs.logit, pairs.seen, ctx, *own)
        return None, ctx.statistics["lse"].squeeze(-1), None, None


class _Weights(EdgeWork):
    """The weight of every edge, as its state, and nothing else."""

    def tile(
        self, block: Rectangle, query: Tensor, key: Tensor, value: Tensor, operands: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        score, own, *_ = self.split(operands)
        pairs = self.pairs(block, query, key, value, score)
        ctx = RowContext(*pairs.edge[:2], pairs.seen.sum(-1, keepdim=True))
        weights = self.request.normaliser.rows(pairs.logit, pairs.seen, ctx, *own)
        return None, None, None, weights[:, :, :, block.real]


def _along(tensor: Tensor) -> Along:
    """What an operand (b, G, g, n, m, ...) belongs to; axes of length 1 broadcast."""
    if tensor.shape[3] > 1 and tensor.shape[4] > 1:
        return "pair"
    return "receiver" if tensor.shape[3] > 1 else "sender" if tensor.shape[4] > 1 else None


def _table(tensor: Tensor, side: Along) -> Tensor:
    """An operand (b, G, g, n, m, ...) as a table of what it belongs to."""
    if side is None:
        return tensor
    if side == "pair":
        return tensor.movedim((3, 4), (0, 1)).flatten(0, 1).contiguous()
    return tensor.squeeze(4 if side == "receiver" else 3).movedim(3, 0).contiguous()


@kept
def _repetition(graph: Graph) -> Tensor:
    """(E,) int64: how many equal edges stand before each edge of a graph, counted once."""
    code = graph.receiver * max(1, graph.senders) + graph.sender
    order = torch.argsort(code, stable=True)
    _, runs = torch.unique_consecutive(code[order], return_counts=True)
    first = (runs.cumsum(0) - runs).repeat_interleave(runs)
    count = torch.empty_like(order)
    count[order] = torch.arange(order.numel(), device=order.device) - first
    return count
