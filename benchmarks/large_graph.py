"""LargeGT end to end on a graph of a million nodes, ten million edges: seconds and memory of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas._common.machine import peak_memory, resident_memory
from attlas.graph import Graph, adjacency, prone
from attlas.layers import HopTokens
from attlas.models import LargeGT

TITLE = "A graph of 1,000,000 nodes and 10,000,000 edges, trained end to end with LargeGT"
COLUMNS = ["stage", "seconds", "cpu_seconds", "memory_gb", "peak_gb", "detail"]
KINDS, FEATURES, LIKE, SIGNAL = 16, 32, 0.7, 0.35
SAMPLES, WIDTH, HEADS, ROWS, POSITION, BATCH, RATE = 10, 32, 2, 512, 16, 1024, 2e-3
TRAINED, CHECKED = 0.6, 0.05  # shares of the nodes
NOTES = [
    f"The graph: ends of edges at ranks drawn with density rank^-0.5; every node is of one of {KINDS} "
    f"kinds, and {LIKE:.0%} of the edges join nodes of one kind. Label: the kind. Features ({FEATURES}): "
    f"the kind's own vector times {SIGNAL} and noise of variance 1, so that a node alone says little and "
    "its neighbourhood nearly all.",
    f"LargeGT: K {SAMPLES} ({3 * SAMPLES} tokens), width {WIDTH}, {HEADS} heads, codebook of {ROWS} rows, "
    f"ProNE positions of {POSITION}, dropout 0.1; Adam {RATE:g}, batches of {BATCH}; {TRAINED:.0%} of the "
    f"nodes are labelled and trained on, {CHECKED:.0%} checked, the rest unlabelled. One epoch goes "
    "through all labelled nodes once.",
    "words alone: an MLP on the node's own features, one epoch on the same nodes, on the same checked ones.",
    "memory_gb, peak_gb: resident memory of the process after the stage, and its largest so far.",
]


class _Stages:
    """A row for every stage that is left."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def row(self, stage: str, detail: str = "") -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        found = {
            "stage": stage,
            "seconds": round(wall - self.wall, 1),
            "cpu_seconds": round(cpu - self.cpu, 1),
        }
        found |= {
            "memory_gb": round((resident_memory() or 0) / 2**30, 2),
            "peak_gb": round(peak_memory() / 2**30, 2),
            "detail": detail,
        }
        self.wall, self.cpu = wall, cpu
        return found


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per stage, from drawing the graph to its validation."""
    nodes, edges = (20_000, 200_000) if quick else (1_000_000, 10_000_000)
    torch.manual_seed(0)
    stages = _Stages()
    ends, kind, x = drawn(nodes, edges)
    yield stages.row("draw the graph", f"{nodes} nodes, {edges} edges")
    graph = Graph.from_edge_index(ends, num_nodes=nodes)
    del ends
    rising = adjacency(graph).pointer.diff()
    yield stages.row("graph and adjacency", f"{int(rising.sum())} neighbours, most {int(rising.max())}")
    tokens = HopTokens(graph, x, SAMPLES)
    yield stages.row("features of hops and samples", f"{SAMPLES - 1} samples per node, 2 hops")
    positions = prone(graph, POSITION)
    yield stages.row("positions", f"ProNE, {POSITION}")
    order = torch.randperm(nodes)
    train, check = order[: int(TRAINED * nodes)], order[-int(CHECKED * nodes) :]
    model = LargeGT(
        FEATURES, KINDS, nodes=nodes, width=WIDTH, heads=HEADS, rows=ROWS, position=POSITION,
        dropout=0.1, local_dropout=0.1,
    )  # fmt: skip

    def classify(part: Tensor) -> Tensor:
        return torch.as_tensor(model(tokens(part), positions[part], part))

    last = epoch(model, classify, train, kind)
    yield stages.row("one epoch", f"{len(train)} labelled nodes, loss of the last batches {last:.3f}")
    yield stages.row(
        "validation", f"{len(check)} nodes, accuracy {accuracy(model, classify, check, kind):.4f}"
    )
    alone = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, KINDS))
    epoch(alone, lambda part: torch.as_tensor(alone(x[part])), train, kind)
    right = accuracy(alone, lambda part: torch.as_tensor(alone(x[part])), check, kind)
    yield stages.row("own features alone", f"MLP, one epoch, accuracy {right:.4f}")


def drawn(nodes: int, edges: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(ends (2, E), kind (n,), features (n, FEATURES))."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, KINDS, (nodes,), generator=generator)
    # Nodes of a kind together, in random order: a rank among them, or among all, is a place in this list.
    listed = torch.randperm(nodes, generator=generator)
    grouped = listed[torch.argsort(kind[listed], stable=True)]
    sizes = torch.bincount(kind, minlength=KINDS)
    starts = sizes.cumsum(0) - sizes

    def at(count: int) -> Tensor:
        return torch.rand(count, generator=generator) ** 2

    def ranks(share: Tensor, size: Tensor | int) -> Tensor:
        return torch.minimum((share * size).long(), torch.as_tensor(size) - 1)

    sender = listed[ranks(at(edges), nodes)]
    of = kind[sender]
    receiver = grouped[starts[of] + ranks(at(edges), sizes[of])]
    other = torch.rand(edges, generator=generator) >= LIKE
    receiver[other] = listed[ranks(at(int(other.sum())), nodes)]
    centres = torch.randn(KINDS, FEATURES, generator=generator)
    x = torch.randn(nodes, FEATURES, generator=generator).add_(centres[kind], alpha=SIGNAL)
    return torch.stack([sender, receiver]), kind, x


def epoch(model: nn.Module, classify: Callable[[Tensor], Tensor], train: Tensor, kind: Tensor) -> float:
    """Train once through the nodes; the mean loss of the last tenth of the batches."""
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    model.train()
    losses = []
    for part in train[torch.randperm(len(train))].split(BATCH):
        if len(part) < 2:  # one vector cannot be normalised over its batch
            continue
        optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(classify(part), kind[part])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def accuracy(model: nn.Module, classify: Callable[[Tensor], Tensor], nodes: Tensor, kind: Tensor) -> float:
    """The share of these nodes that is classified right."""
    model.eval()
    right = sum(int((classify(part).argmax(1) == kind[part]).sum()) for part in nodes.split(BATCH))
    return right / len(nodes)
