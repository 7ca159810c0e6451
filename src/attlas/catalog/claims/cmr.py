"""CMR's claim: hidden states kept and woven in again let a net with a small window recall beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import nn

    from attlas.tasks import Recall

__all__ = ["CLAIM", "judge", "measure"]


@dataclass(frozen=True)
class Size:
    """The task, and the window that is too short for it: no output reaches a query's key."""

    vocabulary: int
    length: int
    pairs: int
    first_slot: int
    window: int  # of attention, and the length of a segment
    steps: int
    batch: int

    @property
    def far(self) -> int:
        """Tokens between key and query that count as far."""
        return 5 * self.length // 8


SHORT = Size(vocabulary=128, length=32, pairs=4, first_slot=6, window=4, steps=1000, batch=32)
LONG = Size(vocabulary=512, length=64, pairs=8, first_slot=8, window=8, steps=2500, batch=128)
WIDTH, LAYERS, EXAMPLES, TESTED = 64, 4, 20_000, 1000
FULL, NONE, MEMORY, RANDOM, SINGLE = "full", "window", "reweaving", "random items", "one layer"
ARMS = (FULL, NONE, MEMORY, RANDOM, SINGLE)
EXPLORE = 1.0
LEARNT, ABOVE, CHOSEN, NEAR = 0.9, 0.2, 0.1, 0.02


def _described(size: Size) -> str:
    reach = size.window - 1 + 2 * (LAYERS - 1)
    return (
        f"MQAR, vocabulary {size.vocabulary}, length {size.length}, {size.pairs} pairs, queries from slot "
        f"{size.first_slot} on; window and segments of {size.window}, so that outputs reach {reach} tokens "
        f"back; memory of {2 * size.pairs} items; {size.steps} steps of {size.batch}"
    )


SETTINGS = {
    "task": _described(SHORT),
    "long": _described(LONG) + ", also half the items",
    "model": f"{LAYERS} layers without MLP, width {WIDTH}: BaseConv, BaseConv, attention, BaseConv; layers 1 "
    "and 2 are captured and woven into 3",
    "training": f"{EXAMPLES} examples, AdamW 3e-3 with cosine decay; items are drawn by their salience with "
    f"Gumbel noise of scale {EXPLORE:g} while training",
}


def network(arm: str, seed: int, size: Size, items: int) -> nn.Module:
    """The net of an arm: window or full attention as third layer, with a memory or without."""
    import torch

    from attlas.layers import BaseConv, SelfAttention
    from attlas.layers.cmr import NewestLayer, RandomRank
    from attlas.models import RecallNet, ReweavingNet
    from attlas.pattern import causal, window

    seen = causal() if arm == FULL else causal() & window(size.window)

    def mixer(layer: int) -> nn.Module:
        return SelfAttention(WIDTH, 1, pattern=seen) if layer == 2 else BaseConv(WIDTH)

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"vocabulary": size.vocabulary, "width": WIDTH, "layers": LAYERS}
    if arm in (FULL, NONE):
        return RecallNet(mixer, **shape)
    shape |= {"items": items, "segment": size.window}
    if arm == RANDOM:
        return ReweavingNet(mixer, **shape, rank=RandomRank(seed))
    if arm == MEMORY:
        return ReweavingNet(mixer, **shape, explore=EXPLORE)
    return ReweavingNet(
        mixer, **shape, explore=EXPLORE, captured=(2,), woven=3, reconstruction=NewestLayer(),
        auxiliary_weight=0.0,
    )  # fmt: skip


def data(seed: int, size: Size) -> tuple[Recall, Recall]:
    """Training and test part of a seed."""
    from attlas.tasks import mqar

    return mqar(
        vocabulary=size.vocabulary, length=size.length, pairs=size.pairs, first_slot=size.first_slot,
        train=EXAMPLES, test=TESTED, seed=seed,
    )  # fmt: skip


def recall(arm: str, seed: int, size: Size, items: int, step: Step) -> Values:
    """Share of the queries of unseen examples answered right: all, and those far from their keys."""
    import torch

    from attlas.train import Recipe, fit, recall_loss

    train, test = data(seed, size)
    net = network(arm, seed, size, items)
    fit(net, train.batches(size.batch, seed), recall_loss, Recipe(size.steps), step=step)
    with torch.no_grad():
        found = torch.cat([net(ids).argmax(-1) for ids in test.ids.split(100)])
    far = test.accuracy(found, where=test.distance > size.far)
    return {"recall": test.accuracy(found), "far recall": far}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every arm, trained and tested."""
    size = LONG if long else SHORT
    runs = {arm: (arm, 2 * size.pairs) for arm in ARMS}
    if long:
        runs |= {f"{arm}, half the items": (arm, size.pairs) for arm in (MEMORY, RANDOM, SINGLE)}
    found: dict[str, float] = {}
    for name, (arm, items) in runs.items():

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        job = partial(recall, arm, seed, size, items, say)
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
        f"{name} {table[f'recall, {name}']['mean']:.3f} ± {table[f'recall, {name}']['sd']:.3f} (far ones "
        f"{table[f'far recall, {name}']['mean']:.3f})"
        for name in names
    )
    return f"Queries answered right: {told}."


CLAIM = Claim(
    says=(
        "Latent states of earlier layers, reconstructed and woven back in, let a model recall facts that its "
        "attention no longer reaches (our definition of the method; the paper's own figures are not tested)."
    ),
    rule=(
        "Recall beyond the reach of a window, with a memory of two tokens for each pair, means over "
        f"the seeds: reweaving answers at least {ABOVE} more of the queries than the window alone, at least "
        f"{CHOSEN} more than with items kept by chance, and at most {NEAR} less than a memory of a single "
        f"layer without reconstruction. Nothing is shown where full attention answers less than {LEARNT}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
