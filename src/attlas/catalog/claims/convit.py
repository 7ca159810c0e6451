"""ConViT's claim: a start as convolutions helps where images are few, and gates let go of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

__all__ = ["CLAIM", "judge", "measure"]

SIZES = (300, 1000)
TESTED, SIDE, PATCH, WIDTH, HEADS, LAYERS, LOCAL = 359, 12, 2, 36, 9, 4, 3
STEPS, BATCH, RATE, DECAY, SPREAD = 600, 64, 3e-3, 0.05, 0.1
LONG_STEPS, LONG_BATCH = 1200, 100
NETS = ("GPSA", "MHSA")
AHEAD = 0.05
# Above this training loss a net has not learned its images yet: only the speed of optimisation would differ.
LEARNED = 0.05
START = 0.731  # sigmoid(1), the gate at the start
SETTINGS = {
    "data": "scikit-learn digits at random places (0 to 4 pixels) of a 12 x 12 canvas, standardised",
    "train_images": list(SIZES),
    "test_images": TESTED,
    "patch": PATCH,
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "local_layers": LOCAL,
    "steps": STEPS,
    "batch": BATCH,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "initial_spread": SPREAD,
    "shortened": f"{STEPS} steps of {BATCH} for 600 of 100 (--long: {LONG_STEPS} of {LONG_BATCH})",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Both nets at both sizes: test accuracy and final training loss; gates and non-locality per layer."""
    found: dict[str, float] = {}
    for size in SIZES:
        for net in NETS:
            name = f"{net}-{size}"
            job = partial(_trained, net, size, seed, long, _prefixed(step, name))
            values = remember(folder, name, job)
            found |= {f"{net} {key} at {size}": value for key, value in values.items()}
    return found


def _prefixed(step: Step, name: str) -> Step:
    return lambda text: step(f"{name}: {text}")


def _trained(net: str, size: int, seed: int, long: bool, step: Step) -> dict[str, float]:
    import torch

    from attlas.models import ConViT
    from attlas.models.convit import plain_attention
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(SIDE, step=1, train=size, test=TESTED, seed=seed)
    mean, deviation = train.images.mean(), train.images.std()
    train, test = (replace(part, images=(part.images - mean) / deviation) for part in (train, test))
    torch.manual_seed(seed)
    mixer = None if net == "GPSA" else (lambda layer: plain_attention(WIDTH, HEADS))
    model = ConViT(
        side=SIDE, patch=PATCH, channels=1, classes=10, width=WIDTH, heads=HEADS, layers=LAYERS, local=LOCAL,
        spread=SPREAD, mixer=mixer,
    )  # fmt: skip
    recipe = Recipe(steps=LONG_STEPS if long else STEPS, learning_rate=RATE, weight_decay=DECAY)
    losses = fit(model, train.batches(LONG_BATCH if long else BATCH, seed), label_loss, recipe, step=step)
    with torch.no_grad():
        right = (model(test.images).argmax(-1) == test.labels).double().mean()
        found = {"accuracy": float(right), "training loss": statistics.fmean(losses[-30:])}
        if net == "GPSA":
            gates, far = model.gates().mean(-1), model.nonlocality(test.images).mean(-1)
            for layer in range(LOCAL):
                found[f"gate of layer {layer + 1}"] = float(gates[layer])
                found[f"non-locality of layer {layer + 1}"] = float(far[layer])
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on means over the seeds; no seed may contradict them."""
    table = spread(runs)
    told, failed = [], []
    unlearned = [
        f"{net} at {size} ({table[f'{net} training loss at {size}']['largest']:.2f})"
        for size in SIZES
        for net in NETS
        if table[f"{net} training loss at {size}"]["largest"] > LEARNED
    ]
    for size in SIZES:
        told.append(_told(table, size))
        ahead = [run[f"GPSA accuracy at {size}"] - run[f"MHSA accuracy at {size}"] for run in runs]
        last = [run[f"GPSA gate of layer {LOCAL} at {size}"] for run in runs]
        rules = {
            f"GPSA ahead by {AHEAD} at {size} images": statistics.fmean(ahead) >= AHEAD,
            f"GPSA ahead with every seed at {size} images": min(ahead) > 0,
            f"the last layer's gate falls with every seed at {size} images": max(last) < START,
        }
        failed += [rule for rule, met in rules.items() if not met]
    measured = " ".join(told)
    if unlearned:
        measured += f" Training loss above {LEARNED}: {', '.join(unlearned)}."
        return Verdict("not shown at this scale", measured)
    if failed:
        measured += f" Not met: {'; '.join(failed)}."
    return Verdict("does not hold" if failed else "holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], size: int) -> str:
    def text(name: str) -> str:
        row = table[f"{name} at {size}"]
        return f"{row['mean']:.3f} ± {row['sd']:.3f}"

    def layers(what: str) -> str:
        return ", ".join(
            f"{table[f'GPSA {what} of layer {n} at {size}']['mean']:.2f}" for n in range(1, LOCAL + 1)
        )

    return (
        f"With {size} images: accuracy {text('GPSA accuracy')} with GPSA, {text('MHSA accuracy')} without; "
        f"gates by layer {layers('gate')} from 0.73, non-locality {layers('non-locality')} patches."
    )


CLAIM = Claim(
    says=(
        "Vision transformers whose heads start as convolutions and learn by a gate how far to leave them "
        "need fewer images than plain ones; the gates of later layers fall."
    ),
    rule=(
        f"Digits at random places, {SIZES[0]} and {SIZES[1]} training images, the same net with GPSA or "
        f"ordinary attention in its first {LOCAL} of {LAYERS} layers, means over the seeds: GPSA's test "
        f"accuracy is ahead by at least {AHEAD} at both sizes and with every seed, and the mean gate of the "
        f"last GPSA layer ends below its start, {START}, with every seed. Where a net's training loss stays "
        f"above {LEARNED} nothing is shown: only the speed of optimisation would be compared."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
