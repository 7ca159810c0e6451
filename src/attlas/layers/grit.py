"""GRIT: attention over all pairs of a graph's nodes, whose pair features start as random walks and learn.

Source: Ma et al. 2023, arXiv 2305.17589; LiamMa/GRIT. Legend: n nodes, P pairs (the sum of squares of the
graphs' sizes), d width, H heads, f = d / H, K steps of the random walk.
"""

from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.graph import Graph, PairGraph, kept, pairs_of, relative_random_walks
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.ragged_norm import RaggedBatchNorm
from attlas.score import Edge, PairResult, Score

__all__ = ["GRIT", "GRITEncoder", "GRITLayer", "GRITScore", "random_walks"]

CLAMP = 5.0
"""Logits are limited to [-CLAMP, CLAMP]."""


class _SignedRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = x.abs().sqrt_().copysign_(x)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        size = found.abs()
        return (grad / (2 * size)).masked_fill(size == 0, 0.0)


def signed_root(x: Tensor) -> Tensor:
    """sqrt(relu(x)) - sqrt(relu(-x)); its gradient at exactly 0 is 0, not NaN as that of sign(x) sqrt|x|."""
    found: Tensor = _SignedRoot.apply(x)
    return found


@dataclass(frozen=True, eq=False)
class GRITScore(Score):
    """Per head: w_ij, b_ij = W_E e_ij + c;  s_ij = relu(rho((q_i + k_j) * w_ij) + b_ij);  logit = a . s_ij.

    rho(x) = sqrt(relu(x)) - sqrt(relu(-x)); the logit is limited to [-5, 5]; s_ij in R^f is the new state of
    the pair and is carried behind v_j, so that what is aggregated is (sum_j a_ij v_j, sum_j a_ij s_ij).

    Args:
        pairs: (P, d) features of the pairs, in the order of the graph's edges.
        weight, bias: (H, d, 2 f) and (H, 2 f) of the projection to w and b, made pair by pair: what is as
            large as all pairs is e and s alone.
        asks: (H, f), a.
    """

    pairs: Tensor
    weight: Tensor
    bias: Tensor
    asks: Tensor

    name = "grit"

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.pairs[:, None],)

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.weight[None, :, None, None],
            self.bias[None, :, None, None],
            self.asks[None, :, None, None],
        )

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        weight, bias, asks, pairs = tensors
        factor, shift = (_projected(pairs, weight) + bias).chunk(2, -1)
        state = functional.relu(signed_root((query + key) * factor) + shift)
        logit = (state * asks).sum(-1).clamp(-CLAMP, CLAMP)
        shape = (*torch.broadcast_shapes(state.shape[:-1], value.shape[:-1]), -1)
        return PairResult(logit, torch.cat((value.expand(shape), state.expand(shape)), -1), state)


def _projected(pairs: Tensor, weight: Tensor) -> Tensor:
    """(1, 1, ..., d) times (1, H, 1, .., d, C) -> (1, H, ..., C), as one product for all heads."""
    heads, width, out = weight.shape[1], weight.shape[-2], weight.shape[-1]
    matrix = weight.reshape(heads, width, out).transpose(0, 1).reshape(width, heads * out)
    return (pairs[:, 0] @ matrix).unflatten(-1, (heads, out)).movedim(-2, 1)


