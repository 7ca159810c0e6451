"""Graph Mamba: neighbourhoods of random walks as tokens, read by selective scans; then a scan over the nodes.

Source: GMN, Behrouz and Hashemi 2024, arXiv 2402.08678 (no code was released).
Legend: n nodes, K tokens of a node, C width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.graph import Graph, WalkTokens, kept, neighbour_mean, walk_tokens
from attlas.graph.neighbours import spoilt_graphs
from attlas.layers.gin import GIN
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.mamba import BiMamba, Mamba
from attlas.layers.virtual_node import star_of

__all__ = ["ForwardMamba", "GMNLayer", "SubgraphEncoder", "node_order"]


_walk_tokens = kept(walk_tokens)


class SubgraphEncoder(nn.Module):
    """phi: graph layers on each token's induced subgraph, and the mean of its nodes: (n K, C).

    layers: of PyG's convention; they get the edge features of the original's edges, and may keep an edge
    state. Cost: the layers on the T appearances of nodes in all tokens.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "n C"], tokens: WalkTokens, edge_attr: Tensor | None = None
    ) -> Float[Tensor, "tokens C"]:
        """One vector per token."""
        h = x[tokens.node]
        state = None if edge_attr is None else edge_attr[tokens.edge]
        for layer in self.layers:
            found = layer(h, tokens.graph, state)
            h, state = found if isinstance(found, tuple) else (found, state)
        return neighbour_mean(h, star_of(tokens.graph))


class ForwardMamba(nn.Module):
    """W_out (f(LayerNorm x)), one direction of `BiMamba`: what the source compares both with."""

    def __init__(self, width: int, *, states: int = 16, expand: int = 2, taps: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ahead = Mamba(width, states=states, expand=expand, taps=taps)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "B N C"], *, reset: Tensor | None = None) -> Float[Tensor, "B N C"]:
        """Every token from those before it in its sequence."""
        return self.out(self.ahead(self.norm(x), reset=reset))

    def last(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """The last row of `forward(x)`."""
        return self.out(self.ahead(self.norm(x))[:, -1])


class GMNLayer(nn.Module):
    """y_v = last row of BiMamba(phi(tokens of v)); x' = BiMamba(Y) over the nodes by degree [+ mpnn(x)].

    Args:
        width: C. encoder: phi, called with (x, tokens, edge_attr) giving (n K, C); two GIN layers unless
            given. walks, length, repeats: M, m, s of `walk_tokens`; length 0: a node is its only token.
        scan: makes each of the two scans from the width, a module with `forward(x, reset=)` and `last`.
        nodes: whether there is a scan over the nodes. mpnn: Psi, a graph layer of x. seed: of the walks.
        ordered: False gives the tokens in random order, drawn anew in each call of training and once and
            for all in evaluation.

    Tokens stand longest walks first and the node alone last; those of equal length change places at random
    in training. Nodes of each graph are scanned by rising in-degree (`node_order`). The graphs of a batch
    stand behind one another in one row, without padding. Equivariant to another numbering of the nodes
    together with their tokens, up to ties of `node_order`; walks themselves are drawn by number.

    Shapes: x (n, C), edge_index (2, E) or a Graph -> (n, C). tokens: drawn before from this graph, by
    whatever settings, else drawn once per Graph object. Cost: O(n K C S) for the scans with S states, and
    the encoder's. ValueError: shapes, tokens of another graph.
    """

    def __init__(
        self,
        width: int,
        *,
        encoder: nn.Module | None = None,
        walks: int = 4,
        length: int = 4,
        repeats: int = 2,
        scan: Callable[[int], nn.Module] | None = None,
        nodes: bool = True,
        mpnn: nn.Module | None = None,
        ordered: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        scan = _both_ways if scan is None else scan
        if encoder is None:
            encoder = SubgraphEncoder([GIN(width, norm=nn.Identity) for _ in range(2)])
        self.encoder = encoder
        self.walk: dict[str, Any] = {"walks": walks, "length": length, "repeats": repeats, "seed": seed}
        self.over_tokens, self.over_nodes = scan(width), scan(width) if nodes else None
        self.width, self.mpnn, self.ordered = width, mpnn, ordered

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        tokens: WalkTokens | None = None,
    ) -> Tensor:
        """One layer."""
        graph, features = graph_of("GMNLayer", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        tokens = _walk_tokens(graph, **self.walk) if tokens is None else tokens
        if not tokens.belong_to(graph):
            raise ValueError(
                f"GMNLayer: tokens must be drawn from this graph, {graph.nodes} nodes and {graph.edges} "
                f"edges in this order; they are those of another one, of "
                f"{tokens.graph.graphs // tokens.count} nodes and {len(tokens.ends[0])} edges"
            )
        encoded = self.encoder(x, tokens, features).unflatten(0, (-1, tokens.count))
        y: Tensor = self.over_tokens.last(self._arranged(encoded, tokens))  # type: ignore[operator]
        if self.over_nodes is not None and len(y):
            y = self._over_nodes(y, graph)
        if self.mpnn is None:
            return y
        return y + self.mpnn(x, graph, features)

    def _over_nodes(self, y: Tensor, graph: Graph) -> Tensor:
        """The scan over the nodes of all graphs, in one row."""
        # What is no number in one graph would pass a reset, which multiplies by 0.
        spoilt = spoilt_graphs(y, graph)
        y = y.masked_fill(spoilt, 0.0)
        order = node_order(graph, y, random=self.training)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        owner = graph.graph_of[order]
        reset = torch.cat([owner.new_ones(1, dtype=torch.bool), owner.diff() != 0])
        found: Tensor = self.over_nodes(y[order][None], reset=reset[None])[0][back]  # type: ignore[misc]
        return found.masked_fill(spoilt, math.nan)

    def _arranged(self, encoded: Tensor, tokens: WalkTokens) -> Tensor:
        """The tokens (n, K, C) in the order that they are read in."""
        count, device = encoded.shape[:2], encoded.device
        if self.ordered and (not self.training or tokens.repeats == 1 or not tokens.length):
            return encoded
        generator = None if self.training else torch.Generator().manual_seed(tokens.count)
        drawn = torch.rand(*count, generator=generator).to(device)
        if self.ordered:  # only tokens of equal length change places
            drawn = drawn + torch.arange(count[1], device=device) // tokens.repeats
        return encoded.gather(1, drawn.argsort(1)[..., None].expand_as(encoded))


def node_order(graph: Graph, y: Float[Tensor, "n C"], *, random: bool) -> Tensor:
    """Nodes of each graph by rising in-degree, graph after graph: (n,) int64.

    Degrees always tie somewhere. random: ties at random (training); else by the rows of y rounded to 5
    decimals, column by column: by what a node is, not by its number, which decides where rows are equal.
    """
    if random:
        ties = torch.rand(1, graph.nodes, dtype=torch.float64).numpy()
    else:
        ties = np.round(y.detach().double().cpu().numpy(), 5).T[::-1]
    keys = (*ties, graph.in_degree.cpu().numpy(), graph.graph_of.cpu().numpy())
    return torch.from_numpy(np.lexsort(keys)).to(y.device)


def _both_ways(width: int) -> nn.Module:
    return BiMamba(width, norm=True)


def _make(setting: GraphSetting) -> nn.Module:
    return GMNLayer(setting.width, length=2)


register_graph_layer(
    GraphEntry(
        "gmn",
        _make,
        excused={"permutation": "its random walks are drawn by the numbers of the nodes: equal in law only"},
    )
)
