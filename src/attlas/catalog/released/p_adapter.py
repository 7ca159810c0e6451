"""The p-Laplacian step, as released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

NODES, HEADS, WIDTH, P, MU = 64, 4, 4, 1.25, 0.2
PUBLISHED, PROMPT = (1.25, 1.5, 1.75), 4
REPOSITORY, COMMIT = "wuhy68/p-Adapter", "e66ab8b7aa929bc4b3d3600d36faa2f989243530"
FILE, FUNCTION = "eff_blip/eff_modeling_blip.py", "BertSelfOutput.forward"
COMPARED = (
    "The released module, with its weights in float64, beside `PAdapter(official=True)`: equal to 3e-16 on "
    "this graph."
)


def _drawn(seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    nodes = torch.randn(2, 1, HEADS, NODES, WIDTH, dtype=torch.float64)
    return nodes[0], nodes[1], torch.randn(1, HEADS, NODES, NODES, dtype=torch.float64).softmax(-1)


def without_beta(seed: int) -> Mapping[str, float]:
    """What a row's weights sum to with and without the node itself, and what that changes."""
    import torch

    from attlas.layers import p_laplacian_official, p_laplacian_step

    receivers, senders, attention = _drawn(seed)
    found = {}
    for size, mu in (("small", MU), ("large", 100 * MU)):
        paper = p_laplacian_step(receivers, senders, attention, p=P, mu=mu)
        released = p_laplacian_official(receivers, senders, attention, p=P, mu=mu, augmented=True)
        total = (attention ** (P / 2) * torch.cdist(receivers, senders) ** (P - 2)).sum(-1)
        found[f"mass, {size} mu"] = (total / (total + 2 * mu / P)).mean().item()
        found[f"difference, {size} mu"] = ((paper - released).norm() / paper.norm()).item()
    return found


def identity(seed: int) -> Mapping[str, float]:
    """How far one step moves the nodes of a graph with self-loops."""
    from attlas.layers import p_laplacian_official, p_laplacian_step

    _, nodes, attention = _drawn(seed)
    found = {}
    for p in (*PUBLISHED, 2.0):
        paper = p_laplacian_step(nodes, nodes, attention, p=p, mu=MU)
        released = p_laplacian_official(nodes, nodes, attention, p=p, mu=MU, augmented=False)
        found[f"moved, here, p {100 * p:.0f}"] = ((paper - nodes).norm() / nodes.norm()).item()
        found[f"moved, release, p {100 * p:.0f}"] = ((released - nodes).norm() / nodes.norm()).item()
    return found


def graphs(seed: int) -> Mapping[str, float]:
    """The step of the same tokens on the graph of training and on that of cached decoding."""
    import torch

    from attlas.layers import p_laplacian_official

    queries, values, attention = _drawn(seed)
    causal = attention * torch.ones(NODES, NODES, dtype=torch.float64).tril()
    causal = causal / causal.sum(-1, keepdim=True)
    training = p_laplacian_official(values, values, causal, p=P, mu=MU, augmented=False)
    # Row t of a causal map is that of the token that is decoded with t others in the cache.
    decoding = p_laplacian_official(queries, values, causal, p=P, mu=MU, augmented=True)
    one, two, own = (found[:, :, PROMPT:] for found in (training, decoding, values))
    return {
        "difference": ((one - two).norm() / one.norm()).item(),
        "cosine with the own value, training": torch.cosine_similarity(one, own, -1).mean().item(),
        "cosine with the own value, decoding": torch.cosine_similarity(two, own, -1).mean().item(),
        "length, training": (one.norm() / own.norm()).item(),
        "length, decoding": (two.norm() / own.norm()).item(),
    }