@kept
def random_walks(graph: Graph, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(P, K) [I, P, .., P^(K - 1)]_ij of all pairs (`relative_random_walks`), kept with the graph."""
    # Unwrapped: only what is returned is kept, not its float64 too.
    found = unwrap(relative_random_walks)(graph, steps).edge_attr
    if found is None:
        raise ValueError("random_walks: relative_random_walks gave no features")
    return found.to(graph.device, dtype)


class GRITEncoder(nn.Module):
    """x_i + W_n p_ii and e_ij = W_e p_ij + (the features of the edge j -> i, where there is one).

    p_ij holds K steps of the random walk, the identity being the first; W_n and W_e have no bias, so that a
    pair that no walk joins starts at 0. No norm: it would destroy the distances that the zeros tell.

    Args:
        width: d. steps: K. edge_width: of the edges' features: those of width d are added as they are
            (embedded), others through a linear map; None: there are none.
    """

    def __init__(self, width: int, *, steps: int = 21, edge_width: int | None = None) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"GRITEncoder: steps must be 1 or more (the first is the node), got {steps}")
        self.width, self.steps, self.edge_width = width, steps, edge_width
        self.node = nn.Linear(steps, width, bias=False)
        self.pair = nn.Linear(steps, width, bias=False)
        for linear in (self.node, self.pair):
            nn.init.xavier_uniform_(linear.weight)
        mapped = edge_width is not None and edge_width != width
        self.edge: nn.Module = nn.Linear(edge_width, width) if mapped else nn.Identity()  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "n d"], graph: Graph, edge_attr: Tensor | None
    ) -> tuple[PairGraph, Float[Tensor, "n d"], Float[Tensor, "P d"]]:
        """(pairs, x, e); ValueError: edge features given or missing against `edge_width`."""
        if (edge_attr is None) != (self.edge_width is None):
            wanted = "none" if self.edge_width is None else f"(edges, {self.edge_width})"
            got = "none" if edge_attr is None else str(tuple(edge_attr.shape))
            raise ValueError(f"grit: edge_attr must be {wanted}, as edge_width says, got {got}")
        pairs, walks = pairs_of(graph), random_walks(graph, self.steps, x.dtype)
        e = self.pair(walks) if edge_attr is None else self.pair(walks) + pairs.at_pairs(self.edge(edge_attr))
        return pairs, x + self.node(walks[pairs.diagonal]), e


class GRITLayer(nn.Module):
    """One layer on all pairs: attention that reads and renews the pairs' features, degree scaler, FFN.

        o_i = sum_j a_ij W_V x_j + W_Ev sum_j a_ij s_ij,   a_ij = softmax_j(a . s_ij)   (`GRITScore`)
        o_i <- o_i * t_1 + log(1 + deg_i) o_i * t_2
        x' = BN(x + W_O o);  x'' = BN(x' + W_2 relu(W_1 x'));  e' = BN(e + W_Oe s)

    No scale of 1/sqrt(f). W_Q and W_E have biases, W_K and W_V none; batch norm over all nodes, and over all
    pairs, so that the scale by degrees survives. deg_i: edges that end at i in the given graph.

    Args:
        width: d; heads: H, which divides it. dropout: of o, s and the FFN's inside; attention_dropout: of
            the weights. update_pairs: False gives e back as it was. degree_scaler: False leaves o as it is.

    Cost: O(P d) memory beside O(P d^2) time; nothing is padded. ValueError: heads that do not divide.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        update_pairs: bool = True,
        degree_scaler: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"GRITLayer: heads must divide the width {width}, got {heads}")
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        inner = width // heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(width, 2 * width)
        for linear in (self.query, self.key, self.value, self.pair):
            nn.init.xavier_normal_(linear.weight)
        # Standard deviations of the release: Xavier's on tensors (f, H, 1), (f, H, f) and (1, d, 2).
        self.asks = nn.Parameter(torch.randn(heads, inner) * (2 / (heads + inner)) ** 0.5)
        self.carry = nn.Parameter(
            torch.randn(heads, inner, inner) * (2 / (heads * inner + inner * inner)) ** 0.5
        )
        self.scales = (
            nn.Parameter(torch.randn(2, width) * (1 / (width + 1)) ** 0.5) if degree_scaler else None
        )
        self.leave = nn.Linear(width, width)
        self.leave_pair = nn.Linear(width, width) if update_pairs else None
        self.norm, self.last_norm = RaggedBatchNorm(width), RaggedBatchNorm(width)
        self.pair_norm = RaggedBatchNorm(width) if update_pairs else None
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(
        self, x: Float[Tensor, "n d"], pairs: PairGraph, e: Float[Tensor, "P d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "P d"]]:
        """New features of nodes and pairs."""
        out, state = self.attention(x, pairs, e)
        out = functional.dropout(out, self.dropout, self.training)
        if self.scales is not None:
            degree = pairs.degree.to(x.dtype).log1p()[:, None]
            out = out * self.scales[0] + degree * out * self.scales[1]
        x = self.norm(x + self.leave(out))
        inside = functional.dropout(functional.relu(self.first(x)), self.dropout, self.training)
        x = self.last_norm(x + self.second(inside))
        if state is None or self.leave_pair is None or self.pair_norm is None:
            return x, e
        state = functional.dropout(state, self.dropout, self.training)
        return x, self.pair_norm(e + self.leave_pair(state))

    def attention(self, x: Tensor, pairs: PairGraph, e: Tensor) -> tuple[Tensor, Tensor | None]:
        """(o (n, d), s (P, d) where pairs are updated), before scaler, residual and norm."""
        if not len(x):  # attend cannot tell the width of no pairs' states
            return x, None if self.leave_pair is None else e
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        found = attend(
            query, key, value,
            pattern=pairs.graph, score=self.score(e),
            dropout=self.attention_dropout if self.training else 0.0, return_edge=self.leave_pair is not None,
        )  # fmt: skip
        out, state = found if self.leave_pair is not None else (found, None)
        inner = value.shape[-1]
        out = out[0, ..., :inner] + out[0, ..., inner:] @ self.carry
        flat = None if state is None else state[0].transpose(0, 1).flatten(1)
        return out.transpose(0, 1).flatten(1), flat

    def score(self, e: Tensor) -> GRITScore:
        """The score of the pairs' features."""
        weight = self.pair.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)
        return GRITScore(e, weight, self.pair.bias.view(self.heads, -1), self.asks)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.heads, -1)).transpose(0, 1)[None]


