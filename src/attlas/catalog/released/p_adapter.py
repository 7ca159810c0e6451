"""The p-Laplacian step, as released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

NODES, HEADS, WIDTH, P, MU = 64, 4, 4, 1.25, 0.2
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
    for p in (P, 2.0):
        paper = p_laplacian_step(nodes, nodes, attention, p=p, mu=MU)
        released = p_laplacian_official(nodes, nodes, attention, p=p, mu=MU, augmented=False)
        found[f"moved, here, p {100 * p:.0f}"] = ((paper - nodes).norm() / nodes.norm()).item()
        found[f"moved, release, p {100 * p:.0f}"] = ((released - nodes).norm() / nodes.norm()).item()
    return found


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
            "In decoders and cross-attention a query's own features have no part in the step, and its "
            "weights sum to less than 1: μ only scales the result down."
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
        point="Self-loops make the step the identity where p is below 2",
        repository=REPOSITORY,
        file=FILE,
        function=FUNCTION,
        commit=COMMIT,
        paper="Edges are weighed by ||sqrt(A_ij) (F_i - F_j)||^(p - 2); p below 2 favours similar nodes.",
        release=(
            "On the values' own graph, which encoders take, a node is its own neighbour. Its distance is 0, "
            "kept from 0 by 1e-8 a channel, and the power p - 2 < 0 of that outweighs every other edge."
        ),
        consequence=(
            "For the published starting values of p (1.25 to 1.75) the step returns the node's own features: "
            "the adapter of an encoder layer passes next to no messages."
        ),
        switch="`p_laplacian_official(..., augmented=False)`, `PAdapter(augmented=False, official=True)`.",
        figures=identity,
        compared=COMPARED,
        shown=(
            f"{NODES} random nodes and a dense map: at p = {P} the released step moves the nodes by "
            f"{{moved, release, p {100 * P:.0f}:.2%}} of their length, and by "
            f"{{moved, here, p {100 * P:.0f}:.0%}} where edges between equal features have weight 0; at "
            "p = 2 both move them by {moved, here, p 200:.0%}."
        ),
    ),
)
