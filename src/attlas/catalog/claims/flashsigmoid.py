"""FlashSigmoid's claim: with the bias -log n a sigmoid trains as softmax does, without it worse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "judge", "measure"]

ARMS = ("softmax", "sigmoid, -log n", "sigmoid, 0")
WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 128
BATCH, STEPS, LONG_BATCH, LONG_STEPS = 12, 300, 16, 2000
WINDOWS, PROBED = 192, 8
NEAR, TWICE, LARGE = 1.03, 2.0, LENGTH / 4
SETTINGS = {
    "text": "python-docs, bytes",
    "model": f"SmallLM: {LAYERS} layers, width {WIDTH}, {HEADS} heads, rotary positions, queries and keys "
    f"normalised per head (RMSNorm) in every arm, length {LENGTH}",
    "training": f"{STEPS} steps of {BATCH} windows ({LONG_STEPS} of {LONG_BATCH} with --long)",
    "output": f"norm of the heads' output in the last row of the first layer at step 0, over that of "
    f"softmax with the same weights; mean over {PROBED} windows",
    "loss": f"{WINDOWS} held-out windows",
}


def network(arm: str, seed: int) -> nn.Module:
    """One of ARMS; all start from the same weights."""
    import torch
    from torch import nn

    from attlas.attend import Sigmoid, Softmax, flash_sigmoid
    from attlas.layers import SelfAttention
    from attlas.models import SmallLM
    from attlas.pattern import causal

    normaliser = {
        "softmax": Softmax(),
        "sigmoid, -log n": flash_sigmoid(LENGTH),
        "sigmoid, 0": Sigmoid(0.0),
    }[arm]

    def mixer(layer: int) -> nn.Module:
        return SelfAttention(
            WIDTH,
            HEADS,
            pattern=causal(),
            normaliser=normaliser,
            base=10000.0,
            norm=partial(nn.RMSNorm, eps=1e-6),
        )

    torch.manual_seed(seed)
    return SmallLM(mixer=mixer, width=WIDTH, heads=HEADS, layers=LAYERS)


def last_row(net: Any, ids: Tensor) -> Tensor:
    """(windows,): norm of what the heads of the first layer give in the last row."""
    import torch

    caught: list[Tensor] = []
    first = net.blocks[0].mixer.out
    handle = first.register_forward_pre_hook(lambda module, given: caught.append(given[0][:, -1]))
    try:
        with torch.no_grad():
            net(ids)
    finally:
        handle.remove()
    return caught[0].norm(dim=-1)


def outputs(seed: int) -> Values:
    """Ratios of the arms' outputs to softmax's at step 0."""
    from attlas.tasks import byte_text, load_source

    ids = next(byte_text(load_source("python-docs")).batches(PROBED, LENGTH, seed))[:, :-1]
    base = last_row(network("softmax", seed), ids)
    return {f"output, {arm}": float((last_row(network(arm, seed), ids) / base).mean()) for arm in ARMS[1:]}


def trained(arm: str, seed: int, long: bool, step: Step) -> Values:
    """Nats per byte of held-out text."""
    import torch

    from attlas.tasks import byte_text, load_source
    from attlas.train import Recipe, fit, next_token_loss

    text = byte_text(load_source("python-docs"))
    net = network(arm, seed)
    batch, steps = (LONG_BATCH, LONG_STEPS) if long else (BATCH, STEPS)
    fit(net, text.batches(batch, LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    windows = text.test_windows(LENGTH, WINDOWS)
    with torch.no_grad():
        nats = sum(next_token_loss(net, some).item() * len(some) for some in windows.split(32))
    return {f"nats, {arm}": nats / len(windows)}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Outputs at the start, then the loss of three nets."""
    found = dict(remember(folder, "outputs", partial(outputs, seed)))
    for number, arm in enumerate(ARMS):

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        found |= remember(folder, f"arm-{number}", partial(trained, arm, seed, long, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    soft, near, none = (table[f"nats, {arm}"] for arm in ARMS)
    ratios = [table[f"output, {arm}"]["mean"] for arm in ARMS[1:]]
    told = ", ".join(
        f"{arm} {row['mean']:.3f} ± {row['sd']:.3f}"
        for arm, row in zip(ARMS, (soft, near, none), strict=True)
    )
    measured = (
        f"Output in the last row at step 0, over softmax's: {ratios[0]:.2f} with -log {LENGTH}, "
        f"{ratios[1]:.1f} with 0 (n/2 is {LENGTH // 2}). Nats per byte after training: {told}."
    )
    rules = {
        f"output with -log n within {TWICE:g} times softmax's": 1 / TWICE <= ratios[0] <= TWICE,
        f"output with 0 at least n/4 = {LARGE:g} times softmax's": ratios[1] >= LARGE,
        f"loss with -log n at most {NEAR} of softmax's": near["mean"] <= NEAR * soft["mean"],
        "loss with 0 not below that with -log n": none["mean"] >= near["mean"] - max(none["sd"], near["sd"]),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    if none["mean"] <= near["mean"] + max(none["sd"], near["sd"]):
        text = f"{measured} The two biases are within the spread of the seeds."
        return Verdict("not shown at this scale", text)
    return Verdict("holds", measured)


CLAIM = Claim(
    says=(
        "Sigmoid attention with the bias -log n starts with outputs of softmax's size and trains as well; "
        "with bias 0 its outputs are far too large and it trains worse."
    ),
    rule=(
        "Nets that differ in the normaliser alone, means over the seeds. At step 0 the output in the last "
        f"row of a causal map of {LENGTH} tokens is within {TWICE:g} times softmax's with -log n, and at "
        "least n/4 times softmax's with 0. After equally many steps the loss with -log n is at most "
        f"{NEAR} of softmax's, and with 0 above that with -log n by more than the spread of the seeds "
        "(within it: not shown)."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
