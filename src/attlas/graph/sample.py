"""Samples of a graph: what surrounds each node, drawn once, and small graphs around batches of nodes.

All draws are hashes of (seed, node, draw): the same for any number of threads and any order of the nodes.
Legend: n nodes, N nodes asked for, K samples of each, E edges.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from attlas._common.loops import equal_ranges, over_ranges
from attlas.graph.graph import Graph
from attlas.graph.hops import adjacency

__all__ = ["NeighbourLoader", "Sampled", "sample_hops", "sample_neighbours"]

WAYS = 1 << 14
"""Ways of two edges from a node above which the second hop is drawn and not listed."""
AHEAD = 2  # batches per thread that are drawn before they are asked for


def sample_hops(
    graph: Graph, count: int, *, nodes: Tensor | None = None, hops: int = 2, seed: int = 0
) -> Int64[Tensor, "N K"]:
    """`count` nodes drawn for each node out of the list N1 ++ N2 ++ ...: what lies within `hops` edges.

    N1: the nodes joined with it by an edge of either direction; N_h: the nonzeros of its row of A^h, so the
    node itself, and nodes of N1, may stand in N2 again. Draws are without replacement; a list that is shorter
    is repeated until it fills the row; a node without neighbours gets nodes of its graph drawn evenly.
    nodes: those to sample for, all by default. Row i of the result belongs to nodes[i], whatever the others.

    Rows of A^2 are made one at a time, and never where a node has more than 16,384 ways of two edges: ends of
    ways are drawn then and thinned by the number of ways that lead there, which gives the same chances.
    With 3 hops or more every node's list is made, in 4 hops n bytes a thread. ValueError: count or hops below
    1, nodes that are not there. Source: LargeGT, Dwivedi et al. 2023, arXiv
    2312.11109. Cost: O(ways of `hops` edges) a node at most, parallel over nodes; 8 bytes a sample.
    """
    from attlas.graph import sample_loops as loops

    if count < 1 or hops < 1:
        raise ValueError(f"sample_hops: count and hops must be 1 or more, got {count} and {hops}")
    wanted = torch.arange(graph.nodes) if nodes is None else _nodes("sample_hops", graph, nodes)
    pointer, other = (part.numpy() for part in adjacency(graph))
    graphs = np.array([0, graph.nodes]) if graph.pointer is None else graph.pointer.cpu().numpy()
    asked, table = wanted.numpy(), np.empty((len(wanted), count), dtype=np.int64)
    parts = (pointer, other, graphs, asked, hops, _seed(seed), WAYS, table)
    over_ranges(lambda first, last: loops.draw_hops(*parts, first, last), equal_ranges(len(asked), least=256))
    return torch.from_numpy(table).to(graph.device)


def _seed(seed: int) -> np.uint64:
    return np.uint64(seed & (2**64 - 1))


def _nodes(what: str, graph: Graph, nodes: Tensor) -> Tensor:
    if nodes.dim() != 1 or nodes.dtype != torch.int64:
        raise ValueError(f"{what}: nodes must be int64 (N,), got {nodes.dtype} {tuple(nodes.shape)}")
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= graph.nodes):
        raise ValueError(
            f"{what}: nodes must be in 0 .. {graph.nodes - 1}, got {int(nodes.min())} .. {int(nodes.max())}"
        )
    return nodes.cpu().contiguous()


@dataclass(frozen=True, eq=False)
class Sampled:
    """A small graph around some nodes.

    graph: the drawn edges between its nodes, numbered anew, with their features and types. nodes: the old
    number of each, the `seeds` asked for first, then hop by hop in the order in which they were found. edges:
    the old edge of each. hops: nodes known after each hop, the seeds before the first.
    """

    graph: Graph
    nodes: Tensor
    edges: Tensor
    seeds: int
    hops: tuple[int, ...]


class _Workspace:
    """Memory of one thread: where every node of the graph stands in the sample."""

    def __init__(self, graph: Graph) -> None:
        self.place = np.full(graph.nodes, -1, dtype=np.int32)


def sample_neighbours(
    graph: Graph, nodes: Tensor, fanouts: Sequence[int], *, replace: bool = False, seed: int = 0
) -> Sampled:
    """The nodes, and hop after hop senders to those that were found last: `fanouts[h]` edges into each.

    -1: all edges; fewer are taken where a node has fewer, without `replace`. Edges lead from the drawn node
    to the one that it was drawn for, as in PyG's NeighborLoader (directional). A node is drawn for once, in
    the hop that finds it. Equal edges are drawn like any others.
    ValueError: no fanouts, one below -1, nodes that are not there or stand twice. Source: GraphSAGE, Hamilton
    et al. 2017, arXiv 1706.02216. Cost: O(drawn edges) and 4 n bytes to be filled (a
    `NeighbourLoader` does that once), and once per graph its sorting.
    """
    fanouts = _fanouts(fanouts)
    return _sample(graph, _distinct(graph, nodes), fanouts, replace, seed, _Workspace(graph))


def _fanouts(fanouts: Sequence[int]) -> tuple[int, ...]:
    if not len(fanouts) or min(fanouts) < -1:
        raise ValueError(f"fanouts must be edges per node for each hop (-1: all), got {tuple(fanouts)}")
    return tuple(fanouts)


def _distinct(graph: Graph, nodes: Tensor) -> Tensor:
    nodes = _nodes("sample_neighbours", graph, nodes)
    if nodes.unique().numel() < nodes.numel():
        raise ValueError("sample_neighbours: nodes must name each node once")
    return nodes


def _sample(
    graph: Graph, seeds: Tensor, fanouts: tuple[int, ...], replace: bool, seed: int, space: _Workspace
) -> Sampled:
    from attlas.graph import sample_loops as loops

    pointer, other, order = (part.numpy() for part in graph.by_receiver)
    nodes, known, start = seeds.numpy().copy(), len(seeds), 0
    space.place[nodes] = np.arange(known, dtype=np.int32)
    hops, ends, edges = [known], [], []
    for count in fanouts:
        last = nodes[start:known]
        degree = pointer[last + 1] - pointer[last]
        if count >= 0:
            degree = np.where(degree > 0, count, 0) if replace else np.minimum(degree, count)
        most = int(degree.sum())
        nodes = np.concatenate([nodes[:known], np.empty(most, dtype=np.int64)])
        drawn, both = np.empty(most, dtype=np.int64), np.empty((2, most), dtype=np.int64)
        found, more = loops.expand(
            pointer, other, order, nodes, known, start, known, count, replace, _seed(seed), space.place,
            both, drawn,
        )  # fmt: skip
        start, known = known, more
        hops.append(known)
        ends.append(both[:, :found])
        edges.append(drawn[:found])
    nodes = nodes[:known].copy()
    space.place[nodes] = -1
    old = torch.from_numpy(np.concatenate(edges))
    sender, receiver = (torch.from_numpy(np.concatenate([both[side] for both in ends])) for side in range(2))
    attr, kinds = graph.edge_attr, graph.edge_type
    small = Graph(
        sender,
        receiver,
        known,
        known,
        edge_attr=None if attr is None else attr[old],
        edge_type=None if kinds is None else kinds[old],
    )
    return Sampled(small, torch.from_numpy(nodes), old, len(seeds), tuple(hops))


class NeighbourLoader:
    """Batches of nodes, each with a small graph around it (`sample_neighbours`), for as long as one epoch.

    Args:
        graph: the whole. nodes: those to go through, each once. fanouts, replace: of `sample_neighbours`.
        batch: nodes of a batch; the last one holds what is left.
        shuffle: another order in every epoch. seed: of order and draws.

    Every pass over the loader is the next epoch, with other draws; `epoch` says which comes next and may be
    set. As many batches as torch has threads are drawn at a time, ahead of their use; they are the same for
    any number of threads.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Tensor,
        fanouts: Sequence[int],
        *,
        batch: int,
        replace: bool = False,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be 1 node or more, got {batch}")
        self.graph, self.nodes, self.fanouts = graph, _distinct(graph, nodes), _fanouts(fanouts)
        self.batch, self.replace, self.shuffle, self.seed, self.epoch = batch, replace, shuffle, seed, 0

    def __len__(self) -> int:
        return -(-len(self.nodes) // self.batch)

    def __iter__(self) -> Iterator[Sampled]:
        from attlas.graph import sample_loops as loops

        epoch, self.epoch = self.epoch, self.epoch + 1
        start = int(loops.key_of(_seed(self.seed), epoch))
        nodes = self.nodes
        if self.shuffle:
            generator = torch.Generator().manual_seed(start >> 1)
            nodes = nodes[torch.randperm(len(nodes), generator=generator)]
        _ = self.graph.by_receiver  # sorted once, before threads ask for it
        parts = nodes.split(self.batch) if len(nodes) else ()
        seeds = [int(loops.key_of(_seed(start), number)) for number in range(len(parts))]
        threads = min(torch.get_num_threads(), len(parts))
        if threads <= 1:
            space = _Workspace(self.graph)
            for part, seed in zip(parts, seeds, strict=True):
                yield _sample(self.graph, part, self.fanouts, self.replace, seed, space)
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from self._ahead(pool, parts, seeds, threads)

    def _ahead(
        self, pool: ThreadPoolExecutor, parts: Sequence[Tensor], seeds: Sequence[int], threads: int
    ) -> Iterator[Sampled]:
        spaces: SimpleQueue[_Workspace] = SimpleQueue()
        for _ in range(threads):
            spaces.put(_Workspace(self.graph))

        def one(place: int) -> Sampled:
            space = spaces.get()
            try:
                return _sample(self.graph, parts[place], self.fanouts, self.replace, seeds[place], space)
            finally:
                spaces.put(space)

        waiting: list[Future[Sampled]] = []
        for place in range(len(parts)):
            waiting.append(pool.submit(one, place))
            if len(waiting) >= AHEAD * threads:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
