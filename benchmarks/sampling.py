"""Sampling neighbours: `NeighbourLoader` and `sample_hops`, beside what PyG can sample here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from attlas.graph import Graph, NeighbourLoader, sample_hops, sample_neighbours
from benchmarks._harness import in_turns

TITLE = "Sampling neighbours of a graph, beside PyG"
COLUMNS = ["graph", "nodes", "edges", "what", "threads", "ms", "edges_per_s", "peer", "peer_ms", "speedup"]
NOTES = [
    "uniform: both ends of every edge are drawn evenly; heavy-tailed: in proportion to rank^-0.5. Medians "
    "of runs in turns in one process. ms: of a batch of 1,024 nodes, or of all nodes for samples of hops.",
    "Sampled at random with fan-outs, PyG's NeighborLoader (no workers) needs pyg-lib or torch-sparse; "
    "where neither is installed its row says so.",
    "k_hop_subgraph of torch_geometric.utils takes whole neighbourhoods, with a mask over all edges for "
    "every batch; ours takes them by fan-outs of -1. The two do different work: both find the same nodes "
    "(compared before), but ours returns the edges that were followed, those into the batch and its first "
    "hop, PyG's returns all edges among the nodes; each row counts both. It stands in for the loader, and is "
    "no substitute for it.",
    "Samples of hops are LargeGT's: 9 nodes per node of its first and second hop, drawn once for all epochs.",
]
BATCH, FANOUTS, BATCHES = 1024, (15, 10), 8


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of every graph: batches with fan-outs, whole neighbourhoods, samples of hops."""
    sizes = [(5_000, 50_000)] if quick else [(50_000, 800_000), (1_000_000, 10_000_000)]
    for nodes, edges in sizes:
        for name, power in (("uniform", 1.0), ("heavy-tailed", 2.0)):
            yield from _graph(name, _drawn(nodes, edges, power))


def _drawn(nodes: int, edges: int, power: float) -> Graph:
    """Ends at rank u^power: density of rank^(1 / power - 1)."""
    generator = torch.Generator().manual_seed(0)
    rank = (torch.rand(2, edges, generator=generator) ** power * nodes).long().clamp(max=nodes - 1)
    return Graph.from_edge_index(torch.randperm(nodes, generator=generator)[rank], num_nodes=nodes)


def _graph(name: str, graph: Graph) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randperm(graph.nodes, generator=generator)[: BATCHES * BATCH]
    seeds = seeds[: len(seeds) // BATCH * BATCH]
    many = len(seeds) // BATCH
    fixed = {"graph": name, "nodes": graph.nodes, "edges": graph.edges}
    loader = NeighbourLoader(graph, seeds, FANOUTS, batch=BATCH)
    drawn = sum(one.graph.edges for one in loader) / many
    peer = _pyg_loader(graph, seeds)
    runs: list[Callable[[], Any]] = [partial(_through, loader)] + ([] if peer is None else [peer])
    ms = [1e3 * taken / many for taken in in_turns(runs, times=5, warm=1)]
    told = "PyG NeighborLoader" + ("" if peer else ": needs pyg-lib or torch-sparse, not run")
    yield fixed | _row(f"fan-outs {FANOUTS}", ms, drawn, told)
    one = seeds[:BATCH]
    whole = partial(sample_neighbours, graph, one, [-1, -1])
    found = whole()
    other = _k_hop(graph, one)
    runs = [whole] + ([] if other is None else [other])
    told = "PyG k_hop_subgraph: PyG is not installed, not run"
    if other is not None:
        nodes, ends = other()[:2]
        if not torch.equal(nodes, found.nodes.sort().values):
            raise RuntimeError("k_hop_subgraph gives other nodes than fan-outs of -1")
        told = f"PyG k_hop_subgraph: all {ends.shape[1]} edges among these nodes; ours {found.graph.edges}"
    ms = [1e3 * taken for taken in in_turns(runs, times=3, warm=1)]
    yield fixed | _row("whole neighbourhoods of 2 hops", ms, found.graph.edges, told)
    sample_hops(graph, 9, nodes=seeds[:1])  # neighbours are found, and loops compiled, once
    (taken,) = in_turns([partial(sample_hops, graph, 9)], times=1, warm=0)
    yield fixed | _row("samples of hops, 9 per node", [1e3 * taken], 9 * graph.nodes, "")


def _row(what: str, ms: list[float], edges: float, peer: str) -> dict[str, Any]:
    found = {"what": what, "threads": torch.get_num_threads(), "ms": round(ms[0], 2)}
    found |= {"edges_per_s": int(1e3 * edges / ms[0]), "peer": peer}
    if len(ms) > 1:
        found |= {"peer_ms": round(ms[1], 2), "speedup": round(ms[1] / ms[0], 2)}
    return found


def _through(loader: Any) -> None:
    for _ in loader:
        pass


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _pyg_loader(graph: Graph, seeds: Tensor) -> Callable[[], Any] | None:
    if not _installed("torch_geometric") or not any(map(_installed, ("pyg-lib", "torch-sparse"))):
        return None
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader

    data = Data(edge_index=graph.edge_index, num_nodes=graph.nodes)
    return partial(
        _through, NeighborLoader(data, num_neighbors=list(FANOUTS), input_nodes=seeds, batch_size=BATCH)
    )


def _k_hop(graph: Graph, seeds: Tensor) -> Callable[[], Any] | None:
    if not _installed("torch_geometric"):
        return None
    from torch_geometric.utils import k_hop_subgraph

    return partial(k_hop_subgraph, seeds, 2, graph.edge_index, num_nodes=graph.nodes)
