"""MaxViT's claim: block and grid attention together see the whole map, at a cost linear in its size."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

__all__ = ["CLAIM", "judge", "least_time", "measure", "slope"]

KINDS = {
    "block and grid": ("block", "grid", "block", "grid"),
    "grid": ("grid",) * 4,
    "block": ("block",) * 4,
}
STEPS, BATCH, TRAIN, TEST = 600, 64, 6000, 1000
LONG_STEPS = 1200
# The corner's window of 4 x 4 tokens touches (4/7)^2 of the places; elsewhere one guess in ten is right.
LOCAL_SHARE = (4 / 7) ** 2 + 0.1 * (1 - (4 / 7) ** 2)
CLEAR, TRAINED, LINEAR = 0.1, 0.5, 1.25
SIDES, DENSE_SIDES = (32, 48, 64, 96, 128), (32, 48, 64)
REPEATS = 7
SETTINGS = {
    "data": "one digit at a multiple of 4 pixels on 32 x 32, patches of 4 x 4",
    "train": TRAIN,
    "test": TEST,
    "steps": STEPS,
    "batch": BATCH,
    "window": 4,
    "width": 48,
    "heads": 4,
    "layers": 4,
    "learning_rate": 3e-3,
    "timed_sides": list(SIDES),
    "first_seed": 0,
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Test accuracy at the corner token of the three nets, and how time grows with the number of tokens."""
    values: dict[str, float] = {}
    for name in KINDS:
        values |= remember(folder, name.replace(" ", "-"), partial(_trained, seed, name, long, step))
    step("time")
    values |= remember(folder, "time", partial(_times, seed))
    return values


def _trained(seed: int, name: str, long: bool, step: Step) -> Values:
    import torch

    from attlas.models import small_maxvit
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(32, step=4, train=TRAIN, test=TEST, seed=seed)
    torch.manual_seed(seed)
    net = small_maxvit(KINDS[name])
    recipe = Recipe(steps=LONG_STEPS if long else STEPS, warm_up=50)
    fit(net, train.batches(BATCH, seed), label_loss, recipe, step=lambda text: step(f"{name}: {text}"))
    with torch.no_grad():
        found = torch.cat([net(part) for part in test.images.split(200)]).argmax(-1)
    return {f"accuracy {name}": float((found == test.labels).double().mean())}


def _times(seed: int) -> Values:
    """Exponent of the time of one forward pass over the number of tokens, beside dense attention's."""
    import torch

    from attlas.layers import PartitionAttention, SelfAttention, block_partition, grid_partition

    torch.manual_seed(seed)
    found = {}
    with torch.no_grad():
        for name, partition in (("block", block_partition(4)), ("grid", grid_partition(4))):
            layer = PartitionAttention(48, partition, head_width=12)
            maps = {side: torch.randn(1, side, side, 48) for side in SIDES}
            found[f"exponent {name}"] = slope({side**2: least_time(layer, maps[side]) for side in SIDES})
        dense = SelfAttention(48, 4)
        lines = {side: torch.randn(1, side**2, 48) for side in DENSE_SIDES}
        found["exponent dense"] = slope({side**2: least_time(dense, lines[side]) for side in DENSE_SIDES})
    return found


def least_time(layer: Callable[[Any], object], x: Any) -> float:
    """Seconds of CPU time, which other work on the machine changes least."""
    layer(x)
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        layer(x)
        times.append(time.process_time() - begun)
    return min(times)


def slope(times: Mapping[int, float]) -> float:
    """The exponent p of time = c * tokens^p, by least squares of the logarithms."""
    at, took = [math.log(tokens) for tokens in times], [math.log(seconds) for seconds in times.values()]
    return statistics.linear_regression(at, took).slope


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim."""
    table = spread(runs)
    measured = _told(table)
    if table["accuracy block and grid"]["mean"] < TRAINED:
        return Verdict("not shown at this scale", f"The net of both was not trained enough: {measured}")
    over_grid = min(run["accuracy block and grid"] - run["accuracy grid"] for run in runs)
    over_block = min(run["accuracy grid"] - run["accuracy block"] for run in runs)
    largest = max(table[f"exponent {name}"]["mean"] for name in ("block", "grid"))
    rules = {
        f"both at least {CLEAR} above grid alone with every seed": over_grid >= CLEAR,
        "grid alone above block alone with every seed": over_block > 0,
        f"block alone within {CLEAR} of its share": (table["accuracy block"]["mean"] <= LOCAL_SHARE + CLEAR),
        f"time grows with an exponent of at most {LINEAR}": largest <= LINEAR,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        measured = f"{measured} Not met: {'; '.join(failed)}."
    return Verdict("does not hold" if failed else "holds", measured[:1].upper() + measured[1:])


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    accuracies = ", ".join(
        f"{name} {table[f'accuracy {name}']['mean']:.3f} ± {table[f'accuracy {name}']['sd']:.3f}"
        for name in KINDS
    )
    exponents = ", ".join(
        f"{name} {table[f'exponent {name}']['mean']:.2f}" for name in ("block", "grid", "dense")
    )
    return (
        f"accuracy at the corner token: {accuracies} (a window of the corner alone can reach "
        f"{LOCAL_SHARE:.2f}); time grows with the tokens to the power of: {exponents}."
    )


CLAIM = Claim(
    says=(
        "Block attention and dilated grid attention in turn mix a whole map, which neither does alone, in "
        "time linear in its size."
    ),
    rule=(
        "One digit at a random multiple of 4 pixels on 32 x 32 canvases, 8 x 8 tokens, four attention layers "
        "with windows of 4 x 4 and no convolution, class read at the corner token, nets of equal size: "
        f"block and grid in turn are at least {CLEAR} above grid alone, and grid alone above block alone, "
        f"with every seed; block alone stays within {CLEAR} of the {LOCAL_SHARE:.2f} that its window shows "
        f"(mean); the CPU time of a layer grows from {SIDES[0]}^2 to {SIDES[-1]}^2 tokens with an exponent "
        f"of at most {LINEAR} (mean). Not shown if the net of both stays below {TRAINED:.0%}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
