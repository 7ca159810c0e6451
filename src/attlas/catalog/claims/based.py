"""BASED's claim: recall is bought with state, and a few Taylor features and a small window buy it cheaply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CLAIM", "judge", "measure"]

WIDTH = 64
# vocabulary, length and pairs of the task, and what the two windows see beside their own token.
TASK, WINDOWS = (128, 32, 8), (8, 16)
LONG_TASK, LONG_WINDOWS = (512, 64, 8), (16, 32)
TRAIN, TEST, BATCH, STEPS = 20_000, 500, 64, 550
LONG_BATCH, LONG_STEPS = 128, 785
FEATURES = (2, 4, 8)
WINDOW_ARMS = ("small window", "large window")
TAYLOR_ARMS = tuple(f"Taylor {feature}" for feature in FEATURES)
BOTH, FULL = f"{TAYLOR_ARMS[0]} and {WINDOW_ARMS[0]}", "attention"
ARMS = (*WINDOW_ARMS, *TAYLOR_ARMS, BOTH, FULL)
LEARNT, EVEN = 0.95, 0.02
SETTINGS = {
    "task": "MQAR, filler 0, symbols, length and pairs "
    f"{', '.join(map(str, TASK))}; with --long {', '.join(map(str, LONG_TASK))}",
    "windows": f"{WINDOWS[0]} and {WINDOWS[1]} earlier tokens; with --long {LONG_WINDOWS[0]} and "
    f"{LONG_WINDOWS[1]}",
    "net": f"BaseConv of 3 taps, then the mixer; width {WIDTH}, 1 head, no MLP, no positions",
    "training": f"{STEPS} batches of {BATCH} of {TRAIN} examples, AdamW 3e-3 cosine; with --long "
    f"{LONG_STEPS} of {LONG_BATCH}",
}


def network(arm: str, vocabulary: int, windows: tuple[int, int], seed: int) -> Any:
    """`RecallNet` of a short convolution and the arm's mixers; the arm with both has three layers."""
    import torch

    from attlas.layers import SelfAttention
    from attlas.layers.based import TaylorAttention, sliding_window
    from attlas.layers.zoology import BaseConv
    from attlas.models import RecallNet
    from attlas.pattern import causal

    def taylor(feature: int) -> Callable[[], nn.Module]:
        return lambda: TaylorAttention(WIDTH, 1, feature=feature)

    def window(previous: int) -> Callable[[], nn.Module]:
        return lambda: sliding_window(WIDTH, 1, previous=previous, base=None)

    kinds: dict[str, list[Callable[[], nn.Module]]] = {
        FULL: [lambda: SelfAttention(WIDTH, 1, pattern=causal())],
        BOTH: [taylor(FEATURES[0]), window(windows[0])],
    }
    kinds |= {arm: [window(previous)] for arm, previous in zip(WINDOW_ARMS, windows, strict=True)}
    kinds |= {arm: [taylor(feature)] for arm, feature in zip(TAYLOR_ARMS, FEATURES, strict=True)}
    torch.manual_seed(seed)
    mixers = [lambda: BaseConv(WIDTH), *kinds[arm]]
    return RecallNet(lambda layer: mixers[layer](), vocabulary=vocabulary, width=WIDTH, layers=len(mixers))


def numbers(net: Any, length: int) -> int:
    """Numbers that a decoded row carries after `length` tokens, over all layers."""
    import torch

    total = 0
    with torch.no_grad():
        for mixer in net.mixers:
            _, state = mixer.advance(torch.zeros(1, length, WIDTH), mixer.start(1))
            total += state.nbytes // 4
    return total


def trained(arm: str, seed: int, long: bool, step: Step) -> Values:
    """Accuracy on unseen sequences, and the size of the state."""
    import torch

    from attlas.tasks import mqar
    from attlas.train import Recipe, fit, recall_loss

    vocabulary, length, pairs = LONG_TASK if long else TASK
    train, test = mqar(vocabulary=vocabulary, length=length, pairs=pairs, train=TRAIN, test=TEST, seed=seed)
    net = network(arm, vocabulary, LONG_WINDOWS if long else WINDOWS, seed)
    batch, steps = (LONG_BATCH, LONG_STEPS) if long else (BATCH, STEPS)
    fit(net, train.batches(batch, seed), recall_loss, Recipe(steps), step=step)
    with torch.no_grad():
        found = torch.cat([net(ids).argmax(-1) for ids in test.ids.split(100)])
    return {f"accuracy, {arm}": test.accuracy(found), f"state, {arm}": numbers(net, length)}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Seven nets on one task."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        name = arm.lower().replace(" ", "-")
        found |= remember(folder, name, partial(trained, arm, seed, long, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    right = {arm: table[f"accuracy, {arm}"]["mean"] for arm in ARMS}
    measured = _told(table)
    if right[FULL] < LEARNT:
        return Verdict("not shown at this scale", f"Full attention does not learn the task. {measured}")
    if min(right[arm] for arm in (*TAYLOR_ARMS, *WINDOW_ARMS)) >= LEARNT:
        return Verdict("not shown at this scale", f"Every state is large enough. {measured}")
    rules = {}
    for family, arms in (("windows", WINDOW_ARMS), ("Taylor layers", TAYLOR_ARMS)):
        rules[f"more state, more recall among {family}"] = (
            all(right[more] >= right[less] - EVEN for less, more in pairwise(arms))
            and right[arms[-1]] > right[arms[0]]
        )
    curves = [_at_state(table, arms, _state(table, BOTH)) for arms in (WINDOW_ARMS, TAYLOR_ARMS)]
    rules["both together on or above either family at their state"] = right[BOTH] >= max(curves) - EVEN
    smaller = [arm for arm in TAYLOR_ARMS if _state(table, arm) <= _state(table, WINDOW_ARMS[0])]
    rules[f"a Taylor layer of less state recalls more than {WINDOW_ARMS[0]}"] = any(
        right[arm] > right[WINDOW_ARMS[0]] + EVEN for arm in smaller
    )
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _at_state(table: Mapping[str, Mapping[str, Any]], arms: Sequence[str], state: float) -> float:
    """A family's accuracy at a size of state, linear between its arms and constant beyond them."""
    import numpy as np

    sizes = [_state(table, arm) for arm in arms]
    return float(np.interp(state, sizes, [table[f"accuracy, {arm}"]["mean"] for arm in arms]))


def _state(table: Mapping[str, Mapping[str, Any]], arm: str) -> float:
    found: float = table[f"state, {arm}"]["mean"]
    return found


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ", ".join(
        f"{arm} {table[f'accuracy, {arm}']['mean']:.3f} ± {table[f'accuracy, {arm}']['sd']:.3f} with "
        f"{_state(table, arm):.0f}"
        for arm in sorted(ARMS, key=partial(_state, table))
    )
    return f"Accuracy with numbers of state: {rows}."


CLAIM = Claim(
    says=(
        "Recall is traded against the size of the state, and Taylor linear attention together with a small "
        "exact window reaches more recall at a state than either."
    ),
    rule=(
        "MQAR, nets that differ in the mixers behind one short convolution, mean accuracy over the seeds. "
        f"Within windows and within Taylor layers more state never loses more than {EVEN}, and the largest "
        "is better than the smallest. The smallest Taylor layer and the smallest window together reach what "
        f"either family reaches at their state (linear between its arms) less {EVEN}. A Taylor layer of at "
        f"most the smaller window's state recalls more than it by {EVEN}. Nothing is shown where full "
        f"attention stays below {LEARNT} or where all arms reach it."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=6.0,
)
