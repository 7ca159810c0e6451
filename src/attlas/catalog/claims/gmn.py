"""GMN's claim: the class of the opposite node of a ring, against message passing of two depths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attlas.catalog.claim import Claim, Values, Verdict, named, remember, spread

__all__ = ["CLAIM"]

WIDTH, CLASSES, RATE = 32, 5, 5e-3
SIZES, LONG_SIZES = (6, 8, 10), (6, 8, 10, 12)
RINGS, LONG_RINGS, TESTED, BATCH = 400, 2000, 100, 20
EPOCHS, LONG_EPOCHS = 8, 20
WALKS, REPEATS = 8, 2
MIDDLE = 8
ABLATED = ("without node scan", "one direction", "random order")
ARMS = ("GIN of depth 2", "GIN of depth r/2", "GMN")
CHANCE, FAR = 1 / CLASSES, 0.2
SETTINGS = {
    "task": f"rings of {SIZES} nodes, {CLASSES} classes on all nodes, every node tells the opposite one's",
    "rings": f"{RINGS} to train, {TESTED} to test, batches of {BATCH}, {EPOCHS} epochs",
    "GMN": f"one layer, width {WIDTH}, m = r, M = {WALKS}, s = {REPEATS}, a GIN layer on each token",
    "GIN": f"width {WIDTH}, depth 2 and r/2, batch norm, residual",
    "learning rate": RATE,
    "long": f"sizes {LONG_SIZES}, {LONG_RINGS} rings, {LONG_EPOCHS} epochs",
}


def network(arm: str, size: int, features: int, seed: int) -> Any:
    """The net of an arm for rings of `size` nodes; called with (x, graph, tokens)."""
    import torch
    from torch import nn

    from attlas.layers import GIN, ForwardMamba, GMNLayer, SubgraphEncoder
    from attlas.models import GMN

    class Messages(nn.Module):
        """x + GIN(x), `depth` times, between linear maps."""

        def __init__(self, depth: int) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(features, WIDTH), nn.Linear(WIDTH, CLASSES)
            self.layers = nn.ModuleList(GIN(WIDTH) for _ in range(depth))

        def forward(self, x: Any, graph: Any, tokens: Any = None) -> Any:
            h = self.into(x)
            for layer in self.layers:
                h = h + layer(h, graph)
            return self.head(h)

    def layer(width: int) -> GMNLayer:
        options: dict[str, Any] = {"scan": ForwardMamba} if arm == "one direction" else {}
        return GMNLayer(
            width,
            encoder=SubgraphEncoder([GIN(width, norm=nn.Identity)]),
            walks=WALKS,
            length=size,
            repeats=REPEATS,
            nodes=arm != "without node scan",
            ordered=arm != "random order",
            **options,
        )

    torch.manual_seed(seed)
    if arm.startswith("GIN"):
        return Messages(2 if arm == "GIN of depth 2" else size // 2)
    return GMN(features, WIDTH, CLASSES, make_layer=layer)


def trained(
    arm: str,
    size: int,
    seed: int,
    rings: int,
    epochs: int,
    step: Callable[[str], None],
    *,
    alone: bool = False,
) -> Values:
    """Share of asked nodes of unseen rings that are told right. alone: one node carries a class."""
    import torch
    from torch.nn import functional

    from attlas.graph import walk_tokens
    from attlas.tasks import ring_transfer, shuffled
    from attlas.train import Recipe, fit

    def drawn(count: int, first: int) -> list[tuple[Any, Any]]:
        """Tasks of BATCH rings each, with their walks: drawn once."""
        found = []
        for number in range(count // BATCH):
            task = ring_transfer(BATCH, size, classes=CLASSES, everywhere=not alone, seed=first + number)
            streams = torch.arange(BATCH) + (first + number) * BATCH
            walks = {"walks": WALKS, "length": size, "repeats": REPEATS}
            needed = not arm.startswith("GIN")
            found.append((task, walk_tokens(task.graph, **walks, streams=streams) if needed else None))
        return found

    def answer(net: Any, one: tuple[Any, Any]) -> Any:
        task, tokens = one
        return net(task.x, task.graph, tokens=tokens)[task.asked]

    def loss(net: Any, one: tuple[Any, Any]) -> Any:
        return functional.cross_entropy(answer(net, one), one[0].labels)

    tasks, tests = drawn(rings, seed * 10**5), drawn(TESTED, seed * 10**5 + 50_000)
    net = network(arm, size, tasks[0][0].x.shape[1], seed)
    order = (tasks[chosen[0]] for chosen in shuffled(len(tasks), 1, seed))
    fit(net, order, loss, Recipe(epochs * len(tasks), learning_rate=RATE), step=step)
    with torch.no_grad():
        right = [(answer(net, one).argmax(1) == one[0].labels).float().mean() for one in tests]
    return {"accuracy": torch.stack(right).mean().item()}


def wanted(long: bool) -> list[tuple[str, int, bool]]:
    """(arm, size, whether one node alone carries a class) of every net."""
    sizes = LONG_SIZES if long else SIZES
    nets = [(arm, size, False) for size in sizes for arm in ARMS]
    nets += [(arm, MIDDLE, False) for arm in ABLATED]
    return nets + [(arm, MIDDLE, True) for arm in ("GIN of depth 2", "GMN")]


def name_of(arm: str, size: int, alone: bool) -> str:
    """The name of a net's accuracy."""
    return f"{arm}, r = {size}{', one source' if alone else ''}"


