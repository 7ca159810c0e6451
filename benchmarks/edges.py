"""Attention along the edges of a graph beside PyG's layers, on uniform, heavy-tailed and real graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.layers import GIN, GPS, AdditiveGraphAttention, DotGraphAttention
from attlas.layers.by_graph import GraphAttention
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "Graph layers with attention, beside PyG's TransformerConv, GATConv and GPSConv"
COLUMNS = [
    "layer", "graph", "nodes", "edges", "most", "heads", "pass", "ms", "pyg_ms", "speedup", "extra_mb",
    "pyg_mb", "less_memory", "repeats",
]  # fmt: skip
NOTES = [
    "Layers of 64 channels in, 64 out, with PyG's weights (`from_pyg`): linear layers, skip connections and "
    "gradients of all parameters included on both sides; ours takes queries, keys, values and the skip term "
    "by one product. float32; medians of runs in turns in one process. Results are compared before.",
    "GATConv: the same additive score, without added loops. GPSConv: a GIN and softmax attention among the "
    "nodes of each graph, batch norms in training, on 31 graphs of 60 nodes and one of 1500: PyG pads each "
    "to 1500, ours pads nothing.",
    "uniform: both ends of every edge are drawn evenly; heavy-tailed: in proportion to rank^-0.8; debian: "
    "packages and what they name in a relation, from apt's own lists. most: edges that end at one node. "
    "Equal edges are messages of their own in both.",
    "extra_mb, pyg_mb: largest memory held above the inputs, results and gradients included. repeats: "
    "whether two runs of ours are bitwise equal.",
    "Left out: TransformerConv(edge_dim=...), which adds edge features to keys and values; ours takes them "
    "as a bias of the logits, another formula. DGL: its newest wheel for pip (2.1.0) has native libraries "
    "for torch 2.0 to 2.2 only and cannot be imported beside torch 2.13.",
]
CHANNELS = 64


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per layer, graph, number of heads and pass; one row where PyG is not installed."""
    if importlib.util.find_spec("torch_geometric") is None:
        yield {"layer": "nothing measured: PyG is not installed (pip install torch_geometric)"}
        return
    nodes, edges = (2000, 20000) if quick else (50_000, 800_000)
    for name, power in (("uniform", 0.0), ("heavy-tailed", 0.8)):
        graph = _drawn(nodes, edges, power)
        for heads in (1, 4, 8):
            yield from _along_edges(name, graph, heads)
    if not quick:
        yield from _debian()
    yield from _gps([20] * 7 + [200] if quick else [60] * 31 + [1500])


def _drawn(nodes: int, edges: int, power: float) -> Graph:
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, nodes + 1, dtype=torch.float64) ** -power
    ends = [torch.multinomial(weights, edges, replacement=True, generator=generator) for _ in range(2)]
    names = torch.randperm(nodes, generator=generator)
    return Graph.from_edge_index(names[torch.stack(ends)], num_nodes=nodes)


def _debian() -> Iterator[dict[str, Any]]:
    from attlas.tasks.debian_packages import debian_packages

    try:
        graph = debian_packages(width=1).graph.replace(edge_attr=None, edge_type=None)
    except UsageError as missing:
        yield {"layer": "nothing measured", "graph": f"debian: {missing}"}
        return
    yield from _along_edges("debian", graph, 8)


def _along_edges(name: str, graph: Graph, heads: int) -> Iterator[dict[str, Any]]:
    from torch_geometric.nn import GATConv, TransformerConv

    torch.manual_seed(0)
    width = CHANNELS // heads
    dots = TransformerConv(CHANNELS, width, heads=heads)
    yield from _layer(dots, DotGraphAttention.from_pyg(dots), name, graph, heads)
    sums = GATConv(CHANNELS, width, heads=heads, add_self_loops=False)
    yield from _layer(sums, AdditiveGraphAttention.from_pyg(sums), name, graph, heads)


def _layer(
    theirs: nn.Module, ours: nn.Module, name: str, graph: Graph, heads: int
) -> Iterator[dict[str, Any]]:
    """theirs takes (x, edge_index), and the number of each node's graph where there is a batch of them."""
    x = torch.randn(graph.nodes, CHANNELS).requires_grad_()
    edge_index = graph.edge_index
    more = () if graph.pointer is None else (graph.graph_of,)
    layers = [lambda: ours(x, graph), lambda: theirs(x, edge_index, *more)]
    peer = type(theirs).__name__
    with torch.no_grad():
        gate(f"{peer}, {name}, {heads} heads", *(torch.as_tensor(layer()) for layer in layers))
    for backward in (False, True):
        runs = [_run(one, backward) for one in layers]
        own, their = in_turns(runs, times=7, warm=1)
        extra, peer_extra = (extra_bytes(run) / 1e6 for run in runs)
        yield {
            "layer": peer,
            "graph": name,
            "nodes": graph.nodes,
            "edges": graph.edges,
            "most": int(graph.in_degree.max()),
            "heads": heads,
            "pass": "forward + backward" if backward else "forward",
            "ms": round(1e3 * own, 1),
            "pyg_ms": round(1e3 * their, 1),
            "speedup": round(their / own, 2),
            "extra_mb": round(extra, 1),
            "pyg_mb": round(peer_extra, 1),
            "less_memory": round(peer_extra / extra, 1),
            "repeats": _repeats(runs[0], x),
        }


def _gps(sizes: list[int], heads: int = 4) -> Iterator[dict[str, Any]]:
    """A batch of graphs of which one is large: each node has 8 senders of its graph."""
    from torch_geometric.nn import GINConv, GPSConv

    torch.manual_seed(0)
    starts = torch.tensor([0, *sizes]).cumsum(0)
    ends = [start + torch.randint(0, size, (2, 8 * size)) for start, size in zip(starts, sizes, strict=False)]
    numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    graph = Graph.from_edge_index(torch.cat(ends, 1), num_nodes=sum(sizes), batch=numbers)
    mlp = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, CHANNELS))
    theirs = GPSConv(CHANNELS, GINConv(mlp), heads=heads)
    everywhere = GraphAttention(CHANNELS, heads)
    maps = [everywhere.query, everywhere.key, everywhere.value, everywhere.out]
    with torch.no_grad():
        weights = [*theirs.attn.in_proj_weight.chunk(3), theirs.attn.out_proj.weight]
        biases = [*theirs.attn.in_proj_bias.chunk(3), theirs.attn.out_proj.bias]
        for part, weight, bias in zip(maps, weights, biases, strict=True):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    ours = GPS(CHANNELS, GIN(CHANNELS, mlp=mlp, learn_eps=False), everywhere, norm=nn.BatchNorm1d)
    ours.feed = theirs.mlp
    yield from _layer(
        theirs, ours, f"1 graph of {max(sizes)} and {len(sizes) - 1} of {sizes[0]}", graph, heads
    )


def _repeats(run: Callable[[], Tensor], x: Tensor) -> bool:
    """Whether two runs give bitwise the same result, and gradient of the nodes."""

    def found() -> tuple[Tensor, Tensor]:
        x.grad = None
        out = run()
        return out, torch.zeros(0) if x.grad is None else x.grad

    return all(torch.equal(one, other) for one, other in zip(found(), found(), strict=True))


def _run(layer: Callable[[], Any], backward: bool) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(layer())

    def both() -> Tensor:
        out = torch.as_tensor(layer())
        out.backward(torch.ones_like(out))
        return out.detach()

    return both if backward else forward
