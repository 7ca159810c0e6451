"""Walking along the edges of a graph: its nodes packed by their number of edges into rectangles of slots.

Whatever is defined on rows of keys runs on a rectangle as it is: a row per node, a slot per edge. Nodes of
equal degree stand together, so that nearly all slots hold an edge, also where degrees have heavy tails.
Legend: E edges, n nodes, r rows and c slots a row of a rectangle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attlas.graph import Graph, kept

__all__ = ["Rectangle", "Side", "Walk", "pair_number", "walk"]

Side = Literal["receiver", "sender"]
WASTE = 1.5
"""Slots over edges of a rectangle, at most, unless it is small."""
KEPT = 2**17
"""Edges and nodes of a graph whose rectangles are kept: some megabytes."""
SMALL = 2048
"""Slots below which one rectangle more costs more than empty slots."""


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Nodes r0..r1 of a walk with their edges: the ends and the edge of every slot, (r, c) or (r, 1) int64.

    real (r, c): whether a slot holds an edge; those that hold none repeat the first edge of their row, whose
    ends they may read. empty: no node has an edge; there is one slot a row, and only the nodes may be read.
    """

    r0: int
    r1: int
    receiver: Tensor
    sender: Tensor
    edge: Tensor
    real: Tensor
    empty: bool


@dataclass(frozen=True, eq=False)
class Walk:
    """The nodes of one side of a graph in the order of their degree, cut into rectangles of `most` slots.

    A node with more edges has a rectangle of its own. Iterates over its rectangles, each made when its turn
    comes (those of a small graph are kept). Memory: O(n).
    """

    graph: Graph
    by: Side
    most: int

    @cached_property
    def nodes(self) -> Tensor:
        """(n,) int64: nodes by rising degree, in the graph's order where it is equal."""
        return torch.argsort(self._pointer.diff(), stable=True)

    @cached_property
    def place(self) -> Tensor:
        """(n,) int64: where each node of the graph stands in `nodes`."""
        place = torch.empty_like(self.nodes)
        place[self.nodes] = torch.arange(self.nodes.numel(), device=place.device)
        return place

    def __len__(self) -> int:
        return len(self.cuts)

    def __iter__(self) -> Iterator[Rectangle]:
        if self.graph.edges + self.nodes.numel() <= KEPT:
            return iter(self._all)
        return (self.rectangle(cut) for cut in self.cuts)

    @cached_property
    def _all(self) -> list[Rectangle]:
        return [self.rectangle(cut) for cut in self.cuts]

    @cached_property
    def cuts(self) -> list[tuple[int, int, int]]:
        """(first row, row behind the last, slots a row) of every rectangle; 0 slots: nodes without edges."""
        return _cuts(self._pointer.diff()[self.nodes].cpu().numpy(), self.most)

    @property
    def _pointer(self) -> Tensor:
        return (self.graph.by_receiver if self.by == "receiver" else self.graph.by_sender).pointer

    def rectangle(self, cut: tuple[int, int, int]) -> Rectangle:
        """The rectangle of a cut."""
        r0, r1, slots = cut
        pointer, other, order = self.graph.by_receiver if self.by == "receiver" else self.graph.by_sender
        node = self.nodes[r0:r1].unsqueeze(1)
        if not slots:
            real = torch.zeros(r1 - r0, 1, dtype=torch.bool, device=node.device)
            absent = torch.zeros_like(node)
            ends = (node, absent) if self.by == "receiver" else (absent, node)
            return Rectangle(r0, r1, *ends, absent, real, True)
        start, slot = pointer[node], torch.arange(slots, device=node.device)
        real = slot < pointer[node + 1] - start
        at = torch.where(real, start + slot, start)
        ends = (node, other[at]) if self.by == "receiver" else (other[at], node)
        return Rectangle(r0, r1, *ends, order[at], real, False)

    @cached_property
    def edge_place(self) -> Tensor:
        """(E,) int64: which number each of the graph's edges has in the order the rectangles meet them."""
        pointer, _, order = self.graph.by_receiver if self.by == "receiver" else self.graph.by_sender
        count = pointer.diff()[self.nodes]
        skipped = pointer[self.nodes] - (count.cumsum(0) - count)
        met = torch.arange(order.numel(), device=order.device)
        place = torch.empty_like(order)
        place[order[met + skipped.repeat_interleave(count)]] = met
        return place


@kept
def walk(graph: Graph, by: Side, most: int) -> Walk:
    """The walk of a graph, made once and kept with it."""
    return Walk(graph, by, most)


def pair_number(graph: Graph) -> Tensor:
    """(E,) int64: which number each edge has among the graph's pairs, sorted by receiver, then by sender."""
    order = torch.argsort(graph.receiver * max(1, graph.senders) + graph.sender)
    number = torch.empty_like(order)
    number[order] = torch.arange(order.numel(), device=order.device)
    return number


def _cuts(degree: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Rectangles of rising degrees: at most `most` slots or one row, and few of them empty."""
    found, at, total = [], 0, len(degree)
    while at < total:
        first = int(degree[at])
        if first == 0:
            end = min(at + most, int(np.searchsorted(degree, 1)))
            found.append((at, end, 0))
        else:
            near = degree[at : at + max(1, most // first)].astype(np.int64)
            slots = near * np.arange(1, len(near) + 1)
            fits = (slots <= most) & ((slots <= WASTE * np.cumsum(near)) | (slots <= SMALL))
            end = at + max(1, len(near) if fits.all() else int(np.argmin(fits)))
            found.append((at, end, int(degree[end - 1])))
        at = end
    return found
