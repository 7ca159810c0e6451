"""NiNformer's claim: a mixer block as a gate beats the mixer alone, and self-attention, at equal size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

__all__ = ["CLAIM", "judge", "measure"]

ARMS = {"NiNformer": "ninformer", "MLP-Mixer": "mlp_mixer", "ViT": "vit"}
TRAINED, TESTED, WIDTH, LAYERS, HEADS, PATCH = 400, 359, 32, 2, 4, 2
STEPS, LONG_STEPS, BATCH, RATE = 600, 2400, 64, 3e-3
# Above this training loss a net has not learned its images: only the speed of optimisation would differ.
LEARNED = 0.05
SETTINGS = {
    "data": "scikit-learn digits, 8 x 8 pixels, standardised",
    "train_images": TRAINED,
    "test_images": TESTED,
    "patch": PATCH,
    "width": WIDTH,
    "layers": LAYERS,
    "heads": HEADS,
    "steps": STEPS,
    "batch": BATCH,
    "learning_rate": RATE,
    "dropout": 0.0,
    "shortened": f"{STEPS} steps (--long: {LONG_STEPS}); width {WIDTH} for 256, no augmentation",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Test accuracy, final training loss and parameters of each net."""
    found: dict[str, float] = {}
    for name in ARMS:
        values = remember(folder, ARMS[name], partial(_trained, name, seed, long, step))
        found |= {f"{key}, {name}": value for key, value in values.items()}
    return found


def _trained(name: str, seed: int, long: bool, step: Step) -> dict[str, float]:
    from dataclasses import replace

    import torch

    from attlas.models import count_parameters, small_ninformer
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(8, step=None, train=TRAINED, test=TESTED, seed=seed)
    mean, deviation = train.images.mean(), train.images.std()
    train, test = (replace(part, images=(part.images - mean) / deviation) for part in (train, test))
    torch.manual_seed(seed)
    net = small_ninformer(ARMS[name], width=WIDTH, layers=LAYERS, heads=HEADS, patch=PATCH)
    recipe = Recipe(steps=LONG_STEPS if long else STEPS, learning_rate=RATE)
    losses = fit(
        net, train.batches(BATCH, seed), label_loss, recipe, step=lambda text: step(f"{name}: {text}")
    )
    with torch.no_grad():
        right = (net(test.images).argmax(-1) == test.labels).double().mean()
    return {
        "accuracy": float(right),
        "training loss": statistics.fmean(losses[-20:]),
        "parameters": float(count_parameters(net)),
    }


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim: differences seed by seed, against their own spread."""
    table = spread(runs)
    measured = _told(table)
    unlearned = [name for name in ARMS if table[f"training loss, {name}"]["mean"] > LEARNED]
    if unlearned:
        text = f"{measured} Training loss above {LEARNED}: {', '.join(unlearned)}."
        return Verdict("not shown at this scale", text)
    ahead: list[str] = []
    ties: list[str] = []
    behind: list[str] = []
    for name in list(ARMS)[1:]:
        gains = [run["accuracy, NiNformer"] - run[f"accuracy, {name}"] for run in runs]
        mean, deviation = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
        group = ties if abs(mean) <= deviation else ahead if mean > 0 else behind
        group.append(f"{name} by {100 * mean:+.1f} ± {100 * deviation:.1f} points")
    parts = {"ahead of": ahead, "behind": behind, "tied (within the spread) with": ties}
    measured += (
        " NiNformer is " + "; ".join(f"{how} {', '.join(of)}" for how, of in parts.items() if of) + "."
    )
    if behind:
        return Verdict("does not hold", measured)
    return Verdict("not shown at this scale" if ties else "holds", measured)


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    rows = {name: table[f"accuracy, {name}"] for name in ARMS}
    accuracies = ", ".join(
        f"{name} {100 * row['mean']:.1f} ± {100 * row['sd']:.1f}" for name, row in rows.items()
    )
    sizes = ", ".join(f"{table[f'parameters, {name}']['mean']:,.0f}" for name in ARMS)
    return f"Test accuracy in percent with {TRAINED} training images: {accuracies} ({sizes} parameters)."


CLAIM = Claim(
    says=(
        "A linear map of the tokens, gated by a whole MLP-Mixer block of the same tokens, classifies images "
        "better than the mixer alone and than self-attention."
    ),
    rule=(
        f"Digits of 8 x 8 pixels in patches of {PATCH} x {PATCH}, {TRAINED} training images, {LAYERS} layers "
        f"of width {WIDTH}, hidden widths such that all nets have the same number of parameters: NiNformer's "
        "test accuracy exceeds that of MLP-Mixer and that of the vision transformer, seed by seed, by more "
        "than the standard deviation of this difference over the seeds. It does not hold where it is behind "
        "either by as much; within the spread is a tie, and nothing is shown. Nor where a net's mean "
        f"training loss stays above {LEARNED}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
    seeds=5,
)
