"""DSF's claim: one conversion fits all mixers, more state recalls more, a learned normaliser recalls most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CLAIM", "judge", "measure"]

VOCABULARY, LENGTH, PAIRS, WIDTH = 512, 64, 8, 64
EXAMPLES, TESTED, BATCH, STEPS, LONG_STEPS = 20_000, 1000, 128, 600, 1250
KEY_WIDTHS, LONG_KEY_WIDTHS = (8, 32), (8, 16, 32)
LINEAR, NORMALISED, SOFTMAX = "linear", "normalised", "softmax"
CONVERTED = (
    "softmax",
    "linear",
    "based_linear",
    "normalised_linear",
    "aaren",
    "mamba",
    "qlstm",
    "qlstm_reversed",
)
CONVERTED_LENGTH = 24
LEARNT, RISE, EXACT = 0.9, 0.1, 1e-10
SETTINGS = {
    "task": f"MQAR, vocabulary {VOCABULARY}, length {LENGTH}, {PAIRS} pairs, filler 0, {EXAMPLES} examples",
    "model": f"2 layers, a convolution of three taps and the mixer, width {WIDTH}, 1 head, no MLP",
    "training": f"{STEPS} steps of {BATCH} ({LONG_STEPS} with --long), AdamW 3e-3 with cosine decay",
    "widths": f"queries and keys of {KEY_WIDTHS} channels ({LONG_KEY_WIDTHS} with --long); values {WIDTH}; "
    "softmax has queries and keys of the full width",
    "conversion": f"{', '.join(CONVERTED)}, width 16, 2 heads, {CONVERTED_LENGTH} tokens, float64",
}


def network(name: str, key_width: int, seed: int) -> nn.Module:
    """A convolution of three taps, then the mixer of the arm."""
    import torch

    from attlas.layers import BaseConv, LinearAttention, NormalisedLinear, SelfAttention
    from attlas.models import RecallNet
    from attlas.pattern import causal

    def mixer(layer: int) -> nn.Module:
        if layer == 0:
            return BaseConv(WIDTH)
        if name == SOFTMAX:
            return SelfAttention(WIDTH, 1, pattern=causal())
        kind = LinearAttention if name == LINEAR else NormalisedLinear
        return kind(WIDTH, 1, key_width=key_width)

    torch.manual_seed(seed)
    return RecallNet(mixer, vocabulary=VOCABULARY, width=WIDTH)


def accuracy(name: str, key_width: int, seed: int, steps: int, step: Step) -> Values:
    """Share of the queries of unseen examples that a trained net answers right."""
    import torch

    from attlas.tasks import mqar
    from attlas.train import Recipe, fit, recall_loss

    train, test = mqar(
        vocabulary=VOCABULARY, length=LENGTH, pairs=PAIRS, train=EXAMPLES, test=TESTED, seed=seed
    )
    net = network(name, key_width, seed)
    fit(net, train.batches(BATCH, seed), recall_loss, Recipe(steps), step=step)
    with torch.no_grad():
        found = torch.cat([net(ids).argmax(-1) for ids in test.ids.split(100)])
    return {"accuracy": test.accuracy(found)}


def conversions(seed: int) -> Values:
    """Error of every converted mixer's transfer matrix against the mixer, relative to its largest output."""
    import torch

    from attlas.inspect import from_mixer
    from attlas.layers import MIXERS, Setting

    torch.manual_seed(seed)
    found, x = {}, torch.randn(2, CONVERTED_LENGTH, 16, dtype=torch.float64)
    with torch.no_grad():
        for name in CONVERTED:
            mixer = MIXERS[name].build(Setting(16, 2)).double()
            realised, exact = from_mixer(mixer, x), mixer(x)
            through = torch.einsum("bijed,bjd->bie", realised.system.transfer(), realised.inputs)
            error = (through - exact).abs().max() / exact.abs().max()
            found[f"error of {name} as a system"] = error.item()
    return found


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """The conversions, and every arm trained and tested."""
    found: dict[str, float] = dict(remember(folder, "conversions", partial(conversions, seed)))
    sizes = LONG_KEY_WIDTHS if long else KEY_WIDTHS
    arms = [(name, size) for name in (LINEAR, NORMALISED) for size in sizes]
    for name, size in [*arms, (SOFTMAX, WIDTH)]:
        arm = _arm(name, size)

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        run = partial(accuracy, name, size, seed, LONG_STEPS if long else STEPS, say)
        found[f"accuracy, {arm}"] = remember(folder, arm.replace(" ", "-"), run)["accuracy"]
    return found


def _arm(name: str, size: int) -> str:
    return name if name == SOFTMAX else f"{name} {size}"


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    sizes = [size for size in LONG_KEY_WIDTHS if f"accuracy, {_arm(LINEAR, size)}" in table]

    def mean(name: str, size: int) -> float:
        return table[f"accuracy, {_arm(name, size)}"]["mean"]

    softmax = mean(SOFTMAX, WIDTH)
    worst = max(row["largest"] for name, row in table.items() if name.startswith("error of "))
    measured = _told(table, sizes, worst)
    if softmax < LEARNT:
        return Verdict("not shown at this scale", f"Softmax attention does not learn the task: {measured}")
    rules = {
        f"errors of the conversions below {EXACT:g}": worst < EXACT,
        f"linear attention gains at least {RISE} from the larger state": mean(LINEAR, sizes[-1])
        >= mean(LINEAR, sizes[0]) + RISE,
        "linear attention stays below softmax": mean(LINEAR, sizes[-1]) <= softmax,
        "normalised attention at least linear attention at every state": all(
            mean(NORMALISED, size) >= mean(LINEAR, size) for size in sizes
        ),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], sizes: Sequence[int], worst: float) -> str:
    arms = [*(_arm(name, size) for name in (LINEAR, NORMALISED) for size in sizes), SOFTMAX]
    rows = ", ".join(
        f"{arm} {table[f'accuracy, {arm}']['mean']:.3f} ± {table[f'accuracy, {arm}']['sd']:.3f}"
        for arm in arms
    )
    return (
        f"Queries answered right: {rows} (the number: channels of queries and keys); guessing among the "
        f"values shown is {1 / PAIRS:.3f}. Largest error of a mixer as a system: {worst:.0e}."
    )


CLAIM = Claim(
    says=(
        "Attention, state space models and recurrent networks are systems of one form, exactly. A larger "
        "state recalls more, up to softmax, whose state is infinite; a learned normaliser of the input "
        "recalls more than the sum of weights at an equal state."
    ),
    rule=(
        f"{len(CONVERTED)} mixers as systems reproduce their outputs within {EXACT:g} (relative, float64). "
        f"On MQAR with {PAIRS} pairs in {LENGTH} tokens, means over the seeds: linear attention (elu + 1) "
        f"gains at least {RISE} from the smallest to the largest state and stays at or below softmax; "
        "normalised attention is at least as good as linear attention at every state. Nothing is shown where "
        f"softmax answers less than {LEARNT} of the queries."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
