"""LSSAR's claim: trained short, its loss stays flat where more text stands before the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CLAIM", "judge", "measure"]

ARMS = ("softmax", "softmax, reweighted", "sigmoid", "LSSA", "LSSAR 3", "LSSAR 15")
WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 128
LENGTHS = (128, 256, 512, 1024, 2048)
FAR = (1024, 2048)
BATCH, STEPS, LONG_BATCH, LONG_STEPS = 8, 200, 16, 2000
WINDOWS, LONG_WINDOWS = 12, 64
FLAT = 0.05
SETTINGS = {
    "text": "python-docs, bytes",
    "model": f"SmallLM: {LAYERS} layers, width {WIDTH}, {HEADS} heads, rotary positions",
    "training": f"{STEPS} steps of {BATCH} windows of {LENGTH} bytes ({LONG_STEPS} of {LONG_BATCH} with "
    "--long)",
    "loss": f"the last {LENGTH} bytes of {WINDOWS} held-out windows ({LONG_WINDOWS} with --long), the same "
    f"ones at every length: {', '.join(map(str, LENGTHS))}",
    "powers": "3 and 15; softmax, reweighted: ShiftPower(15) after softmax",
}


def network(arm: str, seed: int) -> nn.Module:
    """One of ARMS; all start from the same weights."""
    import torch

    from attlas.attend import L1, ShiftPower, Softmax, flash_sigmoid, lssa, lssar
    from attlas.layers import SelfAttention
    from attlas.models import SmallLM
    from attlas.pattern import causal

    head = WIDTH // HEADS
    arms: dict[str, Any] = {
        "softmax": {},
        "softmax, reweighted": {"normaliser": Softmax() >> ShiftPower(15.0) >> L1()},
        "sigmoid": {"normaliser": flash_sigmoid(LENGTH)},
        "LSSA": lssa(head),
        "LSSAR 3": lssar(head, 3.0),
        "LSSAR 15": lssar(head, 15.0),
    }

    def mixer(layer: int) -> nn.Module:
        return SelfAttention(WIDTH, HEADS, pattern=causal(), base=10000.0, **arms[arm])

    torch.manual_seed(seed)
    return SmallLM(mixer=mixer, width=WIDTH, heads=HEADS, layers=LAYERS)


def trained(arm: str, seed: int, long: bool, step: Step) -> Values:
    """Nats per byte at every length."""
    from attlas.tasks import byte_text, load_source, losses_at_lengths
    from attlas.train import Recipe, fit, next_token_loss

    text = byte_text(load_source("python-docs"))
    net = network(arm, seed)
    batch, steps = (LONG_BATCH, LONG_STEPS) if long else (BATCH, STEPS)
    fit(net, text.batches(batch, LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    windows = LONG_WINDOWS if long else WINDOWS
    found = losses_at_lengths(net, text, LENGTHS, tail=LENGTH, windows=windows)
    return {f"nats at {length}, {arm}": loss for length, loss in found.items()}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Six nets."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        name = arm.lower().replace(", ", "-").replace(" ", "-")
        found |= remember(folder, name, partial(trained, arm, seed, long, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim: rises within a seed, gaps to softmax within a seed, means over the seeds."""
    gaps = {
        length: [run[f"nats at {length}, softmax"] - run[f"nats at {length}, LSSAR 15"] for run in runs]
        for length in FAR
    }
    rises = {length: [_rise(run, "LSSAR 15", length) for run in runs] for length in FAR}
    table = spread(
        [
            {f"gap {length}": gaps[length][seed] for length in FAR}
            | {f"rise {length}": rises[length][seed] for length in FAR}
            for seed in range(len(runs))
        ]
    )
    measured = _told(spread(runs), table)
    flat = all(table[f"rise {length}"]["mean"] <= FLAT for length in FAR)
    below = [table[f"gap {length}"]["mean"] for length in FAR]
    noise = [table[f"gap {length}"]["sd"] for length in FAR]
    failed = [] if flat else [f"LSSAR 15 rises by at most {FLAT}"]
    failed += [
        f"LSSAR 15 not above softmax at {length}"
        for length, gap, sd in zip(FAR, below, noise, strict=True)
        if gap < -sd
    ]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    if any(gap <= sd for gap, sd in zip(below, noise, strict=True)):
        text = f"{measured} LSSAR 15 and softmax are within the spread of the seeds."
        return Verdict("not shown at this scale", text)
    return Verdict("holds", measured)


def _rise(run: Values, arm: str, length: int) -> float:
    return run[f"nats at {length}, {arm}"] - run[f"nats at {LENGTH}, {arm}"]


def _told(table: Mapping[str, Mapping[str, float]], pairs: Mapping[str, Mapping[str, float]]) -> str:
    rows = "; ".join(
        f"{arm} " + " / ".join(f"{table[f'nats at {length}, {arm}']['mean']:.3f}" for length in LENGTHS)
        for arm in ARMS
    )
    gaps = ", ".join(
        f"{pairs[f'gap {length}']['mean']:+.3f} ± {pairs[f'gap {length}']['sd']:.3f} at {length}"
        for length in FAR
    )
    return (
        f"Nats per byte at {' / '.join(map(str, LENGTHS))} bytes: {rows}. LSSAR 15 lies below softmax by "
        f"{gaps}."
    )


CLAIM = Claim(
    says=(
        "Trained at a short length, softplus attention with re-weighting keeps its loss at 8 and 16 times "
        "that length, below that of softmax."
    ),
    rule=(
        f"Nets that differ in score and normaliser alone, trained at {LENGTH} bytes, losses of the same last "
        f"{LENGTH} bytes with 8 and 16 times as much text: LSSAR with power 15 is at most {FLAT} nats above "
        "its loss at the trained length, and below softmax by more than the spread of the seeds (within it: "
        "not shown), at both lengths. The other arms are told and not judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
