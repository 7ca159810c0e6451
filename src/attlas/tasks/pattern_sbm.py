"""PATTERN: find the nodes of a planted pattern in random graphs of blocks; graphs are drawn, not loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.graph import Graph

__all__ = ["PatternGraph", "pattern_sbm"]

BLOCKS, PATTERNS, PATTERN_NODES, SIGNALS = 5, 100, 20, 3
INSIDE, BETWEEN, PATTERN_INSIDE, PATTERN_OUTSIDE = 0.5, 0.35, 0.5, 0.5
SHARED_SEED = 20_12_09_699  # the patterns are the same in all data sets


@dataclass(frozen=True, eq=False)
class PatternGraph:
    """graph: undirected, edges both ways; signal (n,) int64 in 0 .. 2; label (n,) int64: 1 in the pattern."""

    graph: Graph
    signal: Tensor
    label: Tensor


def pattern_sbm(
    count: int, seed: int, *, least: int = 5, most: int = 35, nodes: int = 80
) -> list[PatternGraph]:
    """`count` stochastic block graphs with a planted pattern, of at most `nodes` nodes in all.

    Five blocks of least .. most nodes, joined with probability 0.5 inside and 0.35 between; one of 100 fixed
    random patterns of 20 nodes (0.5 inside, its signals fixed) is joined to every other node with 0.5.
    Signals are uniform; nodes stand in random order. Sizes are drawn again until they fit. Source: Dwivedi
    et al. 2020, arXiv 2003.00982 (44 to 188 nodes there). ValueError: sizes that never fit.
    """
    smallest = BLOCKS * least + PATTERN_NODES
    if not 1 <= least <= most or smallest > nodes:
        raise ValueError(
            f"pattern_sbm: 1 <= least <= most, and {BLOCKS} blocks of least={least} beside a pattern of "
            f"{PATTERN_NODES} must fit into nodes={nodes}: they have {smallest}"
        )
    # A larger block never fits: leaving it out changes no chance and saves nearly all draws in small graphs.
    most = min(most, nodes - smallest + least)
    patterns = list(_patterns())
    generator = torch.Generator().manual_seed(seed)
    return [_drawn(patterns, least, most, nodes, generator) for _ in range(count)]


def _patterns() -> Iterator[tuple[Tensor, Tensor]]:
    """(adjacency, signal) of each of the fixed patterns."""
    generator = torch.Generator().manual_seed(SHARED_SEED)
    for _ in range(PATTERNS):
        chance = torch.full((PATTERN_NODES, PATTERN_NODES), PATTERN_INSIDE)
        yield _symmetric(chance, generator), torch.randint(SIGNALS, (PATTERN_NODES,), generator=generator)


def _symmetric(chance: Tensor, generator: torch.Generator) -> Tensor:
    """A symmetric bool matrix without diagonal, each pair drawn once."""
    upper = (torch.rand(chance.shape, generator=generator) < chance).triu(1)
    return upper | upper.T


def _drawn(
    patterns: Sequence[tuple[Tensor, Tensor]], least: int, most: int, nodes: int, generator: torch.Generator
) -> PatternGraph:
    while True:
        sizes = torch.randint(least, most + 1, (BLOCKS,), generator=generator)
        if int(sizes.sum()) + PATTERN_NODES <= nodes:
            break
    block = torch.repeat_interleave(torch.arange(BLOCKS), sizes)
    same = block[:, None] == block
    whole = len(block) + PATTERN_NODES
    chance = torch.full((whole, whole), PATTERN_OUTSIDE)
    chance[: len(block), : len(block)] = torch.where(same, INSIDE, BETWEEN)
    adjacency = _symmetric(chance, generator)
    pattern, signal = patterns[int(torch.randint(PATTERNS, (), generator=generator))]
    adjacency[len(block) :, len(block) :] = pattern
    signals = torch.cat([torch.randint(SIGNALS, (len(block),), generator=generator), signal])
    label = (torch.arange(whole) >= len(block)).to(torch.int64)
    order = torch.randperm(whole, generator=generator)
    receiver, sender = adjacency[order][:, order].nonzero().T
    graph = Graph(sender.contiguous(), receiver.contiguous(), whole, whole)
    return PatternGraph(graph, signals[order], label[order])
