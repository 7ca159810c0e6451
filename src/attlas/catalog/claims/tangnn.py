"""TANGNN's claim: attention to a few picked nodes against messages alone, random picks and all nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attlas.catalog.claim import Claim, Values, Verdict, named, remember, spread

__all__ = ["CLAIM"]

WIDTH, DEPTH, RATE = 32, 2, 5e-3
HUB_STEPS, HUB_GRAPHS, HUB_TESTED, HUB_PICKED = 400, 8, 60, 8
DIGIT_STEPS, DIGIT_PICKED, DIGIT_DRAWS = 100, 20, 3
LABELLED, REWIRED = 0.05, 0.2
ARMS = ("messages", "top", "random", "full")
ON_DIGITS = ("messages", "top", "random")
TIMED_NODES, TIMED_PICKED, TIMES = 4096, (64, 256, 1024), 5
CHANCE, NEAR_CHANCE, FULL, NEAR_FULL = 0.25, 0.40, 0.9, 0.05
SETTINGS = {
    "layers": DEPTH,
    "width of each half": WIDTH,
    "learning rate": RATE,
    "hubs": {
        "graphs": "rings of 20 cliques of 5, 4 hubs, 4 keys, 4 values",
        "picked": HUB_PICKED,
        "steps": HUB_STEPS,
        "graphs a step": HUB_GRAPHS,
        "tested graphs": HUB_TESTED,
    },
    "digits": {
        "nodes": 1797,
        "neighbours": 5,
        "rewired": REWIRED,
        "labelled": LABELLED,
        "picked": DIGIT_PICKED,
        "steps": DIGIT_STEPS,
        "splits a seed": DIGIT_DRAWS,
    },
    "timed": f"the attention of {TIMED_NODES} nodes to {TIMED_PICKED}, forward, least of {TIMES}",
    "times with long": {"hub steps": 4},
}


def network(arm: str, features: int, classes: int, picked: int, seed: int) -> Any:
    """The net of an arm: all have the same readout and the same width of every layer's output."""
    import torch
    from torch import nn

    from attlas.layers import SAGE, TopAttention
    from attlas.models import TANGNN

    class Messages(nn.Module):
        def __init__(self, given: int) -> None:
            super().__init__()
            self.near = SAGE(given, 2 * WIDTH, sampled=5)

        def forward(self, x: Any, graph: Any) -> Any:
            return self.near(x, graph).relu()

    class Random(TopAttention):
        """Nodes drawn anew in every call of training, once and for all in evaluation."""

        def pick(self, score: Any, x: Any, graph: Any) -> Any:
            generator = None if self.training else torch.Generator().manual_seed(0)
            drawn = torch.rand(len(score), generator=generator)
            return super().pick(drawn, x, graph)

    torch.manual_seed(seed)
    most = 10**9 if arm == "full" else picked
    net = TANGNN(features, classes, width=WIDTH, depth=DEPTH, picked=most)
    for number in range(DEPTH):
        if arm == "messages":
            net.layers[number] = Messages(features if number == 0 else 2 * WIDTH)
        elif arm == "random":
            net.layers[number].attention = Random(WIDTH, picked=picked)
    return net


def _trained(net: Any, tasks: Any, steps: int, step: Callable[[str], None]) -> Any:
    from torch.nn import functional

    from attlas.train import Recipe, fit

    def loss(net: Any, task: Any) -> Any:
        return functional.cross_entropy(net(task.x, task.graph)[task.asked], task.labels)

    fit(net, tasks, loss, Recipe(steps, learning_rate=RATE, weight_decay=1e-4), step=step)
    return net


def _accuracy(net: Any, task: Any) -> float:
    import torch

    with torch.no_grad():
        found = net.eval()(task.x, task.graph)[task.asked].argmax(1)
    return (found == task.labels).float().mean().item()


def hubs(arm: str, seed: int, steps: int, step: Callable[[str], None]) -> Values:
    """Share of nodes of unseen graphs that tell their hub's value."""
    from attlas.tasks import distant_hubs

    test = distant_hubs(HUB_TESTED, seed=10**6 + seed)
    net = network(arm, test.x.shape[1], 4, HUB_PICKED, seed)
    first = (seed + 1) * 10**7
    tasks = (distant_hubs(HUB_GRAPHS, seed=first + number) for number in range(steps))
    return {"accuracy": _accuracy(_trained(net, tasks, steps, step), test)}


