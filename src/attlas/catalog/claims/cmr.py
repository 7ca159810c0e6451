"""CMR's claim: hidden states kept and woven in again let a net with a small window recall beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.tasks import Recall

__all__ = ["CLAIM", "judge", "measure"]

VOCABULARY, LENGTH, PAIRS, FIRST_SLOT = 512, 64, 8, 8
WIDTH, LAYERS, WINDOW, SEGMENT = 64, 4, 8, 8
EXAMPLES, TESTED, BATCH, STEPS, LONG_STEPS = 20_000, 1000, 64, 500, 1500
FULL, NONE, MEMORY, RANDOM, SINGLE = "full", "window", "reweaving", "random items", "one layer"
ARMS = (FULL, NONE, MEMORY, RANDOM, SINGLE)
ITEMS, MORE = PAIRS, 2 * PAIRS
FAR = 40  # tokens; the nearest query is at 18, the farthest at 62
LEARNT, ABOVE, CHOSEN, NEAR = 0.9, 0.2, 0.1, 0.02
SETTINGS = {
    "task": f"MQAR, vocabulary {VOCABULARY}, length {LENGTH}, {PAIRS} pairs, queries from slot {FIRST_SLOT} "
    "on, at least 18 tokens after their key",
    "model": f"{LAYERS} layers without MLP, width {WIDTH}: BaseConv, BaseConv, attention in a window of "
    f"{WINDOW}, BaseConv: outputs reach 13 tokens back",
    "memory": f"{ITEMS} items (also {MORE} with --long), segments of {SEGMENT}, layers 1 and 2 into layer 3",
    "training": f"{STEPS} steps of {BATCH} ({LONG_STEPS} with --long), AdamW 3e-3 with cosine decay",
}


def network(arm: str, seed: int, items: int = ITEMS) -> nn.Module:
    """The net of an arm: window or full attention as third layer, with a memory or without."""
    import torch

    from attlas.layers import BaseConv, SelfAttention
    from attlas.layers.cmr import NewestLayer, RandomRank
    from attlas.models import RecallNet, ReweavingNet
    from attlas.pattern import causal, window

    seen = causal() if arm == FULL else causal() & window(WINDOW)

    def mixer(layer: int) -> nn.Module:
        return SelfAttention(WIDTH, 1, pattern=seen) if layer == 2 else BaseConv(WIDTH)

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"vocabulary": VOCABULARY, "width": WIDTH, "layers": LAYERS}
    if arm in (FULL, NONE):
        return RecallNet(mixer, **shape)
    shape |= {"items": items, "segment": SEGMENT}
    if arm == SINGLE:
        return ReweavingNet(
            mixer, **shape, captured=(2,), woven=3, reconstruction=NewestLayer(), auxiliary_weight=0.0
        )
    return ReweavingNet(mixer, **shape, rank=RandomRank(seed) if arm == RANDOM else None)


def data(seed: int) -> tuple[Recall, Recall]:
    """Training and test part of a seed."""
    from attlas.tasks import mqar

    return mqar(
        vocabulary=VOCABULARY, length=LENGTH, pairs=PAIRS, train=EXAMPLES, test=TESTED, seed=seed,
        first_slot=FIRST_SLOT,
    )  # fmt: skip


def recall(arm: str, seed: int, steps: int, items: int, step: Step) -> Values:
    """Share of the queries of unseen examples answered right: all, and those farther than FAR tokens."""
    import torch

    from attlas.train import Recipe, fit, recall_loss

    train, test = data(seed)
    net = network(arm, seed, items)
    fit(net, train.batches(BATCH, seed), recall_loss, Recipe(steps), step=step)
    with torch.no_grad():
        found: Tensor = torch.cat([net(ids).argmax(-1) for ids in test.ids.split(100)])
    return {"recall": test.accuracy(found), "far recall": test.accuracy(found, where=test.distance > FAR)}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every arm, trained and tested."""
    runs = {arm: (arm, ITEMS) for arm in ARMS}
    if long:
        runs |= {f"{arm}, {MORE} items": (arm, MORE) for arm in (MEMORY, RANDOM, SINGLE)}
    found: dict[str, float] = {}
    for name, (arm, items) in runs.items():

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        job = partial(recall, arm, seed, LONG_STEPS if long else STEPS, items, say)
        values = remember(folder, name.replace(",", "").replace(" ", "-"), job)
        found |= {f"{what}, {name}": value for what, value in values.items()}
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    mean = {arm: table[f"recall, {arm}"]["mean"] for arm in ARMS}
    measured = _told(table)
    if mean[FULL] < LEARNT:
        return Verdict("not shown at this scale", f"Full attention does not learn the task: {measured}")
    rules = {
        f"reweaving at least {ABOVE} above the window": mean[MEMORY] >= mean[NONE] + ABOVE,
        f"reweaving at least {CHOSEN} above random items": mean[MEMORY] >= mean[RANDOM] + CHOSEN,
        f"two layers at most {NEAR} below one": mean[MEMORY] >= mean[SINGLE] - NEAR,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    names = [name.removeprefix("recall, ") for name in table if name.startswith("recall, ")]
    names = [*ARMS, *sorted(set(names) - set(ARMS))]
    told = "; ".join(
        f"{name} {table[f'recall, {name}']['mean']:.3f} ± {table[f'recall, {name}']['sd']:.3f} (beyond {FAR} "
        f"tokens {table[f'far recall, {name}']['mean']:.3f})"
        for name in names
    )
    return f"Queries answered right: {told}. Guessing among the values shown: {1 / PAIRS:.3f}."


CLAIM = Claim(
    says=(
        "Latent states of earlier layers, reconstructed and woven back in, let a model recall facts that its "
        "attention no longer reaches (our definition of the method; the paper's own figures are not tested)."
    ),
    rule=(
        f"Recall of {PAIRS} pairs beyond a window of {WINDOW}, with a memory of {ITEMS} tokens, means over "
        f"the seeds: reweaving answers at least {ABOVE} more of the queries than the window alone, at least "
        f"{CHOSEN} more than with items kept by chance, and at most {NEAR} less than a memory of a single "
        f"layer without reconstruction. Nothing is shown where full attention answers less than {LEARNT}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
