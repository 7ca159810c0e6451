"""HaloNet's claim: accuracy rises with the halo, and blocks are faster than a window gathered per pixel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLAIM", "judge", "measure", "per_pixel"]

HALOS = (0, 1, 2)
# On 16 x 16 pixels 44 % of what a halo of 2 adds up to lies beyond the border; the card tells what came out.
SIDE, STEPS, LONG_STEPS = 24, 375, 1250
BATCH, TRAIN, TEST = 64, 4000, 1000
GAIN, FASTER, TRAINED = 0.05, 3.0, 0.5
# (side of the map, block, halo): the small net's and the paper's.
SPEEDS = ((48, 4, 2), (64, 8, 3))
REPEATS = 7
SETTINGS = {
    "data": "digits at random even places, patches of 2 x 2",
    "canvas": SIDE,
    "train": TRAIN,
    "test": TEST,
    "steps": STEPS,
    "batch": BATCH,
    "halos": list(HALOS),
    "block": 4,
    "width": 32,
    "heads": 4,
    "layers": 3,
    "learning_rate": 3e-3,
    "speed_maps": [list(speed) for speed in SPEEDS],
    "first_seed": 0,
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Test accuracy for every halo, and how many times faster blocks are than windows per pixel."""
    values: dict[str, float] = {}
    for halo in HALOS:
        values |= remember(folder, f"halo-{halo}", partial(_trained, seed, halo, long, step))
    step("speed")
    values |= remember(folder, "speed", partial(_speeds, seed))
    return values


def _trained(seed: int, halo: int, long: bool, step: Step) -> Values:
    import torch

    from attlas.models import small_halonet
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(SIDE, step=2, train=TRAIN, test=TEST, seed=seed)
    torch.manual_seed(seed)
    net = small_halonet(halo=halo)
    recipe = Recipe(steps=LONG_STEPS if long else STEPS, warm_up=50)
    fit(net, train.batches(BATCH, seed), label_loss, recipe, step=lambda text: step(f"halo {halo}: {text}"))
    with torch.no_grad():
        found = torch.cat([net(part) for part in test.images.split(200)]).argmax(-1)
    parameters = sum(part.numel() for part in net.parameters())
    return {
        f"accuracy halo {halo}": float((found == test.labels).double().mean()),
        f"parameters halo {halo}": float(parameters),
    }


def per_pixel(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    """Local attention as a size x size window gathered around every pixel; maps (B, H, W, heads, D).

    The baseline: the same number of keys for each query as a patch of this side, zeros beyond the border.
    """
    from torch.nn import functional

    batch, height, width, heads, depth = query.shape
    before, after = size // 2, size - 1 - size // 2

    def gathered(keys: Tensor) -> Tensor:
        padded = functional.pad(keys.flatten(3), (0, 0, before, after, before, after))
        cut = padded.unfold(1, size, 1).unfold(2, size, 1).unflatten(3, (heads, -1))
        return cut.flatten(5).mT.reshape(batch * height * width * heads, size * size, -1)

    asked = query.reshape(-1, 1, depth) * depth**-0.5
    weights = (asked @ gathered(key).mT).softmax(-1)
    return (weights @ gathered(value)).view(batch, height, width, heads, -1)


def _speeds(seed: int) -> Values:
    import torch

    from attlas.layers import halo_attention

    found = {}
    for side, block, halo in SPEEDS:
        generator = torch.Generator().manual_seed(seed)
        query, key, value = (
            torch.randn(1, side, side, 4, 8, generator=generator).requires_grad_() for _ in range(3)
        )
        single = partial(per_pixel, query, key, value, block + 2 * halo)
        blocked = partial(halo_attention, query, key, value, block=block, halo=halo)
        where = f"block {block} halo {halo}"
        with torch.no_grad():
            found[f"times faster {where}"] = _least(single) / _least(blocked)
        found[f"times faster in training {where}"] = _least(_with_backward(single)) / _least(
            _with_backward(blocked)
        )
    return found


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: run().sum().backward()


def _least(run: Callable[[], object]) -> float:
    """Seconds of CPU time, which other work on the machine changes least."""
    run()
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim."""
    table = spread(runs)
    measured = _told(table)
    if max(table[f"accuracy halo {halo}"]["mean"] for halo in HALOS) < TRAINED:
        return Verdict("not shown at this scale", f"No net learned the digits: {measured}")
    means = [table[f"accuracy halo {halo}"]["mean"] for halo in HALOS]
    least = min(run["accuracy halo 2"] - run["accuracy halo 0"] for run in runs)
    slowest = min(table[name]["least"] for name in table if name.startswith("times faster block"))
    rules = {
        "accuracy rises with the halo": means[0] < means[1] < means[2],
        f"halo 2 at least {GAIN} above halo 0 with every seed": least >= GAIN,
        f"at least {FASTER:g} times faster with every seed": slowest >= FASTER,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        measured = f"{measured} Not met: {'; '.join(failed)}."
    return Verdict("does not hold" if failed else "holds", measured[:1].upper() + measured[1:])


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    accuracies = ", ".join(
        f"{table[f'accuracy halo {halo}']['mean']:.3f} ± {table[f'accuracy halo {halo}']['sd']:.3f} "
        f"with halo {halo}"
        for halo in HALOS
    )
    speeds = ", ".join(
        f"{table[f'times faster block {block} halo {halo}']['mean']:.1f} times (training "
        f"{table[f'times faster in training block {block} halo {halo}']['mean']:.1f}) with block {block}, "
        f"halo {halo}"
        for _, block, halo in SPEEDS
    )
    return f"accuracy {accuracies}; faster than a window per pixel by {speeds}."


CLAIM = Claim(
    says=(
        "Local attention gains accuracy with the size of its halo, and blocks of queries that share one "
        "patch of keys compute it faster than a window gathered for each pixel."
    ),
    rule=(
        f"Digits at random even places on {SIDE} x {SIDE} canvases in patches of 2 x 2, three layers of halo "
        "attention with block 4 and no convolution, nets equal but for the position tables: mean test "
        "accuracy over the seeds rises from halo 0 to 1 to 2, and halo 2 "
        f"is at least {GAIN} above halo 0 with every seed; one forward pass of blocks is at least "
        f"{FASTER:g} times faster than a gather per pixel of as many keys, for both maps and every seed "
        "(CPU time; that in training is told, not judged). Not shown if no net reaches "
        f"{TRAINED:.0%}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
