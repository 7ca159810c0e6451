"""Attention along the edges of a graph beside PyG's layers, on a uniform and on a heavy-tailed graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import attlas as at
from attlas.graph import Graph
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "Attention along the edges of a graph, beside PyG's TransformerConv"
COLUMNS = [
    "graph", "nodes", "edges", "most", "heads", "pass", "ms", "pyg_ms", "speedup", "extra_mb", "pyg_mb",
    "less_memory", "repeats",
]  # fmt: skip
NOTES = [
    "A layer of 64 channels in, 64 out: queries, keys, values and a skip connection by the same linear "
    "layers; float32; medians of runs in turns in one process. PyG's layer is compared with ours before.",
    "uniform: both ends of every edge are drawn evenly; heavy-tailed: in proportion to rank^-0.8. most: "
    "edges that end at one node. Equal edges are messages of their own in both.",
    "extra_mb, pyg_mb: largest memory held above the inputs, results and gradients included. repeats: "
    "whether two runs of ours are bitwise equal.",
]
CHANNELS = 64


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per graph, number of heads and pass; one row where PyG is not installed."""
    try:
        version("torch_geometric")
    except PackageNotFoundError:
        yield {"graph": "nothing measured: PyG is not installed (pip install torch_geometric)"}
        return
    nodes, edges = (2000, 20000) if quick else (50_000, 800_000)
    for name, power in (("uniform", 0.0), ("heavy-tailed", 0.8)):
        graph = _drawn(nodes, edges, power)
        for heads in (1, 4, 8):
            yield from _layer(name, graph, heads)


def _drawn(nodes: int, edges: int, power: float) -> Graph:
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, nodes + 1, dtype=torch.float64) ** -power
    ends = [torch.multinomial(weights, edges, replacement=True, generator=generator) for _ in range(2)]
    names = torch.randperm(nodes, generator=generator)
    return Graph.from_edge_index(names[torch.stack(ends)], num_nodes=nodes)


def _layer(name: str, graph: Graph, heads: int) -> Iterator[dict[str, Any]]:
    from torch_geometric.nn import TransformerConv

    torch.manual_seed(0)
    conv = TransformerConv(CHANNELS, CHANNELS // heads, heads=heads)
    x = torch.randn(graph.nodes, CHANNELS).requires_grad_()
    edge_index = graph.edge_index

    def ours() -> Tensor:
        parts = (conv.lin_query, conv.lin_key, conv.lin_value)
        query, key, value = (part(x).unflatten(-1, (heads, -1)).transpose(0, 1)[None] for part in parts)
        out = torch.as_tensor(at.attend(query, key, value, pattern=graph, backend="edge"))
        return out[0].transpose(0, 1).flatten(1) + conv.lin_skip(x)

    def theirs() -> Tensor:
        return torch.as_tensor(conv(x, edge_index))

    with torch.no_grad():
        gate(f"attention along edges, {name}, {heads} heads", ours(), theirs())
    for backward in (False, True):
        runs = [_run(one, backward) for one in (ours, theirs)]
        own, peer = in_turns(runs, times=7, warm=1)
        extra, peer_extra = (extra_bytes(run) / 1e6 for run in runs)
        yield {
            "graph": name,
            "nodes": graph.nodes,
            "edges": graph.edges,
            "most": int(graph.in_degree.max()),
            "heads": heads,
            "pass": "forward + backward" if backward else "forward",
            "ms": round(1e3 * own, 1),
            "pyg_ms": round(1e3 * peer, 1),
            "speedup": round(peer / own, 2),
            "extra_mb": round(extra, 1),
            "pyg_mb": round(peer_extra, 1),
            "less_memory": round(peer_extra / extra, 1),
            "repeats": _repeats(runs[0], x),
        }


def _repeats(run: Callable[[], Tensor], x: Tensor) -> bool:
    """Whether two runs give bitwise the same result, and gradient of the nodes."""

    def found() -> tuple[Tensor, Tensor]:
        x.grad = None
        out = run()
        return out, torch.zeros(0) if x.grad is None else x.grad

    return all(torch.equal(one, other) for one, other in zip(found(), found(), strict=True))


def _run(layer: Callable[[], Tensor], backward: bool) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return layer()

    def both() -> Tensor:
        out = layer()
        out.backward(torch.ones_like(out))
        return out.detach()

    return both if backward else forward
