"""DependencyViT's claim: reversed attention costs no accuracy, and its messages say which tokens to drop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.models import DependencyViT
    from attlas.tasks import Labelled

__all__ = ["CLAIM", "judge", "measure"]

TRAINED, TESTED, SIDE, PATCH, WIDTH, HEADS, LAYERS = 1437, 359, 12, 2, 48, 6, 4
STEPS, BATCH, RATE, DECAY, SPREAD = 250, 64, 3e-3, 0.05, 0.1
LONG_STEPS, LONG_BATCH = 600, 100
AFTER, SHARE = 2, 0.5  # half of the tokens go after block 2
RULES = ("message", "random", "norm")
PARITY, WORSE = 0.02, 0.02
SETTINGS = {
    "data": "scikit-learn digits in the middle of a 12 x 12 canvas, standardised",
    "train_images": TRAINED,
    "test_images": TESTED,
    "patch": PATCH,
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "steps": STEPS,
    "batch": BATCH,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "initial_spread": SPREAD,
    "pruned": f"{SHARE:.0%} of the tokens after block {AFTER}",
    "shortened": f"{STEPS} steps of {BATCH} for 600 of 100 (--long: {LONG_STEPS} of {LONG_BATCH})",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Five nets: ViT and DependencyViT, pruned only when tested, and DependencyViT trained with each rule."""
    jobs: dict[str, Callable[[Step], Values]] = {
        "ViT": lambda tell: _tested_without(seed, long, tell, plain=True),
        "DependencyViT": lambda tell: _tested_without(seed, long, tell, plain=False),
        **{f"trained with {rule}": _job(seed, long, rule) for rule in RULES},
    }
    found: dict[str, float] = {}
    for name, job in jobs.items():
        values = remember(folder, name.replace(" ", "-"), partial(job, _prefixed(step, name)))
        found |= {f"{name}: {key}": value for key, value in values.items()}
    return found


def _prefixed(step: Step, name: str) -> Step:
    return lambda text: step(f"{name}: {text}")


def _job(seed: int, long: bool, rule: str) -> Callable[[Step], Values]:
    def run(step: Step) -> Values:
        model, test = _trained(seed, long, step, plain=False, rule=rule)
        return {"accuracy": _accuracy(model, test, rule)}

    return run


def _tested_without(seed: int, long: bool, step: Step, *, plain: bool) -> Values:
    """A net that saw all tokens in training: its accuracy with all of them, and with half dropped."""
    model, test = _trained(seed, long, step, plain=plain, rule=None)
    found = {"accuracy": _accuracy(model, test, None)}
    # Without messages there is nothing to go by.
    found |= {rule: _accuracy(model, test, rule) for rule in RULES if not (plain and rule == "message")}
    return found if plain else found | _background(model, test)


def _trained(
    seed: int, long: bool, step: Step, *, plain: bool, rule: str | None
) -> tuple[DependencyViT, Labelled]:
    import torch

    from attlas.models import DependencyViT
    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(SIDE, step=None, train=TRAINED, test=TESTED, seed=seed)
    mean, deviation = train.images.mean(), train.images.std()
    train, test = (replace(part, images=(part.images - mean) / deviation) for part in (train, test))
    torch.manual_seed(seed)
    model = DependencyViT(
        side=SIDE, patch=PATCH, channels=1, classes=10, width=WIDTH, heads=HEADS, layers=LAYERS,
        spread=SPREAD, pruning=_pruning(rule), block=_plain_block if plain else None,
    )  # fmt: skip
    recipe = Recipe(steps=LONG_STEPS if long else STEPS, learning_rate=RATE, weight_decay=DECAY)
    fit(model, train.batches(LONG_BATCH if long else BATCH, seed), label_loss, recipe, step=step)
    return model, test


