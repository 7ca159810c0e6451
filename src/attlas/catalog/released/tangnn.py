"""TANGNN, as released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

NODES, FEATURES, CLASSES, PICKED = 60, 16, 4, 20
REPOSITORY, COMMIT = "ejwww/TANGNN", "91dccc7e6a2b0b9235064e5555e8eac11442e377"
FILE = "TANGNN/TANGNN"


def _drawn(seed: int) -> tuple[Any, Any]:
    import torch

    from attlas.graph import Graph, undirected

    torch.manual_seed(seed)
    graph, _ = undirected(Graph.from_edge_index(torch.randint(0, NODES, (2, 2 * NODES)), num_nodes=NODES))
    return torch.randn(NODES, FEATURES, dtype=torch.float64), graph


def numbering(seed: int) -> Mapping[str, float]:
    """How far predictions move where nodes get other numbers."""
    import torch

    from attlas.graph import Graph
    from attlas.models import TANGNN

    x, graph = _drawn(seed)
    new = torch.randperm(NODES)
    moved = Graph.from_edge_index(new[graph.edge_index], num_nodes=NODES)
    found = {}
    for name, official in (("release", True), ("here", False)):
        torch.manual_seed(seed)
        net = TANGNN(FEATURES, CLASSES, picked=PICKED, official=official).double().eval()
        with torch.no_grad():
            one, two = net(x, graph), net(x[new.argsort()], moved)[new]
        found[f"moved, {name}"] = ((one - two).norm() / one.norm()).item()
    return found


def vector(seed: int) -> Mapping[str, float]:
    """Length of the gradient of the auxiliary vectors here; whether the release's has the width of a layer."""
    import torch

    from attlas.models import TANGNN

    x, graph = _drawn(seed)
    torch.manual_seed(seed)
    net = TANGNN(FEATURES, CLASSES, picked=PICKED).double().eval()
    net(x, graph).square().mean().backward()
    grads = [layer.attention.wanted.grad.norm().item() for layer in net.layers]  # type: ignore[union-attr, operator]
    width = 32
    widths = (FEATURES, 2 * width)
    return {"layers": len(widths), "fitting": sum(one == width for one in widths), "gradient": min(grads)}


RELEASED = (
    Released(
        system="tangnn",
        point="Predictions depend on the numbers of the nodes, and attention is not used",
        repository=REPOSITORY,
        file=FILE,
        function="CustomGNN.forward",
        commit=COMMIT,
        paper="Every node attends to the m picked nodes; the result stands beside the neighbours' messages.",
        release=(
            "The features of the m picked nodes, mapped by an MLP, are repeated until they are as many as the "
            "nodes: node v gets row v mod m. The transformer runs on all n nodes, with n × n pairs, and what "
            "it gives is kept in a variable that nothing reads."
        ),
        consequence=(
            "A node's prediction changes with its number. The published figures of the main model do not "
            "test attention."
        ),
        switch="`TANGNN(official=True)`, `TiledLayer`.",
        figures=numbering,
        shown=(
            f"An untrained net on {NODES} nodes with m = {PICKED}: other numbers move the release's logits by "
            "{moved, release:.0%} of their length; those here by {moved, here:.0e}."
        ),
    ),
    Released(
        system="tangnn",
        point="The auxiliary vector is never used",
        repository=REPOSITORY,
        file=FILE,
        function="CustomGNN.cosine_similarity",
        commit=COMMIT,
        paper="Nodes are picked by their cosine with a learned auxiliary vector.",
        release=(
            "Where the vector is not as wide as the features, a vector of ones is taken. It has the width of "
            "one half of a layer, 32; the first layer's features are the data's, every other layer's are both "
            "halves, 64. Indices of the largest cosines carry no gradient in any case, and the method that "
            "would update the vector is not called."
        ),
        consequence="With the published settings nodes are picked by the sum of their positive features.",
        switch="`TANGNN(official=True)`; by default the scores of the picked nodes are added to their logits.",
        figures=vector,
        shown=(
            "{fitting:.0f} of {layers:.0f} layers have features as wide as the vector. Here its gradient has "
            "length {gradient:.1e} or more in every layer of an untrained net."
        ),
    ),
)