RELEASED = (
    Released(
        system="p_adapter",
        point="The node's own term is zero on the augmented graph",
        repository=REPOSITORY,
        file=FILE,
        function=FUNCTION,
        commit=COMMIT,
        paper="A step gives a node α_i Σ_j A'_ij F_j + β_i F_i, with β_i = α_i 2 μ / p.",
        release=(
            "On the graph of queries and values β is a diagonal matrix of which the block "
            "`beta[:q, q:]` is read, which lies beside its diagonal and is zero, and it is multiplied with "
            "the values' features."
        ),
        consequence=(
            "In cached decoding and cross-attention a query's own features have no part in the step, and "
            "its weights sum to less than 1: μ only scales the result down."
        ),
        switch="`p_laplacian_official(..., augmented=True)`, `PAdapter(official=True)`.",
        figures=without_beta,
        compared=COMPARED,
        shown=(
            f"{NODES} random queries and values, p = {P}: without β the weights of a row sum to "
            f"{{mass, small mu:.3f}} instead of 1 and the result is off by {{difference, small mu:.1%}} at "
            f"mu {MU:g}; they sum to {{mass, large mu:.3f}}, and it is off by "
            f"{{difference, large mu:.0%}}, at mu {100 * MU:g}."
        ),
    ),
    Released(
        system="p_adapter",
        point="Self-loops dominate where p is well below 2",
        repository=REPOSITORY,
        file=FILE,
        function=FUNCTION,
        commit=COMMIT,
        paper="Edges are weighed by ||sqrt(A_ij) (F_i - F_j)||^(p - 2); p below 2 favours similar nodes.",
        release=(
            "On the values' own graph, which self-attention without a cache takes (training, prompts), a "
            "node is its own neighbour. Its distance is 0, kept from 0 by 1e-8 a channel, and the power "
            "p - 2 < 0 of that outweighs other edges, the more the smaller p is."
        ),
        consequence=(
            "Of the published starting values of p the step is next to the identity at 1.25 and nearly so at "
            "1.5, so that hardly a message is passed; at 1.75 a node keeps about half."
        ),
        switch="`p_laplacian_official(..., augmented=False)`, `PAdapter(augmented=False, official=True)`.",
        figures=identity,
        compared=COMPARED,
        shown=(
            f"{NODES} random nodes and a dense map: at p = {P} the released step moves the nodes by "
            "{moved, release, p 125:.2%} of their length, at 1.5 by {moved, release, p 150:.1%} and at 1.75 "
            "by {moved, release, p 175:.0%}; where edges between equal features have weight 0, by "
            "{moved, here, p 125:.0%}, {moved, here, p 150:.0%} and {moved, here, p 175:.0%}. At p = 2 both "
            "move them by {moved, here, p 200:.0%}."
        ),
    ),
    Released(
        system="p_adapter",
        point="Training and cached decoding run different graphs",
        repository=REPOSITORY,
        file=FILE,
        function="BertSelfAttention.forward",
        commit=COMMIT,
        paper="An attention module has one graph of queries and values, in training and in use.",
        release=(
            "Self-attention takes the graph of queries and values where `past_key_value` is given, and the "
            "values' own where it is not. All three tasks build `BertLMHeadModel`, a decoder, which is "
            "trained without a cache and generates captions and answers with one."
        ),
        consequence=(
            "Self-attention is trained on the values' own graph, reads its prompt on it, and decodes every "
            "later token on the other one, with the same adapter. Cross-attention has one graph throughout."
        ),
        switch=(
            "`PAdapter(augmented=False, official=True)` and `PAdapter(augmented=True, official=True)`; by "
            "default it is the graph of queries and values throughout."
        ),
        figures=graphs,
        compared=(
            "The choice of the graph was read. As committed `BertSelfAttention.forward` uses "
            "`mixed_query_layer` and `key_layer` and assigns neither, so that it cannot run. The released "
            "step of either graph is that of `PAdapter(official=True)` to 3e-16."
        ),
        shown=(
            f"{NODES} random tokens, a causal map, p = {P}: behind a prompt of {PROMPT} tokens the results "
            "of the step on both graphs differ by {difference:.0%} of those of training. Their cosine with "
            "the token's own value is {cosine with the own value, training:.3f} in training and "
            "{cosine with the own value, decoding:.3f} in cached decoding, their length "
            "{length, training:.2f} and {length, decoding:.2f} of the value's."
        ),
    ),
)
