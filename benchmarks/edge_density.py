"""Attention over a graph as a list of edges and as blocks of pairs: at which density the second is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import attlas as at
from attlas.attend import block
from attlas.graph import Graph
from benchmarks._harness import gate, in_turns

TITLE = "Attention over a graph: a list of edges, or blocks of pairs"
COLUMNS = [
    "graph", "nodes", "density", "edges", "pass", "edge_ms", "block_ms", "sdpa_ms", "block_over_edge",
    "sdpa_over_edge",
]  # fmt: skip
NOTES = [
    "Softmax of dot products, 4 heads of 16 channels, float32; medians of runs in turns in one process. The "
    "sorted edges and the tiles of the graph are found before.",
    "uniform: edges drawn evenly among all pairs; banded: every node hears from its nearest. density: edges "
    "over all pairs.",
    "block_over_edge, sdpa_over_edge: above 1 the list of edges is faster. Estimates of a uniform graph meet "
    "at a density of 1 / attlas.attend.edge.OVERHEAD: set it to 1 over the density at which block_over_edge "
    "crosses 1. Below attlas.attend.block.FILLED, where finding tiles does not pay, block takes no graph "
    "unless it is asked here.",
]
BACKENDS = ("edge", "block", "sdpa")
HEADS, WIDTH = 4, 16
MOST = 4_000_000
"""Edges of the largest graph that is timed."""
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per graph, number of nodes, density and pass."""
    least, block.FILLED = block.FILLED, 0.0  # tiles also where they are refused otherwise
    try:
        for nodes in (256,) if quick else (1024, 4096):
            for name, draw in (("uniform", _uniform), ("banded", _banded)):
                for density in (0.05, 1.0) if quick else DENSITIES:
                    if density * nodes * nodes <= MOST:
                        yield from _compared(name, draw(nodes, density), density)
    finally:
        block.FILLED = least


def _uniform(nodes: int, density: float) -> Graph:
    chosen = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(0)) < density
    receiver, sender = chosen.nonzero(as_tuple=True)
    return Graph.from_edge_index(torch.stack((sender, receiver)), num_nodes=nodes)


def _banded(nodes: int, density: float) -> Graph:
    at_node = torch.arange(nodes)
    near = (at_node[:, None] - at_node).abs() <= max(0, round(density * nodes - 1) // 2)
    receiver, sender = (near if density < 1 else torch.ones_like(near)).nonzero(as_tuple=True)
    return Graph.from_edge_index(torch.stack((sender, receiver)), num_nodes=nodes)


def _compared(name: str, graph: Graph, density: float) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    # In memory a node after the other, as the layers of graphs have them.
    inputs = [torch.randn(1, graph.nodes, HEADS, WIDTH, generator=generator) for _ in range(3)]
    query, key, value = (part.transpose(1, 2).requires_grad_() for part in inputs)

    def run(backend: str, backward: bool) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with torch.no_grad():
                return torch.as_tensor(at.attend(query, key, value, pattern=graph, backend=backend))

        def both() -> Tensor:
            out = torch.as_tensor(at.attend(query, key, value, pattern=graph, backend=backend))
            torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
            return out.detach()

        return both if backward else forward

    wanted = run("sdpa", False)()
    for one in BACKENDS:
        gate(f"{one} over a {name} graph of density {density:g}", run(one, False)(), wanted)
    for backward in (False, True):
        times = dict(zip(BACKENDS, in_turns([run(one, backward) for one in BACKENDS], times=7), strict=True))
        row = {
            "graph": name,
            "nodes": graph.nodes,
            "density": round(density_of(graph), 4),
            "edges": graph.edges,
            "pass": "forward + backward" if backward else "forward",
        }
        row |= {f"{one}_ms": round(1e3 * times[one], 2) for one in BACKENDS}
        yield row | {f"{one}_over_edge": round(times[one] / times["edge"], 2) for one in BACKENDS[1:]}


def density_of(graph: Graph) -> float:
    """Edges over all pairs."""
    return graph.edges / (graph.receivers * graph.senders)
