"""A graph to pass messages on: its edges as they were given, and sorted by receiver and by sender.

Legend: E edges, R receivers, S senders, G graphs of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Graph", "Sorted"]

CHUNK = 1 << 22
"""Edges that are checked at once: those of a graph on disk need not fit in memory."""


class Sorted(NamedTuple):
    """Edges sorted by one of their ends, in the given order where that end is equal.

    pointer (nodes + 1,): the edges of node i are pointer[i] .. pointer[i + 1]; other (E,): the other end of
    each; order (E,): where each stands in the graph's own order.
    """

    pointer: Tensor
    other: Tensor
    order: Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """Directed edges from senders to receivers; one message per edge, also along equal edges and loops.

    Args:
        sender, receiver: (E,) int64, the ends of every edge in the order of the user, which is the order of
            all tensors of edges.
        senders, receivers: how many nodes stand on each side; equal, and the same nodes, unless `bipartite`.
        edge_attr: (E, ...) features of the edges, or None. edge_type: (E,) int64 of typed edges, or None.
        pointer: (G + 1,) int64 for a batch of graphs: nodes pointer[g] .. pointer[g + 1] are graph g, and no
            edge leaves its graph; None for one graph.
        bipartite: senders and receivers are different nodes.

    An undirected graph has each edge in both directions (`undirected`). Tensors are read, not copied, and
    must not be written to afterwards; what is sorted is computed once, when it is first asked for, in
    O(E log E). A graph equals only itself.

    Raises ValueError or TypeError, naming the tensor and the first wrong edge.
    """

    sender: Tensor
    receiver: Tensor
    senders: int
    receivers: int
    edge_attr: Tensor | None = None
    edge_type: Tensor | None = None
    pointer: Tensor | None = None
    bipartite: bool = False

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor | Sequence[Sequence[int]],
        *,
        num_nodes: int | None = None,
        num_receivers: int | None = None,
        edge_attr: Tensor | None = None,
        edge_type: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> "Graph":
        """A graph out of (2, E) sender and receiver of every edge, as PyG has them.

        num_nodes: as many as the largest number names unless given, so isolated nodes at the end need it.
        num_receivers: of a bipartite graph, with num_nodes senders. batch (nodes,): the graph that each node
        is in, not falling. Edges keep their order. ValueError: shapes, ends that are no node.
        """
        ends = torch.as_tensor(edge_index)
        if ends.numel() == 0:
            ends = ends.reshape(2, 0).to(torch.int64)
        if ends.dim() != 2 or ends.shape[0] != 2:
            raise ValueError(
                f"edge_index must be (2, edges), senders above receivers, got {tuple(ends.shape)}"
            )
        if ends.is_floating_point() or ends.is_complex() or ends.dtype == torch.bool:
            raise TypeError(f"edge_index must hold integers, got {ends.dtype}")
        sender, receiver = ends.to(torch.int64).contiguous()
        if num_nodes is None:
            if num_receivers is not None:
                raise ValueError("a bipartite graph needs num_nodes (its senders) beside num_receivers")
            num_nodes = int(ends.max()) + 1 if ends.numel() else 0
        receivers = num_nodes if num_receivers is None else num_receivers
        pointer = None if batch is None else _pointer(batch, num_nodes)
        two = num_receivers is not None
        return cls(sender, receiver, num_nodes, receivers, edge_attr, edge_type, pointer, two)

    def __post_init__(self) -> None:
        if not self.bipartite and self.senders != self.receivers:
            raise ValueError(
                f"graph: senders and receivers are the same nodes, but there are {self.senders} and "
                f"{self.receivers}: give bipartite=True for two kinds of nodes"
            )
        for name, nodes in (("sender", self.senders), ("receiver", self.receivers)):
            _check_ends(name, getattr(self, name), nodes)
        if self.sender.shape != self.receiver.shape:
            raise ValueError(
                f"graph: sender and receiver must have one entry per edge, got {self.sender.numel()} and "
                f"{self.receiver.numel()}"
            )
        self._check_edges()
        if self.pointer is not None:
            self._check_batch(self.pointer)

    def _check_edges(self) -> None:
        for name in ("edge_attr", "edge_type"):
            given = getattr(self, name)
            if given is not None and (given.dim() < 1 or given.shape[0] != self.edges):
                raise ValueError(
                    f"graph: {name} must have one row per edge, ({self.edges}, ...), got {tuple(given.shape)}"
                )
        if self.edge_type is not None and (self.edge_type.dtype != torch.int64 or self.edge_type.dim() != 1):
            raise TypeError(
                f"graph: edge_type must be int64 of shape ({self.edges},), got {self.edge_type.dtype} "
                f"{tuple(self.edge_type.shape)}"
            )

    def _check_batch(self, pointer: Tensor) -> None:
        if self.bipartite:
            raise ValueError("graph: a batch of bipartite graphs has no one pointer: batch one side alone")
        if pointer.dtype != torch.int64 or pointer.dim() != 1 or pointer.numel() < 1:
            raise TypeError(
                f"graph: pointer must be int64 (graphs + 1,), got {pointer.dtype} {tuple(pointer.shape)}"
            )
        ends = int(pointer[0]), int(pointer[-1])
        if ends != (0, self.receivers) or bool((pointer.diff() < 0).any()):
            raise ValueError(
                f"graph: pointer must rise from 0 to the number of nodes, {self.receivers}, got "
                f"{ends[0]} .. {ends[1]}"
            )
        for first, pieces in enumerate(
            zip(self.sender.split(CHUNK), self.receiver.split(CHUNK), strict=True)
        ):
            leaving = (self.graph_of[pieces[0]] != self.graph_of[pieces[1]]).nonzero()
            if leaving.numel():
                edge = first * CHUNK + int(leaving[0])
                raise ValueError(
                    f"graph: edge {edge} ({int(self.sender[edge])} -> {int(self.receiver[edge])}) leads from "
                    "one graph of the batch into another"
                )

    # What is kept is made outside inference mode: training may use it afterwards.

    # Size.

    @property
    def edges(self) -> int:
        """Edges, equal ones and loops counted."""
        return self.sender.numel()

    @property
    def nodes(self) -> int:
        """Nodes; ValueError for a bipartite graph, which has two kinds."""
        if self.bipartite:
            raise ValueError("graph: a bipartite graph has senders and receivers, not nodes")
        return self.receivers

    @property
    def graphs(self) -> int:
        """Graphs of the batch, 1 without one."""
        return 1 if self.pointer is None else self.pointer.numel() - 1

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.sender.device

    @property
    def edge_index(self) -> Tensor:
        """(2, E) int64, senders above receivers: PyG's `edge_index` (source to target)."""
        return torch.stack([self.sender, self.receiver])

    @cached_property
    @torch.inference_mode(False)
    def graph_of(self) -> Tensor:
        """(R,) int64: the graph of the batch that each node is in (PyG's `batch`)."""
        if self.pointer is None:
            return torch.zeros(self.receivers, dtype=torch.int64, device=self.device)
        return torch.repeat_interleave(
            torch.arange(self.graphs, device=self.device), self.pointer.diff(), output_size=self.receivers
        )

    # Sorted edges.

    @cached_property
    @torch.inference_mode(False)
    def by_receiver(self) -> Sorted:
        """CSR: the edges that every receiver gets its messages by."""
        return _sorted(self.receiver, self.sender, self.receivers)

    @cached_property
    @torch.inference_mode(False)
    def by_sender(self) -> Sorted:
        """CSC: the edges that every sender sends along (gradients of keys and values run along these)."""
        return _sorted(self.sender, self.receiver, self.senders)

    @cached_property
    @torch.inference_mode(False)
    def in_degree(self) -> Tensor:
        """(R,) int64: edges that end at each receiver."""
        return torch.bincount(self.receiver, minlength=self.receivers)

    @cached_property
    @torch.inference_mode(False)
    def out_degree(self) -> Tensor:
        """(S,) int64: edges that start at each sender."""
        return torch.bincount(self.sender, minlength=self.senders)

    @cached_property
    def has_equal_edges(self) -> bool:
        """Whether some edges have the same ends, whatever their types; found once, in O(E log E)."""
        codes = self.receiver * max(1, self.senders) + self.sender
        return int(torch.unique(codes).numel()) < self.edges

    # Copies.

    def replace(self, **changed: Any) -> "Graph":
        """The same graph with other fields, checked again."""
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph on a device."""
        parts = ("sender", "receiver", "edge_attr", "edge_type", "pointer")
        moved = {name: getattr(self, name) for name in parts}
        return self.replace(
            **{name: None if part is None else part.to(device) for name, part in moved.items()}
        )

    def __repr__(self) -> str:
        nodes = (
            f"{self.senders} senders, {self.receivers} receivers" if self.bipartite else f"{self.nodes} nodes"
        )
        more = [f"{self.graphs} graphs"] if self.pointer is not None else []
        for name in ("edge_attr", "edge_type"):
            part = getattr(self, name)
            more += [] if part is None else [f"{name} {tuple(part.shape)}"]
        return f"Graph({', '.join([nodes, f'{self.edges} edges', *more])})"


def _check_ends(name: str, ends: Tensor, nodes: int) -> None:
    if nodes < 0:
        raise ValueError(f"graph: {name}s must not be negative, got {nodes}")
    if ends.dtype != torch.int64 or ends.dim() != 1:
        raise TypeError(
            f"graph: {name} must be int64 of shape (edges,), got {ends.dtype} {tuple(ends.shape)}"
        )
    wrong = [
        number * CHUNK + found
        for number, piece in enumerate(ends.split(CHUNK))
        if (found := ((piece < 0) | (piece >= nodes)).nonzero()).numel()
    ]
    if wrong:
        edge = int(wrong[0][0])
        raise ValueError(
            f"graph: {name} of edge {edge} is {int(ends[edge])}, but there are {nodes} {name}s "
            f"(0 .. {nodes - 1}); {sum(map(len, wrong))} edges are wrong"
        )


def _sorted(by: Tensor, other: Tensor, nodes: int) -> Sorted:
    counts = torch.bincount(by, minlength=nodes)
    order = torch.argsort(by, stable=True)
    return Sorted(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), other[order], order)


def _pointer(batch: Tensor, nodes: int) -> Tensor:
    if batch.dim() != 1 or batch.numel() != nodes or batch.dtype != torch.int64:
        raise ValueError(
            f"batch must be int64 with one entry for each of {nodes} nodes, got {batch.dtype} "
            f"{tuple(batch.shape)}"
        )
    if nodes and (int(batch[0]) < 0 or bool((batch.diff() < 0).any())):
        raise ValueError("batch must not fall: nodes of one graph stand together, graphs in their order")
    counts = torch.bincount(batch) if nodes else batch.new_zeros(0)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
