"""The mesh transformer's claim: attention along links is faster than messages, and farther links help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

    from attlas.graph import Graph
    from attlas.models.mesh_simulator import MeshSimulator
    from attlas.tasks.flows import Flow
    from attlas.tasks.meshes import Mesh

__all__ = ["CLAIM", "judge", "measure"]

NEAR, TWO, DILATED, MESSAGES = "1 hop", "1 and 2 hops", "1 and 3 hops", "MeshGraphNet"
ARMS = (NEAR, TWO, DILATED, MESSAGES)
STILL = "nothing changes"
WIDTH, HEADS, LAYERS, ENDS = 32, 4, 4, 2
NODES, TRAINED, TESTED, LENGTH = (300, 400), 40, 5, 20
STEPS, BATCH, RATE, NOISE, LONG_STEPS = 800, 6, 5e-3, 0.005, 4000
TURNS = 7
FASTER = 2.0
SETTINGS = {
    "data": f"advection and diffusion (finite elements) on Delaunay meshes of {NODES[0]}-{NODES[1]} nodes "
    f"around a disc, a mesh, inflow angle and sources for each of {TRAINED} training and {TESTED} test flows "
    f"of {LENGTH} steps",
    "nets": f"{LAYERS} blocks, width {WIDTH}, {HEADS} heads; inputs: field, velocity, source, place, kind",
    "training": f"{STEPS} steps of {BATCH} meshes ({LONG_STEPS} with --long), noise {NOISE}; "
    "MeshGraphNet as many as take the same CPU time, measured in turns",
    "links": "1 hop; 1 and 2; 1 and 3 (dilated)",
    "trivial arm": f"'{STILL}': the state before, in rollouts the first one",
    "long": "also a rollout on the airfoil mesh of 4,253 nodes, unseen, and a training step's time there; "
    "speeds at its sharp edges are limited",
}


def linked(arm: str, mesh: Mesh) -> Graph:
    """The links of an arm on a mesh."""
    from attlas.graph.links import at_distances, k_hop

    if arm == TWO:
        return k_hop(mesh.graph, 2)
    return at_distances(mesh.graph, {1, 3}) if arm == DILATED else mesh.graph


def flows(seed: int) -> tuple[list[Flow], list[Flow]]:
    """Trajectories to train and to test with, of different meshes."""
    import numpy as np

    from attlas.tasks.flows import simulate_flow
    from attlas.tasks.meshes import delaunay_mesh

    generator = np.random.default_rng(seed)
    found = []
    for _ in range(TRAINED + TESTED):
        own, nodes = int(generator.integers(2**31)), int(generator.integers(NODES[0], NODES[1] + 1))
        found.append(simulate_flow(delaunay_mesh(nodes, seed=own), seed=own + 1, steps=LENGTH))
    return found[:TRAINED], found[TRAINED:]


def network(arm: str, seed: int) -> MeshSimulator:
    """A simulator with the net of an arm: 6 channels of field and inputs, and the kinds of nodes."""
    import torch

    from attlas.models.mesh_graph_net import MeshGraphNet
    from attlas.models.mesh_simulator import MeshSimulator
    from attlas.models.mesh_transformer import MeshTransformer
    from attlas.tasks.flows import NODE_KINDS

    torch.manual_seed(seed)
    inputs = 1 + 5 + NODE_KINDS
    net = (
        MeshGraphNet(inputs, 1, width=WIDTH, layers=LAYERS, ends=4)
        if arm == MESSAGES
        else MeshTransformer(inputs, 1, width=WIDTH, heads=HEADS, layers=LAYERS, ends=ENDS)
    )
    return MeshSimulator(net, fields=1, others=5, kinds=NODE_KINDS, noise=NOISE)


def given(arm: str, flow: Flow) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs beside the state, kinds of nodes, and positions where links have features."""
    import torch

    others = torch.cat([flow.others, flow.positions], 1)
    return others, flow.kind, flow.positions if arm == MESSAGES else None


