"""Agent Attention's claim: about the accuracy of softmax attention at linear cost, above linear attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas._common.measuring import in_turns
from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CLAIM", "judge", "measure"]

SIDE, WIDTH, HEADS, LAYERS, CLASSES = 8, 64, 4, 2, 10
POOL = (3, 3)
TRAIN, TEST, BATCH = 1437, 359, 64
STEPS, LONG_STEPS, RATE = 270, 1100, 2e-3
SOFTMAX, AGENT, LINEAR, PLAIN = "softmax", "agent", "linear", "agent without convolution"
ARMS = (SOFTMAX, AGENT, LINEAR, PLAIN)
TOKENS = 4096  # of the comparison of time
LEARNT, NEAR, FASTER = 0.85, 0.02, 5.0
SETTINGS = {
    "task": f"scikit-learn digits as {SIDE * SIDE} pixel tokens, {TRAIN} to train on, {TEST} unseen",
    "net": f"{LAYERS} pre-norm layers, width {WIDTH}, {HEADS} heads, mean over the tokens",
    "agents": POOL[0] * POOL[1],
    "training": f"AdamW {RATE} cosine, {STEPS} batches of {BATCH} (12 rounds), {LONG_STEPS} with --long",
    "time": f"one layer forward, {TOKENS} random tokens, median of 7 in turns",
}


def mixer(arm: str, side: int = SIDE) -> nn.Module:
    """The token mixer of an arm, with projections of the same sizes."""
    from attlas.layers import AgentAttention, LinearAttention, SelfAttention

    if arm == SOFTMAX:
        return SelfAttention(WIDTH, HEADS, bias=True)
    if arm == LINEAR:
        return LinearAttention(WIDTH, HEADS, causal=False)  # elu + 1
    return AgentAttention(WIDTH, HEADS, grid=(side, side), pool=POOL, convolution=arm == AGENT, bias=True)


def network(arm: str, seed: int) -> nn.Module:
    """A classifier of pixels: value and learned position, blocks around the arm's mixer, mean, classes."""
    import torch
    from torch import nn

    from attlas.models.small_net import LearnedPositions, MeanToken, SmallNet

    torch.manual_seed(seed)
    places = LearnedPositions(SIDE * SIDE, WIDTH)
    # From a standard deviation of 0.02 a short training learns nothing.
    nn.init.normal_(places.places)
    pixels = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (-1, 1)), nn.Linear(1, WIDTH), places)
    return SmallNet(
        pixels,
        (mixer(arm) for _ in range(LAYERS)),
        lambda: nn.Sequential(MeanToken(), nn.Linear(WIDTH, CLASSES)),
        width=WIDTH,
    )


def accuracy(arm: str, seed: int, steps: int, step: Step) -> Values:
    """Share of unseen digits that a trained net names right."""
    import torch

    from attlas.tasks import digits_on_canvas
    from attlas.train import Recipe, fit, label_loss

    train, test = digits_on_canvas(SIDE, step=None, train=TRAIN, test=TEST, seed=seed)
    net = network(arm, seed)
    fit(net, train.batches(BATCH, seed), label_loss, Recipe(steps, learning_rate=RATE), step=step)
    with torch.no_grad():
        right = (net(test.images).argmax(-1) == test.labels).double().mean().item()
    return {f"accuracy, {arm}": right}


def times() -> Values:
    """How many times longer a layer of softmax attention takes than one of agents."""
    import torch

    x = torch.randn(1, TOKENS, WIDTH)
    layers = [mixer(arm, isqrt(TOKENS)) for arm in (SOFTMAX, AGENT)]
    with torch.no_grad():
        softmax, agent = in_turns([partial(layer, x) for layer in layers])
    return {"time of softmax over agent": softmax / agent}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Four nets, and the time of a layer."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        job = partial(accuracy, arm, seed, LONG_STEPS if long else STEPS, say)
        found |= remember(folder, arm.replace(" ", "-"), job)
    found |= remember(folder, "times", times)
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    mean = {arm: table[f"accuracy, {arm}"]["mean"] for arm in ARMS}
    faster = table["time of softmax over agent"]["mean"]
    measured = _told(table)
    if mean[SOFTMAX] < LEARNT:
        return Verdict("not shown at this scale", f"Softmax attention does not learn the digits: {measured}")
    rules = {
        f"agent at most {NEAR} below softmax": mean[AGENT] >= mean[SOFTMAX] - NEAR,
        "agent above linear": mean[AGENT] > mean[LINEAR],
        f"softmax at least {FASTER:g} times slower": faster >= FASTER,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    arms = ", ".join(
        f"{arm} {table[f'accuracy, {arm}']['mean']:.3f} ± {table[f'accuracy, {arm}']['sd']:.3f}"
        for arm in ARMS
    )
    ratio = table["time of softmax over agent"]
    return (
        f"Accuracy on unseen digits: {arms}. At {TOKENS} tokens softmax takes {ratio['mean']:.1f} ± "
        f"{ratio['sd']:.1f} times as long."
    )


CLAIM = Claim(
    says=(
        "Attention through a few pooled agents is about as good as softmax attention at linear cost, and "
        "better than linear attention."
    ),
    rule=(
        f"Digits as {SIDE * SIDE} pixels, {POOL[0] * POOL[1]} agents, means over the seeds: the accuracy of "
        f"agents is at most {NEAR} below that of softmax attention and above that of elu + 1 linear "
        f"attention, and at {TOKENS} tokens a layer of softmax attention takes at least {FASTER:g} times as "
        f"long. Nothing is shown where softmax attention stays below {LEARNT}. Agents without the "
        "convolution are told, not judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
