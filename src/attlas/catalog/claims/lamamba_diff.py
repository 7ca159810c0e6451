"""LaMamba-Diff's claim: scans for the map and windows for its detail do together what attention does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread
from attlas.catalog.claims.maxvit import least_time, slope

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.train.diffusion import NoisyBatch

__all__ = ["CLAIM", "judge", "measure"]

NAMES = ("lamamba", "scan", "window", "full")
SIDE, WINDOW, WIDTH, HEADS, LAYERS, RATIO = 16, 4, 32, 4, 2, 4
STEPS, LONG_STEPS, BATCH = 120, 2000, 16
TRAIN, TESTED, LEVELS = 1400, 256, 4
CLOSE, LINEAR = 1.05, 1.25
TIMED = (16, 32, 64)
TIMED_FULL = (16, 32, 48)
SETTINGS = {
    "data": f"scikit-learn digits enlarged to {SIDE} x {SIDE}, -1 .. 1, with their labels; {TRAIN} train",
    "model": f"{LAYERS} blocks, width {WIDTH}, {HEADS} heads, windows of {WINDOW}, no U-Net, S = 1",
    "nets": "every block has two mixers and an MLP: scan and shifted window; two scans; two windows (plain, "
    "shifted); two windows that are the whole map. MLPs make up for what the mixers' parameters differ by",
    "steps": f"{STEPS} of {BATCH} ({LONG_STEPS} with --long), AdamW",
    "validation": f"{TESTED} other digits at {LEVELS} fixed noise levels each",
    "objective": "DDPM, 1000 linear steps, noise and learned variances, labels dropped for a tenth",
    "timed_sides": list(TIMED),
}


def mixers(name: str, layer: int) -> list[nn.Module]:
    """The two mixers of a block."""
    from attlas.layers import SS2D, ShiftedWindowAttention

    def windows(shift: int) -> nn.Module:
        return ShiftedWindowAttention(WIDTH, heads=HEADS, window=WINDOW, shift=shift)

    def whole() -> nn.Module:
        return ShiftedWindowAttention(WIDTH, heads=HEADS, window=SIDE)

    half = WINDOW // 2
    made: dict[str, Callable[[], list[nn.Module]]] = {
        "lamamba": lambda: [SS2D(WIDTH), windows(layer % 2 * half)],
        "scan": lambda: [SS2D(WIDTH), SS2D(WIDTH)],
        "window": lambda: [windows(0), windows(half)],
        "full": lambda: [whole(), whole()],
    }
    return made[name]()


def network(name: str, seed: int) -> nn.Module:
    """The named denoiser; all have as many parameters, up to a column of the MLPs."""
    import torch

    from attlas.layers import ModulatedBlock
    from attlas.models import LaMambaDenoiser

    torch.manual_seed(seed)
    wanted = sum(_size(part) for part in mixers("lamamba", 0)) + 2 * RATIO * WIDTH**2 + RATIO * WIDTH

    def block(layer: int) -> nn.Module:
        parts = mixers(name, layer)
        inner = max(1, round((wanted - sum(_size(part) for part in parts)) / (2 * WIDTH + 1)))
        mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, inner), torch.nn.GELU(), torch.nn.Linear(inner, WIDTH)
        )
        return ModulatedBlock(WIDTH, WIDTH, [*parts, mlp], project=False)

    return LaMambaDenoiser(size=SIDE, width=WIDTH, layers=LAYERS, block=block)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((images, labels) to train, to test), of different digits."""
    from torch.nn import functional

    from attlas.tasks import digits_on_canvas

    def enlarged(small: Tensor) -> Tensor:
        large = functional.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2 * large - 1

    train, test = digits_on_canvas(8, step=None, train=TRAIN, test=TESTED, seed=seed)
    return (enlarged(train.images), train.labels), (enlarged(test.images), test.labels)


def held_out(found: tuple[Tensor, Tensor], seed: int) -> Iterator[NoisyBatch]:
    """Every image at one level of each quarter of the steps, with noise that is the same for all nets."""
    import torch

    from attlas.train.diffusion import Diffusion, NoisyBatch

    generator = torch.Generator().manual_seed(10_000 + seed)
    steps = Diffusion().steps // LEVELS
    for level in range(LEVELS):
        for x, label in zip(*(part.split(64) for part in found), strict=True):
            t = level * steps + torch.randint(0, steps, label.shape, generator=generator)
            yield NoisyBatch(x, t, torch.randn(x.shape, generator=generator), label)