def batches(arm: str, training: Sequence[Flow], seed: int) -> Iterator[Sequence[Tensor | Graph | None]]:
    """Endless arguments of `MeshSimulator.loss`: BATCH moments of random flows, side by side."""
    import torch

    from attlas.graph import batch

    links = [linked(arm, flow.mesh) for flow in training]
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(0, len(training), (BATCH,), generator=generator).tolist()
        times = torch.randint(0, LENGTH, (BATCH,), generator=generator).tolist()
        rows = []
        for flow, at in zip((training[at] for at in chosen), times, strict=True):
            others, kind, positions = given(arm, flow)
            place = flow.positions if positions is None else positions
            rows.append((flow.states[at], flow.states[at + 1], others, kind, flow.counted, place))
        state, following, others, kind, counted, place = (torch.cat(part) for part in zip(*rows, strict=True))
        graph = batch([links[at] for at in chosen])
        yield state, following, others, kind, counted, graph, place if arm == MESSAGES else None


def training_times(seed: int, training: Sequence[Flow]) -> Values:
    """CPU seconds of a training step of each arm on batches of its own, in turns."""
    import time

    from attlas._common.measuring import in_turns

    def runner(arm: str) -> Callable[[], None]:
        simulator, source = network(arm, seed).train(), batches(arm, training, seed)

        def run() -> None:
            simulator.zero_grad(set_to_none=True)
            _loss(simulator, next(source)).backward()

        return run

    spent = in_turns([runner(arm) for arm in ARMS], times=TURNS, clock=time.process_time)
    return {f"milliseconds a step, {arm}": 1000 * one for arm, one in zip(ARMS, spent, strict=True)}


def errors(arm: str, simulator: MeshSimulator, tested: Sequence[Flow]) -> tuple[float, float]:
    """(1-step RMSE, all-rollout RMSE), means over the flows."""
    import torch

    from attlas.models.mesh_simulator import all_rollout_error, rollout

    single, rolled = [], []
    for flow in tested:
        links = linked(arm, flow.mesh)
        others, kind, positions = given(arm, flow)

        def step(state: Tensor, others: Tensor = others, kind: Tensor = kind, links: Graph = links,
                 positions: Tensor | None = positions) -> Tensor:  # fmt: skip
            found: Tensor = simulator(state, others, kind, links, positions)
            return found

        with torch.no_grad():
            each = torch.stack([flow.states[0], *(step(state) for state in flow.states[:-1])])
        single.append(all_rollout_error(each, flow.states, flow.counted))
        rolled.append(all_rollout_error(rollout(step, flow.states, ~flow.counted), flow.states, flow.counted))
    return sum(single) / len(single), sum(rolled) / len(rolled)


def still(seed: int) -> Values:
    """Errors of the trivial forecast: the state before, and in rollouts the first one."""
    import torch

    from attlas.models.mesh_simulator import all_rollout_error

    single, rolled = [], []
    for flow in flows(seed)[1]:
        first = flow.states[:1]
        single.append(all_rollout_error(torch.cat([first, flow.states[:-1]]), flow.states, flow.counted))
        rolled.append(all_rollout_error(first.expand_as(flow.states), flow.states, flow.counted))
    found = {"1-step": sum(single) / len(single), "rollout": sum(rolled) / len(rolled)}
    return {f"{what} RMSE, {STILL}": error for what, error in found.items()}