class GRIT(nn.Module):
    """`GRITEncoder` and `layers` times `GRITLayer`, with PyG's calling convention: x (n, d) -> (n, d).

    Every node sees every node of its graph. The random walks of a graph, and its list of pairs, are computed
    in the first call and kept as long as the graph (or the edge_index) lives.

    Args: those of the encoder, `layers`, and those of the layer.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        *,
        layers: int = 1,
        steps: int = 21,
        edge_width: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        update_pairs: bool = True,
        degree_scaler: bool = True,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"GRIT: layers must be at least 1, got {layers}")
        self.encoder = GRITEncoder(width, steps=steps, edge_width=edge_width)
        self.layers = nn.ModuleList(
            GRITLayer(
                width, heads, dropout=dropout, attention_dropout=attention_dropout,
                # Nothing reads the pairs of the last layer.
                update_pairs=update_pairs and layer + 1 < layers, degree_scaler=degree_scaler,
            )
            for layer in range(layers)
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Float[Tensor, "n d"]:
        """New features of the nodes."""
        return self.states(x, edge_index, edge_attr, batch)[0]

    def states(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "P d"], PairGraph]:
        """New features of the nodes, those of the pairs that the last layer read, and the pairs."""
        graph, edge_attr = graph_of(
            "grit", x, edge_index, edge_attr, batch,
            width=self.encoder.width, edge_width=self.encoder.edge_width, layer=self,
        )  # fmt: skip
        pairs, x, e = self.encoder(x, graph, edge_attr)
        for layer in self.layers:
            x, e = layer(x, pairs, e)
        return x, e, pairs


def _make(setting: GraphSetting) -> nn.Module:
    return GRIT(setting.width, setting.heads, layers=2, edge_width=setting.edge_width)


register_graph_layer(GraphEntry("grit", _make, edges="features"))