def error(name: str, seed: int, steps: int, step: Step) -> Values:
    """Mean squared error of the noise on unseen digits."""
    import torch

    from attlas.tasks import Labelled
    from attlas.train import Recipe, fit
    from attlas.train.diffusion import Diffusion

    train, test = images(seed)
    diffusion, net = Diffusion(), network(name, seed)
    batches = diffusion.batches(Labelled(*train).batches(BATCH, seed), 1_000 + seed, classes=10)
    fit(net, batches, diffusion.loss, Recipe(steps, weight_decay=0.0), step=step)
    with torch.no_grad():
        errors = [diffusion.noise_error(net, batch).item() * len(batch.t) for batch in held_out(test, seed)]
    return {f"error, {name}": sum(errors) / (LEVELS * len(test[1]))}


def times(seed: int) -> Values:
    """Exponent of the CPU time of a block over the number of tokens, and of whole attention beside it."""
    import torch

    from attlas.layers import ModulatedBlock, ShiftedWindowAttention, lamamba_block

    torch.manual_seed(seed)
    condition = torch.randn(1, WIDTH)
    found: dict[str, float] = {}
    block = lamamba_block(WIDTH, WIDTH, heads=HEADS, window=WINDOW, project=False)

    def full(side: int) -> nn.Module:
        attention = ShiftedWindowAttention(WIDTH, heads=HEADS, window=side)
        return ModulatedBlock(WIDTH, WIDTH, [attention], project=False)

    with torch.no_grad():
        for name, nets in (
            ("lamamba", dict.fromkeys(TIMED, block)),
            ("full", {side: full(side) for side in TIMED_FULL}),
        ):
            took = {
                side**2: least_time(partial(net, condition=condition), torch.randn(1, side, side, WIDTH))
                for side, net in nets.items()
            }
            found |= {f"ms at {tokens} tokens, {name}": 1e3 * seconds for tokens, seconds in took.items()}
            found[f"exponent, {name}"] = slope(took)
    return found


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Four nets, and how the time of a block grows."""
    found: dict[str, float] = {}
    for name in NAMES:

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        found |= remember(
            folder, f"net-{name}", partial(error, name, seed, LONG_STEPS if long else STEPS, say)
        )
    step("time")
    found |= remember(folder, "time", partial(times, seed))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim: close to full attention; ahead of both parts by more than the spread."""
    table = spread(runs)
    close = table["error, lamamba"]["mean"] / table["error, full"]["mean"]
    ahead = {name: [run[f"error, {name}"] - run["error, lamamba"] for run in runs] for name in NAMES[1:3]}
    gain = {name: (statistics.fmean(ones), _deviation(ones)) for name, ones in ahead.items()}
    exponent = table["exponent, lamamba"]["mean"]
    failed = [f"within {CLOSE} of full attention's error"] if close > CLOSE else []
    failed += [f"better than {name} alone" for name, (mean, sd) in gain.items() if mean < -sd]
    failed += [f"time grows with an exponent of at most {LINEAR}"] if exponent > LINEAR else []
    measured = _told(table, gain)
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    unclear = [name for name, (mean, sd) in gain.items() if mean <= sd]
    if unclear:
        return Verdict(
            "not shown at this scale",
            f"{measured} The difference to {' and '.join(unclear)} alone is within the spread of the seeds.",
        )
    return Verdict("holds", measured)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _told(table: Mapping[str, Mapping[str, float]], gain: Mapping[str, tuple[float, float]]) -> str:
    errors = ", ".join(
        f"{name} {table[f'error, {name}']['mean']:.4f} ± {table[f'error, {name}']['sd']:.4f}"
        for name in NAMES
    )
    gains = ", ".join(f"{name} {mean:+.4f} ± {sd:.4f}" for name, (mean, sd) in gain.items())
    took = "; ".join(
        f"{name} "
        + ", ".join(f"{table[f'ms at {side**2} tokens, {name}']['mean']:.1f} ms at {side}²" for side in sides)
        + f", exponent {table[f'exponent, {name}']['mean']:.2f}"
        for name, sides in (("lamamba", TIMED), ("full", TIMED_FULL))
    )
    return f"Noise error: {errors}. Above LaMamba's, seed by seed: {gains}. CPU time of a block: {took}."


CLAIM = Claim(
    says=(
        "A block of a selective scan along four paths and of shifted windows denoises as well as full "
        "attention and better than either part alone, in time linear in the tokens."
    ),
    rule=(
        f"Class-conditional denoising of digits at {SIDE} x {SIDE}, four nets of equal size and two mixers a "
        "block, mean squared error of the noise on unseen digits: LaMamba's mean is at most "
        f"{CLOSE} of full attention's, and below scans alone and windows alone by more than the standard "
        "deviation of the difference over the seeds; the CPU time of its block grows from "
        f"{TIMED[0]}² to {TIMED[-1]}² tokens with an exponent of at most {LINEAR} (mean). Not shown where a "
        "difference to a part is within that deviation; it does not hold where the part is better by more."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
