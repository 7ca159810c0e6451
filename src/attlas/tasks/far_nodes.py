"""Tasks on graphs whose answers stand far from the node that is asked, and the graph of digits."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attlas.graph import Graph, batch
from attlas.tasks.images import _digits
from attlas.tasks.labelled_graph import LabelledGraph

__all__ = ["NodeTask", "digit_neighbours", "distant_hubs", "ring_transfer", "two_cliques"]


class NodeTask(NamedTuple):
    """Graphs in one batch: features x (n, C) float32, their graph, the asked nodes and their labels int64."""

    x: Tensor
    graph: Graph
    asked: Tensor
    labels: Tensor


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


def _ring(size: int) -> np.ndarray:
    """(2, 2 size) edges of a ring in both directions."""
    nodes = np.arange(size)
    after = (nodes + 1) % size
    return np.stack([np.concatenate([nodes, after]), np.concatenate([after, nodes])])


def _clique(size: int, offset: int) -> np.ndarray:
    ends = np.stack(np.meshgrid(np.arange(size), np.arange(size))).reshape(2, -1)
    return ends[:, ends[0] != ends[1]] + offset


def _copies(ends: np.ndarray, size: int, count: int) -> Graph:
    """One batch of equal graphs."""
    graph = Graph.from_edge_index(torch.from_numpy(np.ascontiguousarray(ends)), num_nodes=size)
    return batch([graph] * count)


def ring_transfer(count: int, size: int, *, classes: int = 5, everywhere: bool = True, seed: int) -> NodeTask:
    """Rings of `size` nodes: tell the class of the node opposite.

    everywhere: every node carries a class, drawn evenly, and every node is asked, so that no mean over the
    ring answers; else node 0 alone carries one and the node opposite alone is asked (and known to be: x has
    a column for it). x (n, classes + 1). ValueError: an odd size or one below 4.
    """
    if size < 4 or size % 2:
        raise ValueError(f"ring_transfer: size must be even and 4 or more, got {size}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, classes, (count, size), generator=generator)
    x = torch.zeros(count, size, classes + 1)
    graph = _copies(_ring(size), size, count)
    if everywhere:
        x[..., :classes] = _one_hot(drawn, classes)
        return NodeTask(
            x.flatten(0, 1), graph, torch.arange(count * size), drawn.roll(size // 2, 1).flatten()
        )
    x[:, 0, :classes] = _one_hot(drawn[:, 0], classes)
    x[:, size // 2, classes] = 1
    return NodeTask(x.flatten(0, 1), graph, torch.arange(count) * size + size // 2, drawn[:, 0])


def two_cliques(count: int, *, clique: int = 5, path: int = 12, classes: int = 4, seed: int) -> NodeTask:
    """Two cliques joined by a path: a flagged node of one tells the class that a flagged node of the other
    carries.

    Which clique asks, and which of its nodes, is drawn. x (n, classes + 2): the class of the carrier, a flag
    of the carrier, a flag of the asking node. Message passing of fewer than path + 1 rounds is at chance.
    """
    size = 2 * clique + path
    links = np.arange(clique - 1, clique + path + 1)
    way = np.stack([links[:-1], links[1:]])
    ends = np.concatenate([_clique(clique, 0), _clique(clique, clique + path), way, way[::-1]], 1)
    graph = _copies(ends, size, count)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    side = torch.randint(0, 2, (count,), generator=generator)
    place = torch.randint(0, clique, (2, count), generator=generator)
    rows, far = torch.arange(count), clique + path
    asked, carrier = rows * size + place[0] + side * far, rows * size + place[1] + (1 - side) * far
    x = torch.zeros(count * size, classes + 2)
    x[carrier, :classes] = _one_hot(labels, classes)
    x[carrier, classes] = 1
    x[asked, classes + 1] = 1
    return NodeTask(x, graph, asked, labels)


def distant_hubs(
    count: int, *, cliques: int = 20, clique: int = 5, keys: int = 4, values: int = 4, seed: int
) -> NodeTask:
    """Rings of cliques with one hub per key, which carries a value: nodes tell the value of the hub that has
    their key.

    Keys of nodes, places and values of hubs are drawn anew for every graph: no answer can be learnt by heart.
    x (n, keys + 1 + values): the key, a flag of hubs, the value of hubs. All nodes but hubs are asked.
    """
    size = cliques * clique
    if keys > size:
        raise ValueError(f"distant_hubs: keys must be at most the {size} nodes of a graph, got {keys}")
    first = np.arange(cliques) * clique
    after = np.roll(first, -1) + clique - 1
    joined = np.stack([np.concatenate([first, after]), np.concatenate([after, first])])
    ends = np.concatenate([*(_clique(clique, int(start)) for start in first), joined], 1)
    graph = _copies(ends, size, count)
    generator = torch.Generator().manual_seed(seed)
    key = torch.randint(0, keys, (count, size), generator=generator)
    value = torch.randint(0, values, (count, keys), generator=generator)
    hubs = torch.rand(count, size, generator=generator).argsort(1)[:, :keys]
    key.scatter_(1, hubs, torch.arange(keys).expand(count, -1))
    x = torch.cat([_one_hot(key, keys), torch.zeros(count, size, 1 + values)], 2)
    rows = torch.arange(count)[:, None]
    x[rows, hubs, keys] = 1
    x[rows, hubs, keys + 1 :] = _one_hot(value, values)
    asked = (x[..., keys] == 0).flatten().nonzero()[:, 0]
    return NodeTask(x.flatten(0, 1), graph, asked, value.gather(1, key).flatten()[asked])


def digit_neighbours(*, nearest: int = 5, rewired: float = 0.2, seed: int) -> LabelledGraph:
    """The 1,797 digits, each joined with its `nearest` ones by pixels; a share of the edges starts anywhere.

    x (1797, 64) in [0, 1]; edges run from the near digit to the one it is near to, then both ways. Source:
    UCI optical digits as shipped with scikit-learn (BSD). ValueError: a share outside [0, 1].
    """
    from scipy.spatial import cKDTree

    from attlas.graph import coalesce, undirected

    if not 0 <= rewired <= 1:
        raise ValueError(f"digit_neighbours: rewired must be a share from 0 to 1, got {rewired}")
    images, labels = _digits()
    x = images.flatten(1)
    _, near = cKDTree(x.numpy()).query(x.numpy(), nearest + 1)
    receiver = torch.arange(len(x)).repeat_interleave(nearest)
    sender = torch.from_numpy(near[:, 1:]).flatten().to(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(len(sender), generator=generator) < rewired
    sender = torch.where(moved, torch.randint(0, len(x), sender.shape, generator=generator), sender)
    graph, _ = undirected(Graph.from_edge_index(torch.stack([sender, receiver]), num_nodes=len(x)))
    names = tuple(str(digit) for digit in range(10))
    nodes = tuple(f"digit {place}" for place in range(len(x)))
    return LabelledGraph(coalesce(graph)[0], x, labels.to(torch.int64), names, (), nodes)
