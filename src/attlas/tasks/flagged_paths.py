"""Paths whose one end must tell what the other end carries."""

from typing import NamedTuple

import torch
from torch import Tensor

from attlas.graph import Graph, batch

__all__ = ["PATH_CLASSES", "FlaggedPaths", "flagged_paths"]

PATH_CLASSES = 4
"""Classes that an end can carry, each with a chance of 1/4."""


class FlaggedPaths(NamedTuple):
    """A batch of paths. x (n, 2 + classes): flag of the asked end, flag of the carrying end, its class.

    asked (paths,): the node of each path that must answer; target (paths,) int64: the class.
    """

    x: Tensor
    graph: Graph
    asked: Tensor
    target: Tensor


def flagged_paths(count: int, generator: torch.Generator, *, least: int = 20, most: int = 30) -> FlaggedPaths:
    """`count` undirected paths of least .. most nodes; the nodes of a path stand in their order along it.

    Message passing of d layers sees d steps: it is at chance by construction for d < least - 1. ValueError:
    paths of fewer than two nodes.
    """
    if not 2 <= least <= most:
        raise ValueError(f"flagged_paths: 2 <= least <= most nodes, got {least} and {most}")
    sizes = torch.randint(least, most + 1, (count,), generator=generator)
    target = torch.randint(PATH_CLASSES, (count,), generator=generator)
    paths = []
    for size in sizes.tolist():
        step = torch.arange(size - 1)
        ends = torch.stack([torch.cat([step, step + 1]), torch.cat([step + 1, step])])
        paths.append(Graph.from_edge_index(ends, num_nodes=size))
    last = sizes.cumsum(0) - 1
    first = last - sizes + 1
    x = torch.zeros(int(sizes.sum()), 2 + PATH_CLASSES)
    x[first, 0], x[last, 1], x[last, 2 + target] = 1.0, 1.0, 1.0
    return FlaggedPaths(x, batch(paths), first, target)
