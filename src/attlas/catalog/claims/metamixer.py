"""MetaMixer's claim: static convolutions in attention's place are as accurate, and faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

__all__ = ["CLAIM", "judge", "measure"]

NETS = {"FFNified": "ffn", "attention": "attention", "pooling": "pooling"}
TRAIN, TEST, WIDTH, BLOCKS = 1437, 360, 32, 4
STEPS, LONG_STEPS, BATCH = 200, 600, 64
SIDES, LONG_SIDES = (8,), (8, 16)
TIMED, TIMED_IMAGES, REPEATS = (8, 16), 64, 5
TRAINED, SAME = 0.9, 1e-4
SETTINGS = {
    "data": "scikit-learn digits, 8 x 8 pixels (--long: also enlarged to 16 x 16, bilinear)",
    "train": TRAIN,
    "test": TEST,
    "width": WIDTH,
    "blocks": BLOCKS,
    "token_kernel": 7,
    "channel_kernel": 3,
    "steps": STEPS,
    "batch": BATCH,
    "learning_rate": 3e-3,
    "timed": f"CPU seconds of the fused nets, {TIMED_IMAGES} images, least of {REPEATS} in turns",
    "shortened": f"{STEPS} steps (--long: {LONG_STEPS})",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Accuracy of each net, how far fusing moves its logits, and CPU time of the fused nets, in one run."""
    found: dict[str, float] = {}
    for side in LONG_SIDES if long else SIDES:
        for name in NETS:
            job = partial(_trained, name, side, seed, long, step)
            values = remember(folder, f"{NETS[name]}-{side}", job)
            found |= {f"{key}, {name} at {side}": value for key, value in values.items()}
    step("CPU time of the fused nets")
    return found | dict(remember(folder, "time", partial(_times, seed)))


def _trained(name: str, side: int, seed: int, long: bool, step: Step) -> dict[str, float]:
    import torch
    from torch.nn import functional

    from attlas.layers import fuse
    from attlas.models import fused_parameters, small_ffnet
    from attlas.tasks import Labelled, digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    parts = []
    for part in digits_on_canvas(8, step=None, train=TRAIN, test=TEST, seed=seed):
        images = functional.interpolate(part.images, (side, side), mode="bilinear", align_corners=False)
        parts.append(Labelled(images if side > 8 else part.images, part.labels))
    train, test = parts
    torch.manual_seed(seed)
    net = small_ffnet(NETS[name], width=WIDTH, blocks=BLOCKS)
    recipe = Recipe(steps=LONG_STEPS if long else STEPS)
    fit(
        net,
        train.batches(BATCH, seed),
        label_loss,
        recipe,
        step=lambda text: step(f"{name} at {side}: {text}"),
    )
    with torch.no_grad():
        logits, fused = net(test.images), fuse(net)(test.images)
    return {
        "accuracy": float((fused.argmax(-1) == test.labels).double().mean()),
        "moved": float((fused - logits).abs().max() / logits.abs().max()),
        "parameters": float(fused_parameters(net)),
    }


def _times(seed: int) -> dict[str, float]:
    """Milliseconds of CPU time per image: nets in turns, which other work on the machine changes least."""
    import torch

    from attlas._common.measuring import in_turns
    from attlas.layers import fuse
    from attlas.models import small_ffnet

    torch.manual_seed(seed)
    nets = [fuse(small_ffnet(kind, width=WIDTH, blocks=BLOCKS)) for kind in NETS.values()]
    found = {}
    for side in TIMED:
        images = torch.randn(TIMED_IMAGES, 1, side, side)
        with torch.inference_mode():
            runs = [partial(net, images) for net in nets]
            taken = in_turns(runs, times=REPEATS, taken=min, clock=time.process_time)
        for name, seconds in zip(NETS, taken, strict=True):
            found[f"milliseconds at {side}, {name}"] = 1e3 * seconds / TIMED_IMAGES
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, at 8 x 8; what --long adds at 16 x 16 is told."""
    table = spread(runs)
    sides = [side for side in LONG_SIDES if f"accuracy, attention at {side}" in table]
    measured = " ".join([*(_told(table, side) for side in sides), _timed(table)])
    if max(table[f"accuracy, {name} at 8"]["mean"] for name in ("FFNified", "attention")) < TRAINED:
        return Verdict("not shown at this scale", f"No net learned the digits. {measured}")
    gains = [run["accuracy, FFNified at 8"] - run["accuracy, attention at 8"] for run in runs]
    gain, deviation = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
    measured += f" FFNified less attention: {100 * gain:+.1f} ± {100 * deviation:.1f} points."
    moved = max(row["largest"] for name, row in table.items() if name.startswith("moved"))
    failed = [
        f"less CPU time than attention at {side} x {side} with every seed"
        for side in TIMED
        if any(
            run[f"milliseconds at {side}, FFNified"] >= run[f"milliseconds at {side}, attention"]
            for run in runs
        )
    ]
    if moved > SAME:
        failed.append(f"fused nets are the nets (logits moved by {moved:.0e})")
    if gain < -deviation:
        failed.append("not behind attention by more than the spread")
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    if gain < 0:
        return Verdict("not shown at this scale", f"{measured} Behind by less than the spread: a tie.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], side: int) -> str:
    def text(name: str) -> str:
        row = table[f"accuracy, {name} at {side}"]
        return f"{name} {100 * row['mean']:.1f} ± {100 * row['sd']:.1f}"

    sizes = "/".join(f"{table[f'parameters, {name} at {side}']['mean']:,.0f}" for name in NETS)
    return (
        f"Accuracy at {side} x {side} in percent: {', '.join(map(text, NETS))} ({sizes} parameters, fused)."
    )


def _timed(table: Mapping[str, Mapping[str, float]]) -> str:
    times = (
        f"{side} x {side} "
        + ", ".join(f"{name} {table[f'milliseconds at {side}, {name}']['mean']:.2f}" for name in NETS)
        for side in TIMED
    )
    return f"CPU milliseconds per image, fused: {'; '.join(times)}."


CLAIM = Claim(
    says=(
        "Self-attention whose keys and values are static depthwise kernels and whose softmax is GELU is at "
        "least as accurate on images, and faster; normalisations and branches fold into single convolutions."
    ),
    rule=(
        f"Digits of 8 x 8 pixels, {BLOCKS} blocks of {WIDTH} channels of one macro-architecture, token "
        "mixers exchanged, the same number of parameters when fused: the FFNified net's mean test accuracy "
        "is at least that of self-attention; its fused form takes less CPU time than that of self-attention "
        f"at 8 x 8 and at 16 x 16 with every seed, and fusing moves no net's logits by more than {SAME:g} of "
        "the largest. It does not hold where it is behind by more than the standard deviation of the "
        "difference over the seeds, slower, or moved; behind by less is a tie, and nothing is shown. Average "
        f"pooling is told, not judged. Not shown if neither net reaches {TRAINED:.0%}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
