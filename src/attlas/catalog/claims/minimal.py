"""The minimal transformer's claim: without MLPs and half of the matrices, about as good on unseen images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

__all__ = ["CLAIM", "judge", "measure"]

TRAIN, TEST, SIDE, PATCH, CLASSES = 1437, 359, 8, 2, 10
WIDTH, HEADS, LAYERS = 32, 1, 4
EPOCHS, BATCH, RATE = 40, 64, 2e-3
LONG_EPOCHS = 500
FULL, SMALLEST = "full", "noMLP+Wqk+noVO"
THIRD = ("noMLP", "noMLP+symmetric", "noMLP+Wqk")
ARMS = (FULL, *THIRD, SMALLEST)
LEARNT, NEAR, SLIGHTLY = 0.9, 0.02, 0.05
SETTINGS = {
    "data": f"scikit-learn digits, {TRAIN} to train on and {TEST} to judge by, standardised",
    "net": f"{LAYERS} pre-norm residual layers, width {WIDTH}, {HEADS} head, {(SIDE // PATCH) ** 2} tokens "
    f"of {PATCH} x {PATCH} pixels, learned places, mean of the tokens",
    "training": f"AdamW {RATE} without weight decay, cosine, {EPOCHS} epochs of batches of {BATCH} "
    f"({LONG_EPOCHS} with --long, as in the paper)",
    "arms": list(ARMS),
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Five nets: loss and accuracy on both parts, parameters of the layers, over-determination."""
    found: dict[str, float] = {}
    for name in ARMS:
        job = partial(_trained, name, seed, LONG_EPOCHS if long else EPOCHS, _prefixed(step, name))
        values = remember(folder, name, job)
        found |= {f"{key}, {name}": value for key, value in values.items()}
    return found


def _prefixed(step: Step, name: str) -> Step:
    return lambda text: step(f"{name}: {text}")


def _trained(name: str, seed: int, epochs: int, step: Step) -> Values:
    import torch
    from torch.nn.functional import cross_entropy

    from attlas.models import MINIMALS, MinimalViT, overdetermination
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(SIDE, step=None, train=TRAIN, test=TEST, seed=seed)
    mean, deviation = train.images.mean(), train.images.std()
    train, test = (replace(part, images=(part.images - mean) / deviation) for part in (train, test))
    torch.manual_seed(seed)
    parts = MINIMALS[name]
    net = MinimalViT(
        lambda index: parts.layer(WIDTH, HEADS),
        side=SIDE, patch=PATCH, classes=CLASSES, width=WIDTH, layers=LAYERS,
    )  # fmt: skip
    steps = max(1, epochs * TRAIN // BATCH)
    recipe = Recipe(steps=steps, learning_rate=RATE, weight_decay=0.0)
    fit(net, train.batches(BATCH, seed), label_loss, recipe, step=step)
    counted = net.parameters_by_part()
    found = {"parameters": float(counted["layers"]), "all parameters": float(counted["total"])}
    found["Qd"] = overdetermination(TRAIN, CLASSES, counted["total"])
    with torch.no_grad():
        for what, part in (("training", train), ("validation", test)):
            logits = net(part.images)
            found[f"{what} loss"] = cross_entropy(logits, part.labels).item()
            found[f"{what} accuracy"] = (logits.argmax(-1) == part.labels).double().mean().item()
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on means over the seeds."""
    table = spread(runs)

    def mean(what: str, name: str) -> float:
        return table[f"{what}, {name}"]["mean"]

    def gap(name: str) -> float:
        return mean("validation loss", name) - mean("training loss", name)

    measured = _told(table)
    right = {name: mean("validation accuracy", name) for name in ARMS}
    if right[FULL] < LEARNT:
        return Verdict("not shown at this scale", f"The full net does not learn the digits: {measured}")
    seeds = sum(table[f"validation accuracy, {name}"]["sd"] for name in THIRD[:2])
    rules = {
        f"{', '.join(THIRD)} at most {NEAR} less accurate": all(
            right[name] >= right[FULL] - NEAR for name in THIRD
        ),
        f"the smallest at most {SLIGHTLY} less accurate": right[SMALLEST] >= right[FULL] - SLIGHTLY,
        "the lowest training loss with the full net": all(
            mean("training loss", FULL) < mean("training loss", name) for name in ARMS[1:]
        ),
        "a gap between validation and training loss that falls from full over noMLP to the smallest": (
            gap(FULL) > gap(THIRD[0]) > gap(SMALLEST)
        ),
        "symmetric not below noMLP beyond the spread": right[THIRD[1]] >= right[THIRD[0]] - seeds,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def one(name: str) -> str:
        accuracy = table[f"validation accuracy, {name}"]
        losses = [table[f"{what} loss, {name}"]["mean"] for what in ("training", "validation")]
        return (
            f"{name} {accuracy['mean']:.3f} ± {accuracy['sd']:.3f} (loss {losses[0]:.3f} in training, "
            f"{losses[1]:.3f} in validation; {table[f'parameters, {name}']['mean']:.0f} parameters, "
            f"Qd {table[f'Qd, {name}']['mean']:.2f})"
        )

    return f"Validation accuracy: {', '.join(one(name) for name in ARMS)}."


CLAIM = Claim(
    says=(
        "Attention is the nonlinearity: transformers without MLPs, with one matrix for query and key or a "
        "symmetric one, and even without value and output matrices, are about as good on unseen images with "
        "a fraction of the parameters."
    ),
    rule=(
        "Digits, the same net with five kinds of layers, means over the seeds: noMLP, noMLP+symmetric and "
        "noMLP+Wqk, which are given at most a third of the full layers' parameters, have a validation "
        f"accuracy at most {NEAR} below theirs, noMLP+Wqk+noVO at most {SLIGHTLY} below; the full net has "
        "the lowest training loss; validation loss less training loss falls from full over noMLP to "
        "noMLP+Wqk+noVO; symmetric is not below noMLP by more than the sum of their standard deviations. "
        f"Nothing is shown where the full net's accuracy is below {LEARNT}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=6.0,
    seeds=5,
)