def mean_over_nodes(seed: int) -> Values:
    """One source: what the mean over a ring's features tells, the control that solves it."""
    from attlas.tasks import ring_transfer

    task = ring_transfer(TESTED, MIDDLE, classes=CLASSES, everywhere=False, seed=seed)
    means = task.x[:, :CLASSES].unflatten(0, (TESTED, MIDDLE)).mean(1)
    return {"accuracy": (means.argmax(1) == task.labels).float().mean().item()}


def measure(seed: int, *, long: bool, folder: Path, step: Callable[[str], None]) -> Values:
    """The accuracy of every net."""
    rings, epochs = (LONG_RINGS, LONG_EPOCHS) if long else (RINGS, EPOCHS)
    values: dict[str, float] = {"mean over nodes, one source": mean_over_nodes(seed)["accuracy"]}
    for arm, size, alone in wanted(long):
        name = name_of(arm, size, alone)
        kept = remember(
            folder,
            name.replace("/", " of ").replace(" ", "-").replace(",", "").replace("=", ""),
            partial(trained, arm, size, seed, rings, epochs, named(step, name), alone=alone),
        )
        values[name] = kept["accuracy"]
    return values


def judge(runs: Sequence[Values]) -> Verdict:
    """By the rule."""
    table = spread(runs)
    told = _told(table)
    own, shallow = (table[name_of(arm, MIDDLE, False)] for arm in ("GMN", "GIN of depth 2"))
    near = table[name_of("GMN", SIZES[0], False)]
    if near["mean"] < CHANCE + FAR:
        return Verdict("not shown at this scale", f"GMN does not learn rings of {SIZES[0]}: {told}")
    rules = {
        f"GMN at least {FAR} above chance at r = {MIDDLE}": own["mean"] >= CHANCE + FAR,
        f"GMN above GIN of depth 2 at r = {MIDDLE}": own["mean"] - shallow["mean"]
        > own["sd"] + shallow["sd"],
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    return Verdict("holds", told)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def one(name: str) -> str:
        return f"{table[name]['mean']:.3f} ± {table[name]['sd']:.3f}"

    sizes = [size for size in LONG_SIZES if name_of("GMN", size, False) in table]
    rows = "; ".join(
        f"r = {size}: " + ", ".join(f"{arm} {one(name_of(arm, size, False))}" for arm in ARMS)
        for size in sizes
    )
    ablated = ", ".join(f"{arm} {one(name_of(arm, MIDDLE, False))}" for arm in ABLATED)
    source = ", ".join(f"{arm} {one(name_of(arm, MIDDLE, True))}" for arm in ("GIN of depth 2", "GMN"))
    return (
        f"{rows} (chance {CHANCE}). GMN at r = {MIDDLE} {ablated}. One source, r = {MIDDLE}: {source}, mean "
        f"over nodes {one('mean over nodes, one source')}."
    )


CLAIM = Claim(
    says=(
        "Random-walk neighbourhoods as tokens of a bidirectional selective scan carry information over "
        "distances that message passing of usual depth does not, without positional encodings."
    ),
    rule=(
        f"Ring transfer with classes on all nodes, means over the seeds, unseen rings: at r = {MIDDLE} GMN "
        f"is at least {FAR} above chance ({CHANCE}) and above GIN of depth 2, which cannot see the opposite "
        "node, by more than both standard deviations. Nothing is shown where GMN is not as much above chance "
        f"at r = {SIZES[0]}. GIN of depth r/2, the honest baseline, the ablations and the rings with one "
        "source are told, not judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
