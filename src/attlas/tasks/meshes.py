"""Meshes of triangles: random ones around a disc, and the airfoil that pygsp ships.

Origin of the airfoil: T. Barth's mesh, from MATLAB's examples, as a file of PyPI pygsp (BSD); geometry only.
Legend: n nodes, t triangles.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.graph.links import locality_order
from attlas.tasks.packaged import packaged_file

__all__ = ["Mesh", "airfoil_mesh", "delaunay_mesh"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """points (n, 2) in the unit square, float64; triangles (t, 3); inner and outer: (b, 2) boundary edges.

    graph: every edge of a triangle in both directions, without loops; nodes in reverse Cuthill-McKee order.
    """

    points: Tensor
    triangles: Tensor
    outer: Tensor
    inner: Tensor
    graph: Graph


def delaunay_mesh(nodes: int, *, seed: int, radius: float = 0.12) -> Mesh:
    """About `nodes` jittered points in the unit square around a disc at a random place, triangulated.

    radius: of the disc, whose rim is a wall; 0: no disc.
    """
    from scipy.spatial import Delaunay

    if nodes < 25 or not 0 <= radius < 0.3:
        raise ValueError(
            f"delaunay_mesh: nodes must be at least 25 and radius in 0 .. 0.3, got {nodes}, {radius}"
        )
    generator = np.random.default_rng(seed)
    side = round(nodes**0.5)
    size = 1.0 / (side - 1)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    rim = np.isin(grid, (0.0, 1.0))
    # Points on a side of the square stay on it; its corners stay.
    points = grid + generator.uniform(-0.3, 0.3, grid.shape) * size * ~rim * ~rim.all(1, keepdims=True)
    middle, outside = generator.uniform(0.35, 0.65, 2), len(points)
    if radius:
        points = points[np.hypot(*(points - middle).T) > radius + 0.5 * size]
        outside = len(points)
        turns = np.linspace(0, 2 * np.pi, max(8, round(2 * np.pi * radius / size)), endpoint=False)
        circle = middle + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
        points = np.concatenate([points, circle])
    triangles = Delaunay(points).simplices
    # The rim is convex: what has all its corners there lies in the disc, whatever the number of its sides.
    return _mesh(points, triangles[(triangles < outside).any(1)])


@cache
def airfoil_mesh() -> Mesh:
    """pygsp's airfoil: 4,253 nodes, 12,289 edges and 8,034 triangles around three wing elements.

    Coordinates are scaled into the unit square. UsageError: pygsp is not installed, or its file is damaged.
    """
    from scipy.io import loadmat

    file = packaged_file("pygsp", "0.6.1", "data/pointclouds/airfoil.mat")
    try:
        data = loadmat(file)
        points = np.stack([data[name].ravel().astype(np.float64) for name in ("x", "y")], 1)
        ends = np.stack([data[name].ravel().astype(np.int64) - 1 for name in ("i_inds", "j_inds")], 1)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} cannot be read as pygsp's airfoil: {error!r}") from error
    return _mesh(points / points.max(), _triangles(len(points), ends))


def _triangles(nodes: int, edges: np.ndarray) -> np.ndarray:
    """Every three nodes with an edge between each two; in this mesh all of them are faces."""
    near: list[set[int]] = [set() for _ in range(nodes)]
    for one, other in edges.tolist():
        near[one].add(other)
        near[other].add(one)
    found = [
        (one, other, third)
        for one, other in np.sort(edges, 1).tolist()
        for third in sorted(near[one] & near[other])
        if third > other
    ]
    return np.array(found)


def _mesh(points: np.ndarray, triangles: np.ndarray) -> Mesh:
    used, triangles = np.unique(triangles, return_inverse=True)
    points, triangles = points[used], triangles.reshape(-1, 3)
    one, two = (points[triangles[:, at]] - points[triangles[:, 0]] for at in (1, 2))
    clockwise = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] < 0
    triangles[clockwise] = triangles[clockwise][:, [0, 2, 1]]
    order = locality_order(_graph(len(points), _edges(triangles)[0])).numpy()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    points, triangles = points[order], place[triangles]
    edges, boundary = _edges(triangles)
    ring = _rings(len(points), boundary)
    longest = np.argmax(
        [np.ptp(points[boundary[ring == at].ravel()], 0).sum() for at in range(ring.max() + 1)]
    )
    return Mesh(
        torch.from_numpy(points), torch.from_numpy(triangles), torch.from_numpy(boundary[ring == longest]),
        torch.from_numpy(boundary[ring != longest]), _graph(len(points), edges),
    )  # fmt: skip


def _graph(nodes: int, edges: np.ndarray) -> Graph:
    ends = torch.from_numpy(edges).T
    return Graph.from_edge_index(torch.cat([ends, ends.flip(0)], 1), num_nodes=nodes)


def _edges(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(all edges once, those of one triangle only, in its sense of rotation)."""
    directed = np.concatenate([triangles[:, [at, (at + 1) % 3]] for at in range(3)])
    edges, first, counts = np.unique(np.sort(directed, 1), axis=0, return_index=True, return_counts=True)
    return edges, directed[first[counts == 1]]


def _rings(nodes: int, boundary: np.ndarray) -> np.ndarray:
    """The closed line that every boundary edge is part of, numbered from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    matrix = coo_array((np.ones(len(boundary)), boundary.T), (nodes, nodes))
    label = connected_components(matrix, directed=False)[1][boundary[:, 0]]
    return np.unique(label, return_inverse=True)[1]
