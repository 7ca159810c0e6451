"""Attention among all nodes of each graph of a batch: of the library's mixers, and the plain softmax.

Nothing is padded to the largest graph. Legend: n nodes, H heads, C width.
"""

import torch
from torch import Tensor, nn

from attlas.attend import attend
from attlas.graph import Graph, size_buckets
from attlas.layers.mixers import Setting, mixer_entry
from attlas.pattern import Tokens

__all__ = ["ByGraph", "GraphAttention", "mixer_by_graph"]


class GraphAttention(nn.Module):
    """x -> W_o of softmax attention in which every node sees all nodes of its graph, and itself.

    Args: width, heads; dropout: of the attention weights; bias: of the four projections.
    Shapes: x (n, C), a Graph -> (n, C). Graphs of similar size lie side by side (`size_buckets`). Cost: the
    squares of the graphs' sizes times C, no n x n over the batch.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"GraphAttention: width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """ValueError: not one row for each node."""
        if x.shape[0] != graph.nodes:
            raise ValueError(f"x must have a row for each of {graph.nodes} nodes, got {tuple(x.shape)}")
        share = self.dropout if self.training else 0.0
        parts = torch.cat([part(x) for part in (self.query, self.key, self.value)], -1)
        if graph.graphs == 1:
            return self._mixed(parts[None], None, share)[0]
        buckets, place = size_buckets(graph)
        if not buckets:
            return x
        found = [
            self._mixed(parts[nodes], None if bool(there.all()) else there, share)[there]
            for _, nodes, there in buckets
        ]
        return torch.cat(found)[place]

    def _mixed(self, parts: Tensor, there: Tensor | None, dropout: float) -> Tensor:
        """(graphs, m, 3 C) queries, keys and values -> (graphs, m, C)."""
        shaped = parts.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        size = parts.shape[1]
        keys = None if there is None else Tokens(size, total=size, valid=there)
        found = attend(*shaped, k_at=keys, dropout=dropout)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed


class ByGraph(nn.Module):
    """A mixer (B, N, C) -> (B, N, C) applied to each graph of a batch as a sequence of its nodes.

    Graphs of similar size lie side by side (`size_buckets`: less than half of it is padding) and the mixer
    gets `valid`; with padding=False only graphs of equal size, and no `valid`: any mixer will do.
    Shapes: x (n, C), a Graph -> (n, C). The order of a graph's nodes counts only where it does for the mixer.
    """

    def __init__(self, mixer: nn.Module, *, padding: bool = True) -> None:
        super().__init__()
        self.mixer, self.padding = mixer, padding

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """ValueError: not one row for each node."""
        if x.shape[0] != graph.nodes:
            raise ValueError(f"x must have a row for each of {graph.nodes} nodes, got {tuple(x.shape)}")
        buckets, place = size_buckets(graph, not self.padding)
        if not buckets:
            return x
        named = [{"valid": there} if self.padding else {} for _, _, there in buckets]
        parts = [
            self.mixer(x[nodes], **more)[there]
            for (_, nodes, there), more in zip(buckets, named, strict=True)
        ]
        return torch.cat(parts)[place]


def mixer_by_graph(name: str, width: int, heads: int, *, length: int | None = None) -> ByGraph:
    """The registered mixer of that name (see `attlas mixers`), among the nodes of each graph.

    length: the most nodes of a graph, for mixers with parameters per position. ValueError: an unknown name,
    a mixer without a noncausal self form or for a fixed number of tokens.
    """
    entry = mixer_entry(name)
    if entry.tokens != "any":
        raise ValueError(f"mixer {name} is made for a fixed number of tokens; graphs have different sizes")
    return ByGraph(entry.build(Setting(width, heads, causal=False, length=length)), padding=entry.padding)
