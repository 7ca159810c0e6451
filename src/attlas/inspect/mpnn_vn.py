"""A virtual node makes message passing compute attention: the constructions, as maps of a `VirtualNodeLayer`.

A: linear attention in two rounds. C: softmax attention in as many rounds as the largest graph has nodes. B
(not built): with O(n^d) numbers in the virtual node, O(1) rounds realise every DeepSets map X -> X A +
(1/n) 1 1^T X B + 1 c^T, which is universal for permutation-equivariant maps, softmax attention among them.
Source: Cai et al. 2023, arXiv 2301.11956. Legend: n nodes, G graphs, m features, D width, V value width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph import Graph
from attlas.layers.virtual_node import VirtualNodeLayer, star_of

__all__ = ["linear_by_virtual_node", "margin", "softmax_by_virtual_node"]

Features = Callable[[Tensor], Tensor]


def linear_by_virtual_node(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "n D"],
    value: Float[Tensor, "n V"],
    graph: Graph,
    features: Features,
) -> Float[Tensor, "n V"]:
    """Construction A: y_i = phi(q_i)^T S / phi(q_i)^T z, S = Σ_j phi(k_j) v_j^T, z = Σ_j phi(k_j) per graph.

    Round 1: every node sends (vec(phi(k_j) v_j^T), phi(k_j)), m V + m numbers, and the virtual node adds
    them up. Round 2: it sends the sums to all; a node multiplies and divides. Exact, where the paper's MLPs
    stand for features, product and division on a compact set. features: (n, D) -> (n, m), positive where
    the division is to be safe. Cost: O(n m V).
    """
    wide = key.shape[1], value.shape[1]

    def to_virtual(x: Tensor, _: Tensor) -> Tensor:
        _, keys, values = x.split((wide[0], *wide), 1)
        mapped = features(keys)
        return torch.cat([(mapped[:, :, None] * values[:, None]).flatten(1), mapped], 1)

    def update_node(x: Tensor, told: Tensor) -> Tensor:
        mapped = features(x[:, : wide[0]])
        count = mapped.shape[1]
        sums, total = told.split((count * wide[1], count), 1)
        above = torch.einsum("nm,nmv->nv", mapped, sums.unflatten(1, (count, wide[1])))
        return above / (mapped * total).sum(1, keepdim=True)

    first = VirtualNodeLayer(_second, _first, to_virtual=to_virtual)
    second = VirtualNodeLayer(_first, update_node)
    x = torch.cat([query, key, value], 1)
    x, state = first(x, query.new_zeros(graph.graphs, 1), graph)
    found: Tensor = second(x, state, graph)[0]
    return found


def _first(old: Tensor, new: Tensor) -> Tensor:
    return old


def _second(old: Tensor, new: Tensor) -> Tensor:
    return new


class _Node(NamedTuple):
    """Columns of a node's state: what it is, and what it has added up so far."""

    features: Tensor
    query: Tensor
    largest: Tensor
    total: Tensor
    numerator: Tensor


