"""Deconstructing attention's claim: mixing is indispensable, its form is not where some layers keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLAIM", "arms", "judge", "measure"]

LAYERS, LENGTH, BATCH, STEPS, WINDOWS = 4, 64, 8, 320, 256
LONG_BATCH, LONG_STEPS = 16, 1000
REPLACED = ("mlp", "approximate", "non_approximate", "random", "fixed", "static")
UNIFORM, HYBRID = ("mlp", "non_approximate", "static"), ("non_approximate", "static")
TOLERANCE = 0.01  # of parameters, over the whole net
LEARNT, WORSE, NEAR, COLLAPSED, FLOOR = 0.95, 1.1, 1.2, 2.0, 0.97
SETTINGS = {
    "model": f"{LAYERS} layers, width 64, 4 heads, rotary positions, MLPs of 4 times the width",
    "text": f"python-docs, bytes, {STEPS} steps of {BATCH} windows of {LENGTH} ({LONG_STEPS} of {LONG_BATCH} "
    f"with --long); perplexity per byte of {WINDOWS} held-out windows",
    "arms": f"standard; uniform {', '.join(UNIFORM)}; hybrid {', '.join(HYBRID)} in the odd layers, each "
    "also without its replaced blocks (--long: all six variants)",
}


def arms(long: bool) -> dict[str, tuple[str, ...]]:
    """The kinds of every net's layers."""
    from attlas.models import hybrid

    uniform, mixed = (REPLACED, REPLACED) if long else (UNIFORM, HYBRID)
    return (
        {"standard": ("standard",) * LAYERS}
        | {f"uniform {kind}": (kind,) * LAYERS for kind in uniform}
        | {f"hybrid {kind}": hybrid(kind, LAYERS) for kind in mixed}
    )


