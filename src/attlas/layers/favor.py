"""FAVOR+ on ragged rows: positive random features with a stabiliser per graph, and linear attention by graph.

Source: Choromanski et al. 2020, arXiv 2009.14794, as the global part of GPS, arXiv 2205.12454. Legend: n
nodes, G graphs, H heads, D head width, F features, V value width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.graph import Graph, size_buckets
from attlas.layers.performer import orthogonal_directions

__all__ = ["FavorAttention", "favor_features", "linear_by_graph"]

EPSILON = 1e-4  # added to every exponential feature


def favor_features(
    x: Float[Tensor, "n H D"], directions: Float[Tensor, "F D"], graph: Graph | None = None
) -> Float[Tensor, "n H F"]:
    """phi(x) = (exp(W y - |y|^2 / 2 - s) + 1e-4) / sqrt F with y = x / D^(1/4).

    phi(q).phi(k) is near exp(q.k / sqrt D) up to a factor. s is the largest W y, without gradient: of each
    row, for queries, or with `graph` of all nodes of a graph in a head, for its keys. The 1e-4 lets it
    show in the result, so it must not see other graphs.
    """
    scaled = x * x.shape[-1] ** -0.25
    along = scaled @ directions.to(x.dtype).T
    most = along.detach().amax(-1)
    if graph is not None and graph.pointer is None and len(x):
        most = most.amax(0, keepdim=True).expand_as(most)
    elif graph is not None:
        top = most.new_full((graph.graphs, most.shape[1]), -torch.inf)
        top = top.scatter_reduce(0, graph.graph_of[:, None].expand_as(most), most, "amax")
        most = top[graph.graph_of]
    exponent = along - scaled.square().sum(-1, keepdim=True) / 2 - most[..., None]
    return (exponent.exp() + EPSILON) * directions.shape[0] ** -0.5


def linear_by_graph(
    query: Float[Tensor, "n H F"], key: Float[Tensor, "n H F"], value: Float[Tensor, "n H V"], graph: Graph
) -> Float[Tensor, "n H V"]:
    """out_i = phi(q_i)^T (sum_j phi(k_j) v_j^T) / (phi(q_i)^T sum_j phi(k_j)) over the nodes j of i's graph.

    query, key: features, not negative; a row whose weights are all 0 gives 0. Graphs of similar size are
    summed side by side (`size_buckets`), nothing is padded to the largest. Cost: O(n H F V), no n x n.
    """
    wide = torch.cat([value, value.new_ones(*value.shape[:2], 1)], -1)
    if graph.graphs == 1:
        found = torch.einsum("nhf,hfv->nhv", query, torch.einsum("nhf,nhv->hfv", key, wide))
    else:
        buckets, place = size_buckets(graph)
        parts = []
        for _, nodes, there in buckets:
            given = key[nodes] * there[..., None, None]
            kept = torch.einsum("gmhf,gmhv->ghfv", given, wide[nodes])
            parts.append(torch.einsum("gmhf,ghfv->gmhv", query[nodes], kept)[there])
        found = torch.cat(parts)[place] if parts else wide
    total = found[..., -1:]
    return found[..., :-1] / torch.where(total > 0, total, 1.0)


class FavorAttention(nn.Module):
    """x -> W_o of `linear_by_graph` of the heads' `favor_features`: every node attends to all of its graph.

    Args:
        width, heads; features: floor(D ln D) unless given, at least 1. The directions, orthogonal in blocks
            and the same for all heads, are drawn once and kept with the weights.
        dropout: of the output; bias: of the four projections.

    Shapes: x (n, width), a Graph -> (n, width). Departs from the package that the released code uses, which
    masks only the values of padded keys (the padding stays in the denominator and the stabiliser), and whose
    heads are 64 wide whatever the width.
    """

    directions: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        features: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"FavorAttention: width must be a multiple of heads, got {width} and {heads}")
        inner = width // heads
        count = max(1, math.floor(inner * math.log(inner))) if features is None else features
        if count < 1:
            raise ValueError(f"FavorAttention: features must be at least 1, got {features}")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("directions", orthogonal_directions(1, count, inner)[0])

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """ValueError: not one row for each node."""
        if x.shape[0] != graph.nodes:
            raise ValueError(f"x must have a row for each of {graph.nodes} nodes, got {tuple(x.shape)}")
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value)
        )
        asked = favor_features(query, self.directions)
        given = favor_features(key, self.directions, graph)
        mixed: Tensor = self.out(linear_by_graph(asked, given, value, graph).flatten(1))
        found: Tensor = self.dropout(mixed)
        return found