def softmax_by_virtual_node(
    x: Float[Tensor, "n C"],
    graph: Graph,
    query: Features,
    key: Features,
    value: Features,
    *,
    selectors: Float[Tensor, "n C"] | None = None,
    temperature: float = 0.0,
) -> Float[Tensor, "n V"]:
    """Construction C: softmax attention among each graph's nodes, one sender in a round.

    In round r the virtual node picks node r of its graph by a softmax over x_j . v_r / temperature and sends
    what it picked; a node adds exp(q_i . k / sqrt(D)) (v, 1) to what it has, under a running maximum (the
    paper's form has none). query, key, value: maps of the features, (., C) -> (., D), (., D), (., V).
    selectors v: for every node a direction in which it is ahead of all others of its graph by `margin`;
    x itself over its length unless given, which does for features of one length. temperature 0: exactly one
    node, the limit.

    Cost: O(n^2 D) for the pairs in O(n D) memory, and n selections, O(n^2 C). ValueError: a temperature
    below 0, selectors that do not separate.
    """
    if temperature < 0:
        raise ValueError(f"softmax_by_virtual_node: temperature must be 0 or above, got {temperature}")
    if selectors is None:
        selectors = x / x.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    if not margin(x, selectors, graph) > 0:
        raise ValueError(
            "softmax_by_virtual_node: selectors must put every node ahead of all others of its graph: "
            "x_i . v_i > x_j . v_i; equal features cannot be told apart"
        )
    if not len(x):
        return value(x)
    width, out = query(x[:1]).shape[1], value(x[:1]).shape[1]
    parts = (x.shape[1], width, 1, 1, out)
    state = torch.cat([x, query(x), x.new_full((len(x), 1), -math.inf), x.new_zeros(len(x), 1 + out)], 1)
    sizes = star_of(graph).in_degree
    first = sizes.cumsum(0) - sizes
    told = x.new_zeros(graph.graphs, x.shape[1] + 1)
    # A message is heard one round after it is sent: one round more than there are nodes.
    for number in range(int(sizes.max()) + 1):
        there = number < sizes
        aim = selectors[torch.where(there, first + number, 0)]
        layer = VirtualNodeLayer(
            lambda _, picked, there=there: torch.cat([picked, there[:, None].to(picked.dtype)], 1),
            lambda nodes, heard: _added(nodes, heard, parts, key, value),
            to_virtual=lambda nodes, _: nodes[:, : parts[0]],
            gather=_Selection(aim, temperature),
        )
        state, told = layer(state, told, graph)
    node = _Node(*state.split(parts, 1))
    return node.numerator / node.total


def _added(nodes: Tensor, heard: Tensor, parts: tuple[int, ...], key: Features, value: Features) -> Tensor:
    """The node's sums with one sender more; nothing where nothing was sent."""
    node = _Node(*nodes.split(parts, 1))
    sent, there = heard[:, :-1], heard[:, -1:] > 0
    logit = (node.query * key(sent)).sum(1, keepdim=True) / math.sqrt(parts[1])
    logit = logit.masked_fill(~there, -math.inf)
    largest = torch.maximum(node.largest, logit)
    before, now = (
        torch.where(one.isfinite(), (one - largest).exp(), torch.zeros_like(one))
        for one in (node.largest, logit)
    )
    carried = torch.where(there, value(sent), torch.zeros_like(node.numerator))
    total = before * node.total + now
    numerator = before * node.numerator + now * carried
    return torch.cat([node.features, node.query, largest, total, numerator], 1)


class _Selection(torch.nn.Module):
    """Of each graph the features of one node: softmax over x_j . aim / temperature, at 0 the largest."""

    def __init__(self, aim: Tensor, temperature: float) -> None:
        super().__init__()
        self.aim, self.temperature = aim, temperature

    def forward(self, x: Tensor, state: Tensor, star: Graph) -> Tensor:
        logits = (x * self.aim[star.receiver]).sum(1)
        top = logits.new_full((star.receivers,), -math.inf)
        top = top.scatter_reduce(0, star.receiver, logits, "amax")[star.receiver]
        if self.temperature > 0:
            power = ((logits - top) / self.temperature).exp()
        else:
            power = (logits == top).to(x.dtype)
        total = power.new_zeros(star.receivers).index_add(0, star.receiver, power)
        weights = power / total[star.receiver]
        return x.new_zeros(star.receivers, x.shape[1]).index_add(0, star.receiver, weights[:, None] * x)


def margin(x: Float[Tensor, "n C"], selectors: Float[Tensor, "n C"], graph: Graph) -> float:
    """The least lead x_i . v_i - x_j . v_i of a node over another of its graph (delta; inf for lone nodes).

    Cost: O(n^2 C) graph by graph.
    """
    least = math.inf
    sizes = star_of(graph).in_degree.tolist()
    for own, aim in zip(x.split(sizes), selectors.split(sizes), strict=True):
        lead = aim @ own.T
        lead = lead.diagonal()[:, None] - lead
        lead.fill_diagonal_(math.inf)
        least = min(least, float(lead.min())) if lead.numel() else least
    return least
