"""p-adapter: one p-Laplacian step on the graph of an attention map, inside a fine-tuning adapter.

Source: Wu et al. 2023, arXiv 2312.10613; wuhy68/p-Adapter.
Legend: B batch, H heads, N query nodes, M value nodes, W feature width, C channels, E edges.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend, sum_over_edges
from attlas.pattern import Pattern, Tokens
from attlas.scan.state import wide
from attlas.score import Dot, Given, PLaplacian, Score, log_edge_weight

__all__ = [
    "Bottleneck",
    "PAdapter",
    "p_laplacian_edges",
    "p_laplacian_official",
    "p_laplacian_step",
    "pooled_nodes",
]

LEAST, MOST = 1.0, 3.0  # p is kept between them


def p_laplacian_step(
    receivers: Float[Tensor, "B H N W"],
    senders: Float[Tensor, "B H M W"],
    attention: Float[Tensor, "B H N M"] | None = None,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    score: Score | None = None,
    query: Tensor | None = None,
    key: Tensor | None = None,
    pattern: Pattern | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
) -> Float[Tensor, "B H N W"]:
    """F_i <- α_i Σ_j A'_ij F_j + β_i F_i, A'_ij = A_ij ||sqrt(A_ij) (F_i - F_j)||^(p-2).

        α_i = 1 / (Σ_j A'_ij + 2 μ / p), β_i = α_i 2 μ / p

    A: a given map `attention`, or the softmax map of score(query, key) on the pattern, formed anew tile by
    tile and never held. One graph of its own: receivers and senders are the same nodes. The augmented graph
    of queries and values, adjacency [[0, M], [M^T, 0]]: receivers are its query nodes, senders its value
    nodes, since a query has no other neighbours. p = 2: (A F + μ F) / (1 + μ) for rows that sum to 1.
    Edges between equal features have weight 0 unless p = 2: a self-loop does not take the whole step.

    It is softmax attention with `PLaplacian` logits and one extra edge, in float32 or better, on features
    less their mean over the valid senders: what all nodes share moves with the step and changes nothing, but
    would drown small differences. p is kept within [1, 3]; its gradient passes at the bounds. Cost: 2 W more
    FLOPs a pair than attention, O(N · 64) memory. ValueError: both or neither of attention and query with
    key; a score with a given map; μ that is not positive.
    """
    _check_map(attention, query, key, score)
    kind = wide(senders.dtype)
    mine, theirs = receivers.to(kind), senders.to(kind)
    shared = _shared(theirs, k_at)
    mine, theirs = mine - shared, theirs - shared
    p, mu = _numbers(p, mu, mine)
    options: dict[str, Any] = {"pattern": pattern, "q_at": q_at, "k_at": k_at}
    width = mine.shape[-1]
    if attention is not None:
        weights = attention.to(kind)
        known = torch.where(weights > 0, weights, 1.0).log().masked_fill(weights <= 0, -float("inf"))
        made = PLaplacian(Given(known), p, width)
        asks, tells = mine, theirs
    elif query is not None and key is not None:
        q, k = query.to(kind), key.to(kind)
        inner = Dot(q.shape[-1] ** -0.5) if score is None else score  # beside F the width is another
        # One column stands in for values: only the row statistics are asked for.
        state = attend(q, k, k[..., :1], score=inner, return_state=True, **options)[1]
        made = PLaplacian(inner, p, width, state.lse[..., None])
        asks, tells = torch.cat([mine, q], -1), torch.cat([theirs, k], -1)
    stays = (2 * mu / p).log().reshape(1, 1, 1, 1)
    found = attend(asks, tells, theirs, score=made, extra=[(stays, mine)], **options)
    return (found + shared).to(senders.dtype)


def p_laplacian_edges(
    receivers: Float[Tensor, "N W"],
    senders: Float[Tensor, "M W"],
    row_ptr: Int[Tensor, "N1"],
    col: Int[Tensor, "E"],
    weight: Float[Tensor, "E"],
    *,
    p: float | Tensor,
    mu: float | Tensor,
) -> Float[Tensor, "N W"]:
    """The same step on a graph in CSR: edges row_ptr[i] .. row_ptr[i + 1] of receiver i, weights A ≥ 0.

    Multi-edges count each; a node without edges stays as it is. Cost: O(E W). ValueError: a negative weight,
    μ that is not positive.
    """
    if bool((weight < 0).any()):
        raise ValueError(
            f"p_laplacian_edges: weight must not be negative, got {float(weight.min()):g}: powers of it "
            "are no real numbers"
        )
    kind = wide(senders.dtype)
    mine, theirs, given = receivers.to(kind), senders.to(kind), weight.to(kind)
    shared = _shared(theirs[None, None], None)[0, 0]
    mine, theirs = mine - shared, theirs - shared
    p, mu = _numbers(p, mu, mine)
    row = torch.arange(len(row_ptr) - 1, device=col.device).repeat_interleave(row_ptr.diff())
    apart = mine[row] - theirs[col]
    known = torch.where(given > 0, given, 1.0).log().masked_fill(given <= 0, -float("inf"))
    logit = log_edge_weight(known, apart.square().sum(-1), p)
    stays = (2 * mu / p).log().reshape(1)
    top = stays.detach().expand(len(mine)).clone()
    top = top.scatter_reduce(0, row, logit.detach(), "amax")
    power, own = (logit - top[row]).exp(), (stays - top).exp()
    total = own.index_add(0, row, power)
    gathered = sum_over_edges(power, theirs, row_ptr, col)
    return ((gathered + own[:, None] * mine) / total[:, None] + shared).to(senders.dtype)


def p_laplacian_official(
    receivers: Float[Tensor, "B H N W"],
    senders: Float[Tensor, "B H M W"],
    attention: Float[Tensor, "B H N M"],
    *,
    p: float | Tensor,
    mu: float | Tensor,
    augmented: bool,
) -> Float[Tensor, "B H N W"]:
    """The step as the released code computes it, with the differences of all pairs in memory.

    g is ||sqrt(A + 1e-8) (F_j - F_i) + 1e-8||. On a graph with self-loops they get g ~ 1e-8 sqrt(W), and for
    p well below 2 most of the weight: the step is next to F_i at p = 1.25, and about half of it at 1.75.
    augmented: β is read off the diagonal of a block beside the diagonal, so that its term is 0. p is not
    limited.
    """
    p, mu = (torch.as_tensor(one, dtype=senders.dtype, device=senders.device) for one in (p, mu))
    apart = (attention + 1e-8).sqrt().unsqueeze(-1) * (senders.unsqueeze(2) - receivers.unsqueeze(3))
    weights = attention * torch.linalg.vector_norm(apart + 1e-8, dim=-1) ** (p - 2)
    alpha = 1 / (weights.sum(-1, keepdim=True) + 2 * mu / p)
    found = (alpha * weights) @ senders
    return found if augmented else found + alpha * (2 * mu / p) * receivers


def _numbers(p: float | Tensor, mu: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """p within [1, 3], where powers of small distances stay finite, and μ > 0.

    Gradients pass through the bounds: a learned p that was thrown over one of them finds back.
    """
    power, fidelity = (torch.as_tensor(one, dtype=like.dtype, device=like.device) for one in (p, mu))
    if not bool((fidelity.detach() > 0).all()):
        raise ValueError(f"mu must be positive, got {mu}: without it a row without edges has no value")
    within = power.detach().clamp(LEAST, MOST)
    return within + (power - power.detach()), fidelity


def _check_map(
    attention: Tensor | None, query: Tensor | None, key: Tensor | None, score: Score | None
) -> None:
    made = query is not None and key is not None
    part = (query is None) != (key is None)
    if part or made == (attention is not None):
        raise ValueError("p_laplacian_step: give either attention, or query and key")
    if attention is not None and score is not None:
        raise ValueError("p_laplacian_step: score makes the map of query and key; attention is one already")


def _shared(senders: Tensor, space: Tokens | None) -> Tensor:
    """The mean of the valid senders, (B, H, 1, W); what is not a number may stand where no edge leads to."""
    senders = senders.detach()
    use = senders.isfinite()
    if space is not None and space.valid is not None:
        use = use & space.valid.view(-1, 1, space.length, 1)
    return senders.masked_fill(~use, 0.0).sum(2, keepdim=True) / use.sum(2, keepdim=True).clamp_min(1)


def pooled_nodes(
    attention: Float[Tensor, "B H N M"],
    values: Float[Tensor, "B M C"],
    count: int = 16,
    *,
    rescale: bool = False,
) -> tuple[Float[Tensor, "B H N K"], Float[Tensor, "B K C"]]:
    """Map and value nodes averaged over tokens to `count` of them, as for the image nodes of cross-attention.

    Pooled rows sum to about count / M, so that μ weighs more and p = 2 is no mean any more; rescale makes
    them sum to what they did. ValueError: count below 1 or above M.
    """
    tokens = values.shape[1]
    if not 1 <= count <= tokens:
        raise ValueError(f"pooled_nodes: count must be from 1 to the {tokens} value nodes, got {count}")
    fewer = functional.adaptive_avg_pool1d(values.transpose(1, 2), count).transpose(1, 2)
    near = functional.adaptive_avg_pool1d(attention.flatten(0, 1), count).unflatten(0, attention.shape[:2])
    if rescale:
        total = near.sum(-1, keepdim=True)
        near = near * attention.sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return near, fewer


class PAdapter(nn.Module):
    """y = D(attn) + W_up(GELU(W_gate D(attn)) * F), F the query nodes after a p-Laplacian step.

        F = heads of W_down D(Z), Z = [projected queries; projected values], D the frozen output projection

    Args:
        width, heads: of the attention; reduction: r, features have width / r columns in all heads together.
        p: where the learned exponent starts; kept within [1, 3]. mu: μ0 of μ = μ0 (2 + tanh m), m from 0.
        augmented: the graph of queries and values, or the values' own. The released code takes the first in
            cached decoding and cross-attention, the second in self-attention without a cache (training,
            prompts).
        official: the released step, see `p_laplacian_official`; it needs `attention`.

    forward(out, queries, values, ...): D(attn) (B, N, C), D(queries) (B, N, C), D(values) (B, M, C), and the
    map or what makes it, as in `p_laplacian_step`. The paper's p is 1.25, 1.5 or 1.75 and its μ0 0.1 or 10,
    by task.
    Parameters: 3 C² / r and biases, p and m. ValueError: widths that do not divide.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        reduction: int = 8,
        p: float = 1.25,
        mu: float = 0.1,
        augmented: bool = True,
        official: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or reduction < 1:
            raise ValueError(
                f"PAdapter: heads and reduction must be at least 1, got heads {heads}, reduction {reduction}"
            )
        if not mu > 0:
            raise ValueError(f"PAdapter: mu must be positive, got {mu}: it is the share of the node itself")
        if width < 1 or width % (reduction * heads):
            raise ValueError(
                f"PAdapter: width must be a multiple of reduction × heads, got {width}, {reduction}, {heads}"
            )
        if not LEAST <= p <= MOST:
            raise ValueError(f"PAdapter: p must be from {LEAST:g} to {MOST:g}, got {p}")
        self.heads, self.augmented, self.official = heads, augmented, official
        self.mu = mu
        self.down, self.gate = (nn.Linear(width, width // reduction) for _ in range(2))
        self.up = nn.Linear(width // reduction, width)
        self.p = nn.Parameter(torch.tensor([p]))
        self.m = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        out: Float[Tensor, "B N C"],
        queries: Float[Tensor, "B N C"],
        values: Float[Tensor, "B M C"],
        attention: Float[Tensor, "B H N M"] | None = None,
        **given: Any,
    ) -> Float[Tensor, "B N C"]:
        """What stands for D(attn); residual and norm follow as they did."""
        senders = self._features(values)
        receivers = self._features(queries) if self.augmented else senders
        mu = self.mu * (2 + self.m.tanh())
        if self.official:
            if attention is None:
                raise ValueError("PAdapter: the released step holds the map: give attention")
            nodes = p_laplacian_official(
                receivers, senders, attention, p=self.p, mu=mu, augmented=self.augmented
            )
        else:
            nodes = p_laplacian_step(receivers, senders, attention, p=self.p, mu=mu, **given)
        gated: Tensor = functional.gelu(self.gate(out)) * nodes.transpose(1, 2).flatten(2).to(out.dtype)
        return out + self.up(gated)

    def _features(self, nodes: Tensor) -> Tensor:
        return self.down(nodes).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Bottleneck(nn.Module):
    """x + W_2 relu(W_1 x): the plain adapter, which the p-adapter puts on the residual input of the FFN.

    Parameters: 2 C² / r and biases. Source: Houlsby et al. 2019, arXiv 1902.00751.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """With its own residual."""
        return x + self.up(functional.relu(self.down(x)))
