"""A graph as a pattern: every receiver sees its senders."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attlas.graph import Graph, kept
from attlas.pattern import intervals as sets
from attlas.pattern.base import Pattern
from attlas.pattern.bound import Bound, bound_kind
from attlas.pattern.intervals import Intervals
from attlas.pattern.relation import Relation, relation
from attlas.pattern.tokens import Tokens

__all__ = ["GraphEdges", "as_pattern"]


@bound_kind("graph")
@dataclass(frozen=True, eq=False)
class GraphEdges(Bound):
    """The query at a receiver's number sees the keys at the numbers of its senders.

    As a pattern, a set of pairs, equal edges are one pair. ``attend(q, k, v, pattern=graph)`` makes it of a
    Graph. Cost: the edges sorted once, then O(log E) a pair.
    """

    graph: Graph

    @property
    def label(self) -> str:
        return f"graph({self.graph.receivers} x {self.graph.senders}, {self.graph.edges} edges)"

    def check_tokens(self, q_at: Tokens, k_at: Tokens) -> None:
        self.covers("queries", q_at, 0, self.graph.receivers)
        self.covers("keys", k_at, 0, self.graph.senders)

    @cached_property
    def _relation(self) -> Relation:
        everywhere = torch.ones(self.graph.edges, dtype=torch.bool, device=self.graph.device)
        return relation(self.graph.receiver, self.graph.sender, self.graph.receivers, everywhere)

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        return self._relation.has(i, j)

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        return sets.clip(self._relation.intervals(rows), 0, sizes["N"])


def as_pattern(pattern: Pattern | Graph | None) -> Pattern | None:
    """The pattern itself, or that of a graph, which is made once and kept with the graph."""
    return _edges(pattern) if isinstance(pattern, Graph) else pattern


@kept
def _edges(graph: Graph) -> GraphEdges:
    return GraphEdges(graph)
