"""The virtual node's claim: the constructions in numbers, a far answer, and molecules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attlas.catalog.claim import Claim, Values, Verdict, named, remember, spread

__all__ = ["CLAIM"]

WIDTH, DEPTH, RATE = 32, 4, 3e-3
SIZES, FEATURES, HEAD = (40, 25, 60), 8, 6
SHARPNESS = (2.0, 4.0, 8.0, 16.0)
CLIQUE_STEPS, CLIQUE_GRAPHS, CLIQUE_TESTED = 250, 32, 400
MOLECULE_STEPS, MOLECULES = 500, 64
FAR_ARMS = ("GIN", "GIN + VN", "dense attention")
MOLECULE_ARMS = ("GIN", "GIN + VN")
EXACT_A, EXACT_C = 1e-12, 1e-10
CHANCE, BLIND, SEES = 0.25, 0.35, 0.9
SETTINGS = {
    "constructions": f"float64, graphs of {SIZES} nodes, selector colder by {SHARPNESS} over its margin",
    "nets": f"{DEPTH} layers, width {WIDTH}; dense attention: 4 heads, no positions",
    "learning rate": RATE,
    "two cliques": f"{CLIQUE_STEPS} steps of {CLIQUE_GRAPHS} graphs, {CLIQUE_TESTED} tested, 4 classes",
    "solubility": f"1,025 molecules, {MOLECULE_STEPS} steps of {MOLECULES}, 257 tested, sum readout",
    "times with long": {"steps": 4},
}


def constructions(seed: int) -> Values:
    """Relative errors of A and C, and of C with a warm selector."""
    import torch
    from torch import nn
    from torch.nn import functional

    from attlas.graph import Graph
    from attlas.inspect import linear_by_virtual_node, margin, softmax_by_virtual_node

    torch.manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=sum(SIZES), batch=owner)
    x = functional.normalize(torch.randn(sum(SIZES), FEATURES, dtype=torch.float64), dim=1)
    maps = [nn.Linear(FEATURES, HEAD).double() for _ in range(3)]

    def features(rows: Any) -> Any:
        return functional.elu(rows) + 1

    with torch.no_grad():
        query, key, value = (one(x) for one in maps)
        linear, soft = [], []
        for q, k, v in zip(*(part.split(SIZES) for part in (query, key, value)), strict=True):
            weights = features(q) @ features(k).T
            linear.append(weights @ v / weights.sum(1, keepdim=True))
            soft.append((q @ k.T / math.sqrt(HEAD)).softmax(1) @ v)
        dense = torch.cat(soft)
        found_a = linear_by_virtual_node(query, key, value, graph, features)
        lead = margin(x, x, graph)
        found = {
            "error of A": _error(found_a, torch.cat(linear)),
            "error of C": _error(softmax_by_virtual_node(x, graph, *maps), dense),
            "margin": lead,
        }
        for sharp in SHARPNESS:
            warm = softmax_by_virtual_node(x, graph, *maps, temperature=lead / sharp)
            found[f"error of C at {sharp:g}"] = _error(warm, dense)
    return found


def _error(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _step(arm: str) -> Any:
    """GIN with residual, batch norm and ReLU, or dense attention within each graph of equal size."""
    from torch import nn

    from attlas.layers import GIN, Block, SelfAttention

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = GIN(WIDTH), nn.BatchNorm1d(WIDTH)

        def forward(self, x: Any, graph: Any, edge_attr: Any = None, batch: Any = None) -> Any:
            return x + self.norm(self.layer(x, graph)).relu()

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(WIDTH, SelfAttention(WIDTH, 4))

        def forward(self, x: Any, graph: Any, edge_attr: Any = None, batch: Any = None) -> Any:
            return self.block(x.view(graph.graphs, -1, WIDTH)).flatten(0, 1)

    return Dense() if arm == "dense attention" else Step()


def layers(arm: str) -> list[Any]:
    """The graph layers of an arm; with a virtual node they are one."""
    from attlas.layers import VirtualNodeStack

    steps = [_step(arm) for _ in range(DEPTH)]
    return [VirtualNodeStack(steps, WIDTH)] if arm == "GIN + VN" else steps


def two_cliques(arm: str, seed: int, steps: int, step: Callable[[str], None]) -> Values:
    """Share of asked nodes that are told right, in graphs not seen before."""
    import torch
    from torch.nn import functional

    from attlas import tasks
    from attlas.models import GraphNet
    from attlas.train import Recipe, fit

    torch.manual_seed(seed)
    made = iter(layers(arm))
    depth = 1 if arm == "GIN + VN" else DEPTH
    net = GraphNet(lambda: next(made), depth=depth, width=WIDTH, outputs=4, node_width=6, readout=None)
    first = (seed + 1) * 10**7
    drawn = (tasks.two_cliques(CLIQUE_GRAPHS, seed=first + number) for number in range(steps))

    def loss(net: Any, task: Any) -> Any:
        return functional.cross_entropy(net(task.x, task.graph)[task.asked], task.labels)

    fit(net, drawn, loss, Recipe(steps, learning_rate=RATE), step=step)
    test = tasks.two_cliques(CLIQUE_TESTED, seed=first - 1)
    with torch.no_grad():
        found = net(test.x, test.graph)[test.asked].argmax(1)
    return {"accuracy": (found == test.labels).float().mean().item()}


def solubility(arm: str, seed: int, steps: int, step: Callable[[str], None]) -> Values:
    """Mean absolute error of the test molecules, decimal logarithm of mol/l."""
    import torch
    from torch.nn import functional

    from attlas import tasks
    from attlas.models import GraphNet
    from attlas.train import Recipe, fit

    torch.manual_seed(seed)
    train, test = tasks.solubility()
    made = iter(layers(arm))
    depth = 1 if arm == "GIN + VN" else DEPTH
    net = GraphNet(lambda: next(made), depth=depth, width=WIDTH, outputs=1, node_kinds=tasks.ATOM_KINDS)

    def loss(net: Any, batch: Any) -> Any:
        return functional.l1_loss(net(batch.x, batch.graph), batch.target)

    batches = tasks.molecule_batches(train, MOLECULES, seed)
    fit(net, batches, loss, Recipe(steps, learning_rate=RATE), step=step)
    together = tasks.molecules_together(test)
    with torch.no_grad():
        return {"error": (net(together.x, together.graph) - together.target).abs().mean().item()}


def measure(seed: int, *, long: bool, folder: Path, step: Callable[[str], None]) -> Values:
    """The errors of the constructions, accuracies and errors of the nets."""
    times = 4 if long else 1
    values = dict(constructions(seed))
    for task, arms, run, steps in (
        ("two cliques", FAR_ARMS, two_cliques, CLIQUE_STEPS * times),
        ("solubility", MOLECULE_ARMS, solubility, MOLECULE_STEPS * times),
    ):
        for arm in arms:
            name = f"{task}, {arm}"
            kept = remember(
                folder,
                name.replace(" ", "-").replace(",", "").replace("+", "and"),
                partial(run, arm, seed, steps, named(step, name)),
            )
            values[name] = next(iter(kept.values()))
    return values


def judge(runs: Sequence[Values]) -> Verdict:
    """By the rule."""
    table = spread(runs)
    told = _told(table)
    blind, sees = (table[f"two cliques, {arm}"]["mean"] for arm in ("GIN", "GIN + VN"))
    if blind > BLIND:
        return Verdict("does not hold", f"GIN without a virtual node sees the far clique: {told}")
    rules = {
        f"A to {EXACT_A:g}": table["error of A"]["largest"] <= EXACT_A,
        f"C to {EXACT_C:g}": table["error of C"]["largest"] <= EXACT_C,
        "the error of C falls exponentially as the selector cools": all(
            0.5 <= rate <= 2 for rate in _rates(table)
        ),
        f"two cliques: GIN + VN at least {SEES}": sees >= SEES,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    return Verdict("holds", told)


def _rates(table: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Fall of the error's logarithm per unit of margin over temperature, between the coldest: 1 is exp."""
    errors = [table[f"error of C at {sharp:g}"]["mean"] for sharp in SHARPNESS[-3:]]
    return [
        (math.log(errors[at]) - math.log(errors[at + 1])) / (SHARPNESS[-2:][at] - SHARPNESS[-3:][at])
        for at in range(2)
    ]


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(task: str, arms: Sequence[str]) -> str:
        return ", ".join(
            f"{arm} {table[f'{task}, {arm}']['mean']:.3f} ± {table[f'{task}, {arm}']['sd']:.3f}"
            for arm in arms
        )

    warm = ", ".join(f"{table[f'error of C at {sharp:g}']['mean']:.1e}" for sharp in SHARPNESS)
    return (
        f"Error of A {table['error of A']['largest']:.1e} and of C {table['error of C']['largest']:.1e} at "
        f"most; C with margin / temperature {', '.join(f'{sharp:g}' for sharp in SHARPNESS)}: {warm}. Two "
        f"cliques: {row('two cliques', FAR_ARMS)} (chance {CHANCE}). Solubility, MAE: "
        f"{row('solubility', MOLECULE_ARMS)}."
    )


CLAIM = Claim(
    says=(
        "A virtual node lets message passing compute attention: linear attention in O(1) rounds of O(1) "
        "width, softmax attention in n rounds; and a net with one reaches what messages alone do not."
    ),
    rule=(
        f"In float64 the constructions equal dense attention to {EXACT_A:g} (A) and {EXACT_C:g} (C, exact "
        "selector), relative to the largest entry, for every seed; C's error falls exponentially as the "
        "selector cools (log error per unit of margin over temperature between -0.5 and -2 for the two "
        f"coldest steps). Two cliques, means over the seeds: GIN with a virtual node is at least {SEES} "
        f"right; GIN alone is at chance, and the statement fails if it is above {BLIND}. Dense attention and "
        "solubility are told, not judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
)