def trained(name: str, kinds: tuple[str, ...], seed: int, steps: int, batch: int, step: Step) -> Values:
    """Perplexity per held-out byte of a net, and of a hybrid without what was replaced; its parameters."""
    import torch

    from attlas.models import DeconstructedLM
    from attlas.tasks import byte_text, load_source
    from attlas.train import Recipe, fit, next_token_loss

    text = byte_text(load_source("python-docs"))
    torch.manual_seed(seed)
    first = text.train[:LENGTH] if "fixed" in kinds else None
    net = DeconstructedLM(kinds, length=LENGTH, sequence=first)
    fit(net, text.batches(batch, LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    windows = text.test_windows(LENGTH, WINDOWS)

    def perplexity(model: DeconstructedLM) -> float:
        with torch.no_grad():
            nats = sum(next_token_loss(model, some).item() * len(some) for some in windows.split(32))
        return math.exp(nats / len(windows))

    found = {f"perplexity, {name}": perplexity(net)}
    found[f"parameters, {name}"] = float(sum(weight.numel() for weight in net.parameters()))
    if name.startswith("hybrid"):
        found[f"perplexity, {name}, skipped"] = perplexity(net.without_replaced())
    return found


def bigrams() -> Values:
    """Perplexity of the same held-out bytes by counts of the byte before, each pair counted once more."""
    import torch

    from attlas.tasks import byte_text, load_source

    text = byte_text(load_source("python-docs"))
    counts = torch.ones(256, 256, dtype=torch.float64)
    counts.view(-1).index_add_(
        0, text.train[:-1] * 256 + text.train[1:], torch.ones(len(text.train) - 1, dtype=torch.float64)
    )
    log_share: Tensor = counts.log() - counts.sum(1, keepdim=True).log()
    windows = text.test_windows(LENGTH, WINDOWS)
    return {"perplexity, bigrams": math.exp(-float(log_share[windows[:, :-1], windows[:, 1:]].mean()))}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every net, from equal data; ValueError where their parameters differ by more than TOLERANCE."""
    found = dict(remember(folder, "bigrams", bigrams))
    steps, batch = (LONG_STEPS, LONG_BATCH) if long else (STEPS, BATCH)
    for name, kinds in arms(long).items():

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        net = partial(trained, name, kinds, seed, steps, batch, say)
        found |= remember(folder, name.replace(" ", "-"), net)
    sizes = {name: size for name, size in found.items() if name.startswith("parameters")}
    gap = max(abs(size / sizes["parameters, standard"] - 1) for size in sizes.values())
    if gap > TOLERANCE:
        raise ValueError(f"parameters differ by {gap:.1%}, more than {TOLERANCE:.0%}: {sizes}")
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim."""
    table = spread(runs)
    measured = _told(table)

    def mean(name: str) -> float:
        return table[f"perplexity, {name}"]["mean"]

    standard = mean("standard")
    if standard > LEARNT * mean("bigrams"):
        return Verdict("not shown at this scale", f"Attention does no better than bigrams: {measured}")
    mixed = [name for name in _arms(table) if name.startswith("hybrid")]
    pairs = [(name.removeprefix("hybrid "), name) for name in mixed]

    def gain(run: Values, kind: str) -> float:
        return run[f"perplexity, uniform {kind}"] / run[f"perplexity, hybrid {kind}"]

    rules = {
        f"uniform MLP at least {WORSE} of standard": mean("uniform mlp") >= WORSE * standard,
        f"uniform MLP at least {FLOOR} of the bigrams": mean("uniform mlp") >= FLOOR * mean("bigrams"),
        f"every hybrid at most {NEAR} of standard": all(mean(name) <= NEAR * standard for name in mixed),
        "every hybrid below its uniform net in every seed": all(
            gain(run, kind) > 1 for run in runs for kind, _ in pairs if f"uniform {kind}" in _arms(table)
        ),
        "Non-approximate gains most from the hybrid in every seed": all(
            gain(run, "non_approximate") > gain(run, kind)
            for run in runs
            for kind, _ in pairs
            if kind not in ("non_approximate", "mlp")
        ),
        f"a hybrid without its replaced blocks at least {COLLAPSED:g} times": all(
            mean(f"{name}, skipped") >= COLLAPSED * mean(name) for name in mixed
        ),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _arms(table: Mapping[str, Any]) -> list[str]:
    """The nets that were trained, in the order of `arms`."""
    return [name for name in arms(long=True) if f"perplexity, {name}" in table]


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def one(name: str) -> str:
        row = table[f"perplexity, {name}"]
        text = f"{name} {row['mean']:.2f} ± {row['sd']:.2f}"
        skipped = table.get(f"perplexity, {name}, skipped")
        return text + (f" (skipped {skipped['mean']:.1f})" if skipped else "")

    sizes = {name: table[f"parameters, {name}"]["mean"] for name in _arms(table)}
    gap = max(abs(size / sizes["standard"] - 1) for size in sizes.values())
    return (
        f"Perplexity per byte: {', '.join(one(name) for name in _arms(table))}; bigrams "
        f"{table['perplexity, bigrams']['mean']:.2f}. Parameters: {sizes['standard']:,.0f}, equal to "
        f"{gap:.2%}."
    )


CLAIM = Claim(
    says=(
        "Without mixing tokens a language model collapses; the form of attention and its dependence on the "
        "input can be relaxed, above all where some layers stay standard: then even variants that fail alone "
        "come near standard attention, and deleting them destroys the model."
    ),
    rule=(
        f"Nets of equal parameters (to {TOLERANCE:.0%}) on bytes of text, means over the seeds unless said "
        f"otherwise. Perplexity of uniform MLP is at least {WORSE} of standard attention's and at least "
        f"{FLOOR} of the bigrams', which no net that sees one byte can be much below; every hybrid is at "
        f"most {NEAR} of standard attention's, and in every seed below the uniform net of its variant; of "
        "the attention variants Non-approximate gains most from the hybrid in every seed; without its "
        f"replaced blocks a trained hybrid has at least {COLLAPSED:g} times its perplexity. Nothing is "
        f"shown where standard attention is not below {LEARNT} of the bigrams' perplexity."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