def trained(arm: str, seed: int, steps: int, long: bool, step: Step) -> Values:
    """Errors of a trained net on unseen meshes."""
    from attlas.tasks.flows import simulate_flow
    from attlas.tasks.meshes import airfoil_mesh
    from attlas.train import Recipe, fit

    training, tested = flows(seed)
    simulator = network(arm, seed)
    # The recipe of the sheet: AdamW with decay 1e-4, warm-up and cosine.
    recipe = Recipe(steps, RATE, warm_up=max(1, steps // 10), weight_decay=1e-4)
    fit(simulator, batches(arm, training, seed), _loss, recipe, step=step)
    single, rolled = errors(arm, simulator, tested)
    found = {f"1-step RMSE, {arm}": single, f"rollout RMSE, {arm}": rolled, f"steps, {arm}": float(steps)}
    if long:
        flow = simulate_flow(airfoil_mesh(), seed=seed, steps=LENGTH)
        found[f"airfoil rollout RMSE, {arm}"] = errors(arm, simulator, [flow])[1]
        found |= {f"airfoil {name}": value for name, value in _one_time(arm, seed, flow).items()}
    return found


def _loss(simulator: Any, batch: Sequence[Tensor | Graph | None]) -> Tensor:
    found: Tensor = simulator.loss(*batch)
    return found


def _one_time(arm: str, seed: int, flow: Flow) -> Values:
    import time

    from attlas._common.measuring import in_turns

    simulator, batch = network(arm, seed).train(), next(batches(arm, [flow], seed))
    spent = in_turns([lambda: _loss(simulator, batch).backward()], times=TURNS, clock=time.process_time)
    return {f"milliseconds a step, {arm}": 1000 * spent[0]}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Times first, since they say how long MeshGraphNet trains; then every arm."""
    step("times of a training step")
    found = dict(remember(folder, "times", lambda: training_times(seed, flows(seed)[0])))
    found |= remember(folder, "still", partial(still, seed))
    steps = LONG_STEPS if long else STEPS
    ratio = found[f"milliseconds a step, {MESSAGES}"] / found[f"milliseconds a step, {NEAR}"]
    for arm in ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        own = max(1, round(steps / ratio)) if arm == MESSAGES else steps
        found |= remember(folder, arm.replace(" ", "-"), partial(trained, arm, seed, own, long, say))
    return found | {"time ratio": ratio}


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    single, rolled = ({arm: table[f"{what} RMSE, {arm}"] for arm in ARMS} for what in ("1-step", "rollout"))
    measured, ratio = _told(table), table["time ratio"]["mean"]

    def above(cells: Mapping[str, Mapping[str, float]], one: str, other: str) -> float:
        """Of differences beyond the larger spread the sign, else 0."""
        gap = cells[one]["mean"] - cells[other]["mean"]
        return gap if abs(gap) > max(cells[one]["sd"], cells[other]["sd"]) else 0.0

    errors = [
        (f"{what} RMSE, {arm}", f"{what} RMSE, {STILL}") for what in ("1-step", "rollout") for arm in ARMS
    ]
    idle = [name for name, trivial in errors if any(run[name] >= run[trivial] for run in runs)]
    if idle:
        return Verdict(
            "not shown at this scale",
            f"{measured} Trained too little, not below '{STILL}' in every seed: {'; '.join(idle)}.",
        )
    failed = []
    if ratio < FASTER:
        failed.append(f"a step {FASTER:g} times as fast")
    if above(single, NEAR, MESSAGES) > 0:
        failed.append("a 1-step error no larger than MeshGraphNet's")
    failed += [
        f"a rollout error with {arm} no larger than with 1 hop"
        for arm in (TWO, DILATED)
        if above(rolled, arm, NEAR) > 0
    ]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    close = [arm for arm in (TWO, DILATED) if above(rolled, arm, NEAR) == 0]
    if close:
        return Verdict(
            "not shown at this scale", f"{measured} Rollouts within the spread of 1 hop: {', '.join(close)}."
        )
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def row(what: str, digits: int) -> str:
        cells = [(arm, table[f"{what}, {arm}"]) for arm in (*ARMS, STILL) if f"{what}, {arm}" in table]
        return ", ".join(f"{arm} {cell['mean']:.{digits}f} ± {cell['sd']:.{digits}f}" for arm, cell in cells)

    airfoil = row("airfoil rollout RMSE", 3)
    times, ratio = row("milliseconds a step", 1), table["time ratio"]["mean"]
    text = (
        f"1-step RMSE: {row('1-step RMSE', 4)}. Rollout RMSE: {row('rollout RMSE', 3)}. "
        f"Milliseconds a step of training: {times}; MeshGraphNet over 1 hop {ratio:.2f}."
    )
    return text + (f" On the airfoil, rollout RMSE: {airfoil}." if airfoil else "")


CLAIM = Claim(
    says=(
        "A transformer masked by the mesh is several times as fast as message passing at the same accuracy, "
        "and links to farther nodes lower the error of long rollouts."
    ),
    rule=(
        "Means over the seeds on unseen meshes, differences beyond the larger spread of the two arms. It "
        f"holds if a training step takes MeshGraphNet at least {FASTER:g} times as long as the mesh "
        "transformer with 1 hop (CPU time, in turns), the 1-step RMSE of the transformer is not above "
        "MeshGraphNet's at equal training time, and its all-rollout RMSE falls with 1 and 2 hops and with 1 "
        "and 3 against 1 hop alone. It does not hold where one of these goes the other way or the factor is "
        "missed; a rollout error within the spread shows nothing. Nothing is shown, either, unless in every "
        f"seed both errors of every net are below those of '{STILL}'."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=7.0,
)