def digits(arm: str, seed: int, step: Callable[[str], None]) -> Values:
    """Share of unlabelled digits that are told right, mean over labelled sets."""
    from itertools import repeat

    from attlas.tasks import NodeTask, digit_neighbours

    data = digit_neighbours(rewired=REWIRED, seed=seed)
    nodes, total = data.graph.nodes, 0.0
    for draw in range(DIGIT_DRAWS):
        count = round(LABELLED * nodes)
        known, rest = data.split(count, nodes - count, seed=DIGIT_DRAWS * seed + draw)
        net = network(arm, data.x.shape[1], len(data.names), DIGIT_PICKED, DIGIT_DRAWS * seed + draw)
        task = NodeTask(data.x, data.graph, known, data.labels[known])
        _trained(net, repeat(task), DIGIT_STEPS, step)
        total += _accuracy(net, NodeTask(data.x, data.graph, rest, data.labels[rest]))
    return {"accuracy": total / DIGIT_DRAWS}


def seconds() -> Values:
    """Forward time of the attention by how many nodes are picked."""
    import torch

    from attlas.graph import Graph
    from attlas.layers import TopAttention

    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=TIMED_NODES)
    x, found = torch.randn(TIMED_NODES, WIDTH), {}
    for picked in TIMED_PICKED:
        layer = TopAttention(WIDTH, picked=picked)
        with torch.no_grad():
            times = []
            for _ in range(TIMES + 1):
                begun = time.perf_counter()
                layer(x, graph)
                times.append(time.perf_counter() - begun)
        found[f"ms at m = {picked}"] = 1000 * min(times[1:])
    return found


def measure(seed: int, *, long: bool, folder: Path, step: Callable[[str], None]) -> Values:
    """Accuracies of every arm on both tasks, and the times."""
    steps = HUB_STEPS * (4 if long else 1)
    values: dict[str, float] = {}
    for arm in ARMS:
        say = named(step, arm)
        kept = remember(folder, f"hubs-{arm}", partial(hubs, arm, seed, steps, say))
        values[f"hubs, {arm}"] = kept["accuracy"]
        if arm in ON_DIGITS:
            kept = remember(folder, f"digits-{arm}", partial(digits, arm, seed, say))
            values[f"digits, {arm}"] = kept["accuracy"]
    return values | dict(remember(folder, "seconds", seconds))


def judge(runs: Sequence[Values]) -> Verdict:
    """By the rule; differences of digits count beyond both spreads."""
    table = spread(runs)
    mean = {arm: table[f"hubs, {arm}"]["mean"] for arm in ARMS}
    told = _told(table)
    if max(mean["full"], mean["top"]) < FULL:
        return Verdict("not shown at this scale", f"No attention learns the hubs: {told}")
    if mean["messages"] > NEAR_CHANCE:
        return Verdict("not shown at this scale", f"The hubs are not far enough for messages: {told}")
    top, alone = table["digits, top"], table["digits, messages"]
    rules = {
        f"top-m within {NEAR_FULL} of full attention": mean["top"] >= mean["full"] - NEAR_FULL,
        "top-m above random-m": mean["top"] - mean["random"]
        > table["hubs, top"]["sd"] + table["hubs, random"]["sd"],
        "digits: top-m not below messages": top["mean"] - alone["mean"] >= -(top["sd"] + alone["sd"]),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    return Verdict("holds", told)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(task: str, arms: Sequence[str]) -> str:
        return ", ".join(
            f"{arm} {table[f'{task}, {arm}']['mean']:.3f} ± {table[f'{task}, {arm}']['sd']:.3f}"
            for arm in arms
        )

    times = ", ".join(f"{table[f'ms at m = {m}']['mean']:.1f} ms at m = {m}" for m in TIMED_PICKED)
    hub_row, digit_row = row("hubs", ARMS), row("digits", ON_DIGITS)
    return f"Hubs: {hub_row} (chance {CHANCE}). Digits: {digit_row}. Attention: {times}."


CLAIM = Claim(
    says=(
        "Beside the messages of its neighbours every node attends to the m nodes of the graph that an "
        "auxiliary vector picks: what stands far away is reached at a cost linear in m."
    ),
    rule=(
        "Distant hubs, unseen graphs, means over the seeds: top-m is at most "
        f"{NEAR_FULL} below attention to all nodes, and above attention to as many random nodes by more than "
        "both standard deviations. Digits: top-m is not below messages alone by more than both standard "
        f"deviations. Nothing is shown where neither top-m nor full attention reaches {FULL} on hubs, or "
        f"messages alone are above {NEAR_CHANCE}. Times are told, not judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
