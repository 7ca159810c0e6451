"""More links for a mesh: farther hops, chosen distances, random jumps, global nodes; an order for locality.

Everything is a product of sparse boolean matrices, or touches single edges: nothing is nodes x nodes. Links
of a batch stay within their graphs, and no new one is a loop. Features and types of edges are not passed on.
Source: Garnier et al. 2025 (arXiv 2508.18051). Legend: n nodes, E edges.
"""

import math
from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.make import to_scipy

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["at_distances", "farthest_points", "global_links", "k_hop", "locality_order", "random_links"]


def k_hop(graph: Graph, hops: int) -> Graph:
    """Links from every node at 1 .. `hops` steps: A_k = A_(k-1) + A_(k-1) A without loops; each link once."""
    if hops < 1:
        raise ValueError(f"hops must be 1 or more, got {hops}")
    return at_distances(graph, range(1, hops + 1))


def at_distances(graph: Graph, distances: Iterable[int]) -> Graph:
    """Links from every node at exactly one of the distances, such as {1, 3} ("dilated").

    A distance counts edges on the shortest way from sender to receiver. Cost: products of sparse matrices up
    to the largest distance; their entries grow with its square on a surface.
    """
    wanted = sorted(set(distances))
    if not wanted or wanted[0] < 1 or not all(isinstance(one, Integral) for one in wanted):
        raise ValueError(f"distances must be whole numbers from 1 on, at least one, got {wanted}")
    step = _pattern(graph)
    # Rows receive: entry (i, j) of front is a node j whose shortest way to i has the current number of steps.
    front, within = step, _with_diagonal(step)
    found = [front] if 1 in wanted else []
    for distance in range(2, wanted[-1] + 1):
        reached = (front @ step).astype(bool)
        front = (reached > reached.multiply(within)).tocsr()
        within = (within + front).astype(bool)
        if distance in wanted:
            found.append(front)
    rows = np.concatenate([part.tocoo().row for part in found])
    columns = np.concatenate([part.tocoo().col for part in found])
    return _linked(graph, rows, columns)


def random_links(graph: Graph, fraction: float, *, generator: torch.Generator) -> Graph:
    """The graph and `fraction` times its undirected links more, random ones in both directions.

    No new link is a loop or one that there was in either direction. Of a batch each graph gets its share;
    where hardly two nodes are left without a link there are fewer, as many as 100 rounds of draws find. Links
    are drawn anew on every call, as the official code does for every sample (`new_edges_ratio`).
    """
    if not (fraction >= 0 and math.isfinite(fraction)):
        raise ValueError(f"fraction must be finite and not negative, got {fraction}")
    sizes = (graph.pointer if graph.pointer is not None else torch.tensor([0, graph.nodes])).diff()
    first = sizes.cumsum(0) - sizes
    size, start = sizes[graph.graph_of], first[graph.graph_of]
    # A link drawn from a random old one has its graph; half of the directed links are undirected ones.
    count = round(fraction * graph.edges / 2)
    old = _codes(
        graph, torch.minimum(graph.sender, graph.receiver), torch.maximum(graph.sender, graph.receiver)
    ).unique()
    new = old[:0]
    for _ in range(100):
        left = count - len(new)
        if not left:
            break
        place = graph.receiver[torch.randint(0, max(1, graph.edges), (left,), generator=generator)]
        ends = [start[place] + (torch.rand(left, generator=generator) * size[place]).long() for _ in range(2)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        drawn = _codes(graph, low, high)[low < high]
        drawn = torch.cat([new, drawn]).unique()
        new = drawn[~torch.isin(drawn, old)]
    low, high = new // max(1, graph.nodes), new % max(1, graph.nodes)
    sender, receiver = torch.cat([graph.sender, low, high]), torch.cat([graph.receiver, high, low])
    return graph.replace(sender=sender, receiver=receiver, edge_attr=None, edge_type=None)


def global_links(graph: Graph, nodes: Tensor) -> Graph:
    """The graph and links (i, s), (s, i) between every node i and each of the chosen ones of its graph.

    A link that there was is not doubled; the graph's own loops and equal edges stay. They are in the order
    of receivers, then senders.
    """
    if nodes.dtype != torch.int64 or nodes.dim() != 1:
        raise TypeError(f"nodes must be int64 (s,), got {nodes.dtype} {tuple(nodes.shape)}")
    if nodes.numel() and not (int(nodes.min()) >= 0 and int(nodes.max()) < graph.nodes):
        raise ValueError(
            f"nodes must be in 0 .. {graph.nodes - 1}, got {int(nodes.min())} .. {int(nodes.max())}"
        )
    where = graph.graph_of[nodes]
    sizes = torch.bincount(graph.graph_of, minlength=graph.graphs)
    hub = torch.repeat_interleave(nodes, sizes[where])
    first = (sizes.cumsum(0) - sizes)[where]
    shift = torch.repeat_interleave(first - (sizes[where].cumsum(0) - sizes[where]), sizes[where])
    spoke = torch.arange(len(hub)) + shift
    sender, receiver = torch.cat([hub, spoke]), torch.cat([spoke, hub])
    new = _codes(graph, receiver, sender)[sender != receiver].unique()
    old = _codes(graph, graph.receiver, graph.sender)
    codes = torch.cat([old, new[~torch.isin(new, old)]]).sort().values
    count = max(1, graph.nodes)
    return graph.replace(sender=codes % count, receiver=codes // count, edge_attr=None, edge_type=None)


def farthest_points(points: Float[Tensor, "n a"], count: int, *, first: int = 0) -> Int[Tensor, "s"]:
    """`count` different nodes, each the farthest from those before it: spread over the mesh. O(n count)."""
    if not 1 <= count <= len(points):
        raise ValueError(f"count must be 1 .. {len(points)}, the number of points, got {count}")
    if not 0 <= first < len(points):
        raise ValueError(f"first must be 0 .. {len(points) - 1}, one of the points, got {first}")
    chosen = [first]
    nearest = points.new_full((len(points),), math.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -1.0  # never again, also among points that coincide
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def locality_order(graph: Graph) -> Int[Tensor, "n"]:
    """Nodes in reverse Cuthill-McKee order: neighbours stand near each other in memory. O(E log E)."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    if not graph.nodes:
        return torch.zeros(0, dtype=torch.int64)
    matrix = _pattern(graph)
    found = reverse_cuthill_mckee((matrix + matrix.T).tocsr(), symmetric_mode=True)
    return torch.from_numpy(found.astype(np.int64))


def _codes(graph: Graph, one: Tensor, other: Tensor) -> Tensor:
    return one * max(1, graph.nodes) + other


def _pattern(graph: Graph) -> "csr_array":
    """The links without loops as a boolean matrix, rows receive."""
    _ = graph.nodes
    matrix = to_scipy(graph).astype(bool)
    matrix.setdiag(False)
    matrix.eliminate_zeros()
    return matrix


def _with_diagonal(matrix: "csr_array") -> "csr_array":
    from scipy.sparse import eye_array

    return (matrix + eye_array(matrix.shape[0], dtype=bool, format="csr")).astype(bool)


def _linked(graph: Graph, rows: np.ndarray, columns: np.ndarray) -> Graph:
    order = np.lexsort((columns, rows))
    receiver, sender = (torch.from_numpy(part[order].astype(np.int64)) for part in (rows, columns))
    return graph.replace(sender=sender, receiver=receiver, edge_attr=None, edge_type=None)