def _plain_block(layer: int) -> nn.Module:
    """A ViT block in the place of a dependency block: ordinary attention, all messages 1."""
    from torch import nn

    from attlas.layers import Block
    from attlas.models.convit import plain_attention

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(WIDTH, plain_attention(WIDTH, HEADS))

        def forward(self, x: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
            return self.block(x), message

    return Silent()


def _pruning(rule: str | None) -> Any:
    import torch

    from attlas.models.dependencyvit import Pruning, by_message

    scores = {
        "message": by_message,
        "random": lambda x, message: torch.rand(x.shape[:2]),
        "norm": lambda x, message: x.norm(dim=-1),
    }
    return None if rule is None else Pruning(((AFTER, SHARE),), scores[rule])


def _accuracy(model: DependencyViT, test: Labelled, rule: str | None) -> float:
    import torch

    torch.manual_seed(0)  # of the random rule
    model.pruning = _pruning(rule)
    with torch.no_grad():
        return float((model(test.images).argmax(-1) == test.labels).double().mean())


def _background(model: DependencyViT, test: Labelled) -> dict[str, float]:
    """Of empty patches and of those with ink: the mean message after block AFTER, and the share of leaves."""
    import torch

    from attlas.layers import DependencyBlock

    model.pruning = None
    blank = float(test.images.min())
    patches = torch.nn.functional.unfold(test.images, PATCH, stride=PATCH)
    empty = (patches == blank).all(1)
    with torch.no_grad():
        x = model.patches(test.images)
        message = x.new_ones(x.shape[:2])
        for block in list(model.blocks)[:AFTER]:
            before = x
            x, message = block(x, message)
        parent = cast(DependencyBlock, model.blocks[AFTER - 1]).parents(before)
    leaf = torch.ones_like(empty).scatter(1, parent, torch.zeros_like(empty))
    return {
        "message of empty patches": float(message[empty].mean()),
        "message of ink": float(message[~empty].mean()),
        "leaves among empty patches": float(leaf[empty].double().mean()),
        "leaves among ink": float(leaf[~empty].double().mean()),
        "empty share of the quieter half": float(
            empty.gather(1, message.argsort(1)[:, : message.shape[1] // 2]).double().mean()
        ),
        "empty share": float(empty.double().mean()),
    }


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim: means over the seeds decide."""
    table = spread(runs)

    def mean(name: str) -> float:
        return table[name]["mean"]

    whole = mean("DependencyViT: accuracy")
    lite = {rule: mean(f"trained with {rule}: accuracy") for rule in RULES}
    late = {rule: mean(f"DependencyViT: {rule}") for rule in RULES}
    others = [rule for rule in RULES if rule != "message"]
    rules = {
        f"accuracy within {PARITY} of ViT": whole >= mean("ViT: accuracy") - PARITY,
        f"half the tokens dropped in training too, by message: within {WORSE} of all tokens": lite["message"]
        >= whole - WORSE,
        "dropped in training too, message better than random and norm": all(
            lite["message"] > lite[rule] for rule in others
        ),
        "dropped at test time only, message better than random and norm": all(
            late["message"] > late[rule] for rule in others
        ),
    }
    failed = [rule for rule, met in rules.items() if not met]
    measured = _told(table)
    if failed:
        measured += f" Not met: {'; '.join(failed)}."
    return Verdict("does not hold" if failed else "holds", measured)


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def text(name: str) -> str:
        return f"{table[name]['mean']:.3f} ± {table[name]['sd']:.3f}"

    late = ", ".join(f"{rule} {text(f'DependencyViT: {rule}')}" for rule in RULES)
    lite = ", ".join(f"{rule} {text(f'trained with {rule}: accuracy')}" for rule in RULES)
    mean = {name: row["mean"] for name, row in table.items()}
    return (
        f"Accuracy with all tokens: DependencyViT {text('DependencyViT: accuracy')}, ViT "
        f"{text('ViT: accuracy')}. Half of them dropped when tested: {late} (ViT: random "
        f"{text('ViT: random')}, norm {text('ViT: norm')}). Dropped in training too: {lite}. After block "
        f"{AFTER} the mean message is {mean['DependencyViT: message of empty patches']:.2f} on empty patches "
        f"and {mean['DependencyViT: message of ink']:.2f} on ink; leaves are "
        f"{mean['DependencyViT: leaves among empty patches']:.0%} of the empty patches and "
        f"{mean['DependencyViT: leaves among ink']:.0%} of the ink; "
        f"{mean['DependencyViT: empty share of the quieter half']:.0%} of the quieter half are empty, of all "
        f"{mean['DependencyViT: empty share']:.0%}."
    )


CLAIM = Claim(
    says=(
        "Reversed attention reaches the accuracy of a plain vision transformer, and its message controllers "
        "tell which tokens can be dropped: pruning by them costs little accuracy."
    ),
    rule=(
        f"Digits on a {SIDE} x {SIDE} canvas, means over the seeds: DependencyViT's test accuracy is within "
        f"{PARITY} of the same ViT; with half of the tokens dropped after block {AFTER} by their message, in "
        f"training too, it is within {WORSE} of its own with all tokens and above that of dropping at random "
        "or by norm; and dropped by message only when tested, it is above random and norm as well."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
