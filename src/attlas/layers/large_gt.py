"""LargeGT's local part: attention among tokens of a node, features of nodes sampled around it.

Legend: N nodes of a batch, n of the graph, K sampled nodes per node (itself first), T = 3 K tokens,
F features, H heads, D width of each head.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from attlas.attend import attend
from attlas.graph import Graph, hop_features, sample_hops
from attlas.layers.graph_layers import GraphEntry, graph_of, register_graph_layer

__all__ = ["HOPS", "HopTokens", "SampledAttention", "TokenAttention", "token_mlp"]

HOPS = 2
"""Hops that are sampled, and that the features of a token are averaged over: a reach of twice as many."""


class HopTokens:
    """The tokens of every node of a graph, gathered when they are asked for.

    Of node i: for i and each of K - 1 nodes u drawn once out of its first and second hop (`sample_hops`) the
    rows X_u, (A X)_u and (A^2 X)_u, A = D^-1/2 (adjacency + I) D^-1/2. Kept: 3 n F features and n (K - 1)
    numbers of nodes; never n x 3 K x F.

    Args:
        graph, x: the whole and its features. count: K. seed: of the draws. samples: (n, K - 1), draws made
            before, in place of new ones.
    """

    def __init__(
        self,
        graph: Graph,
        x: Float[Tensor, "n F"],
        count: int,
        *,
        seed: int = 0,
        samples: Int64[Tensor, "n S"] | None = None,
    ) -> None:
        if count < 2:
            raise ValueError(f"HopTokens: count must be 2 or more (the node and one sample), got {count}")
        self.samples = sample_hops(graph, count - 1, hops=HOPS, seed=seed) if samples is None else samples
        wanted = (graph.nodes, count - 1)
        if self.samples.shape != wanted:
            raise ValueError(f"samples must be {wanted}, one row per node, got {tuple(self.samples.shape)}")
        self.features = torch.stack(hop_features(graph, x, HOPS), 1)

    def __call__(self, nodes: Int64[Tensor, "N"]) -> Float[Tensor, "N T F"]:
        """The tokens of these nodes; the first of each is its own row of X."""
        drawn = torch.cat([nodes[:, None], self.samples[nodes]], 1)
        return self.features[drawn].flatten(1, 2)


def token_mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Linear - ReLU - dropout - Linear, LargeGT's input network."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))


class TokenAttention(nn.Module):
    """One transformer layer without feed-forward over a node's tokens, read out at the node: (N, H D).

        T = W_t f_s(tokens),  T <- LN(T W_r + MHA(LN(T))), each head of width D
        a_t = softmax over t >= 2 of w . [T_1 ; T_t],  out = T_1 + sum a_t T_t

    Args:
        inputs: F, channels of a token. width: D. heads: H. dropout: of the attention's result and of the
            layer's. input_dropout: inside f_s.

    Tokens beside the first may come in any order; a token that stands twice counts twice. The half of w that
    meets T_1 adds the same to every logit and changes no weight. Source: LargeGT, Dwivedi et al. 2023, arXiv
    2312.11109. Cost: O(T^2 H D + T F D) a node.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int = 2,
        *,
        dropout: float = 0.3,
        input_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = token_mlp(inputs, width, input_dropout)
        self.tokens = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * width) for _ in range(3))
        self.out = nn.Linear(heads * width, heads * width)
        self.skip = nn.Linear(width, heads * width)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.LayerNorm(heads * width)
        self.readout = nn.Linear(2 * heads * width, 1)

    def forward(self, tokens: Float[Tensor, "N T F"]) -> Float[Tensor, "N HD"]:
        """tokens: the node's own first. ValueError: fewer than two."""
        if tokens.shape[1] < 2:
            raise ValueError(f"tokens must be 2 or more per node, its own first, got {tuple(tokens.shape)}")
        x = self.tokens(self.inputs(tokens))
        normal = self.norm(x)
        query, key, value = (
            part(normal).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = torch.as_tensor(attend(query, key, value)).transpose(1, 2).flatten(2)
        x = self.last(self.dropout(self.skip(x) + self.dropout(self.out(mixed))))
        own, others = x[:, 0], x[:, 1:]
        first, second = self.readout.weight[0].chunk(2)
        logits = others @ second + (own @ first + self.readout.bias)[:, None]
        return own + (logits.softmax(1)[:, None] @ others)[:, 0]


class SampledAttention(nn.Module):
    """LargeGT's local part as a layer of a graph: (n, width) -> (n, width), heads of width / heads.

    Tokens are sampled for every graph, by the same hashes of (seed, node) every time; edges are taken both
    ways, equal ones once, loops not at all. With gradients through features of hops.

    Args:
        width, heads. count: K, sampled nodes per node and itself. seed: of the draws. dropout: everywhere.

    Errors: those of `graph_of`; ValueError where heads do not divide the width. Cost: O(n (3 K)^2 width).
    """

    def __init__(
        self, width: int, heads: int = 1, *, count: int = 10, seed: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"SampledAttention: heads must divide width, got {heads} and {width}")
        self.width, self.count, self.seed = width, count, seed
        self.local = TokenAttention(width, width // heads, heads, dropout=dropout, input_dropout=dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """PyG's calling convention; edge_attr is not read."""
        graph, _ = graph_of("SampledAttention", x, edge_index, edge_attr, batch, width=self.width, layer=self)
        if not graph.nodes:
            return x
        tokens = HopTokens(graph, x, self.count, seed=self.seed)
        return self.local(tokens(torch.arange(graph.nodes, device=x.device)))


_BOTH_WAYS = "edges are taken both ways, and equal ones and loops left out, by the definition of A"

register_graph_layer(
    GraphEntry(
        "large_gt",
        lambda setting: SampledAttention(setting.width, setting.heads, count=6),
        reach=2 * HOPS,
        both_ways=True,
        excused={
            "permutation": "which nodes are sampled is drawn by their numbers",
            "isolated": "a node without neighbours reads nodes drawn from its whole graph",
            "loops": _BOTH_WAYS,
            "multi_edges": _BOTH_WAYS,
            "padding": "nodes without neighbours draw from all nodes of their graph, new ones too",
        },
    )
)
