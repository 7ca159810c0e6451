"""Combiner's claim: full support at sparse cost reads better than a sparse pattern of the same cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "judge", "measure"]

NAMES = ("full", "combiner", "sparse", "local")
WIDTH, HEADS, LAYERS = 64, 4, 2
SYMBOLS, COPY_LENGTH, COPY_SEGMENT = 16, 64, 8
TEXT_LENGTH, TEXT_SEGMENT, TEXT_BATCH, TEXT_STEPS = 128, 8, 8, 350
COPY_BATCH, COPY_STEPS, LONG_COPY_BATCH, LONG_COPY_STEPS = 32, 400, 64, 750
LONG_TEXT_STEPS = 3000
TESTED, WINDOWS = 256, 192
# Shares of training after which the copy task's accuracy is told.
CURVE = (0.25, 0.5, 0.75)
LEARNT, NEAR_COPY, NEAR_TEXT, APART = 0.9, 0.9, 1.03, 0.01
SETTINGS = {
    "model": f"{LAYERS} layers, width {WIDTH}, {HEADS} heads",
    "copy": f"{SYMBOLS} symbols, length {COPY_LENGTH}, segment {COPY_SEGMENT}, {COPY_STEPS} steps of "
    f"{COPY_BATCH} ({LONG_COPY_STEPS} of {LONG_COPY_BATCH} with --long), learned positions at the input",
    "text": f"python-docs, bytes, length {TEXT_LENGTH}, segment {TEXT_SEGMENT}, {TEXT_STEPS} steps of "
    f"{TEXT_BATCH} ({LONG_TEXT_STEPS} with --long), rotary positions",
}


def mixers(segment: int, base: float | None) -> dict[str, Callable[[int], nn.Module]]:
    """A token mixer per layer for every net; parameters are the same in all. base: of rotary positions."""
    import torch

    from attlas.layers import SelfAttention, rotary
    from attlas.layers.combiner import Combiner, fixed, segments_and_nodes
    from attlas.pattern import causal, group

    def placed(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if base is None:
            return query, key
        at = torch.arange(query.shape[2], device=query.device)
        return rotary(query, at, base=base), rotary(key, at, base=base)

    def summaries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return fixed(*placed(query, key), value, segment=segment)

    def last_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Sparse Transformer's fixed pattern: the last token of each earlier segment, as it is.
        query, key = placed(query, key)
        regions = (query.shape[2] - 1) // segment
        ends = slice(segment - 1, regions * segment, segment)
        return segments_and_nodes(
            query, key, value, node_key=key[:, :, ends], node_value=value[:, :, ends], segment=segment
        )

    within = causal() & group(segment)
    return {
        "full": lambda layer: SelfAttention(WIDTH, HEADS, pattern=causal(), base=base),
        "combiner": lambda layer: Combiner(WIDTH, HEADS, summaries),
        "sparse": lambda layer: Combiner(WIDTH, HEADS, last_tokens),
        "local": lambda layer: SelfAttention(WIDTH, HEADS, pattern=within, base=base),
    }


def network(
    name: str, segment: int, vocabulary: int, seed: int, *, base: float | None = None, places: int = 0
) -> nn.Module:
    """`SmallLM` with the named mixer; rotary positions of `base`, or `places` learned ones at the input."""
    import torch
    from torch import nn

    from attlas.models import SmallLM

    class Placed(nn.Module):
        def __init__(self, tokens: nn.Module) -> None:
            super().__init__()
            self.tokens, self.places = tokens, nn.Embedding(places, WIDTH)
            nn.init.normal_(self.places.weight, std=0.02)

        def forward(self, ids: Tensor) -> Tensor:
            return self.tokens(ids) + self.places.weight[: ids.shape[1]]

    torch.manual_seed(seed)
    net = SmallLM(
        mixer=mixers(segment, base)[name], vocabulary=vocabulary, width=WIDTH, heads=HEADS, layers=LAYERS
    )
    if places:
        net.embedding = Placed(net.embedding)
    return net


def copies(count: int, seed: int) -> Iterator[Tensor]:
    """Endless batches (count, length): random symbols, then the same again."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        first = torch.randint(0, SYMBOLS, (count, COPY_LENGTH // 2), generator=generator)
        yield torch.cat([first, first], 1)


def copy_values(name: str, seed: int, steps: int, batch: int, step: Step) -> Values:
    """Accuracy over the second half: of fresh batches while it trains, and of unseen sequences at the end."""
    import torch
    from torch.nn import functional

    from attlas.train import Recipe, fit

    net = network(name, COPY_SEGMENT, SYMBOLS, seed, places=COPY_LENGTH - 1)
    half, right = COPY_LENGTH // 2, []

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1])[:, half - 1 :]
        right.append((logits.argmax(-1) == ids[:, half:]).float().mean().item())
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, half:].flatten())

    fit(net, copies(batch, seed), loss, Recipe(steps), step=step)
    some = max(1, steps // 20)
    values = {
        f"copy accuracy at {share:.0%}, {name}": sum(right[int(share * steps) :][:some]) / some
        for share in CURVE
    }
    tested = next(copies(TESTED, seed + 10_000))
    with torch.no_grad():
        found = net(tested[:, :-1])[:, half - 1 :].argmax(-1)
    return values | {f"copy accuracy, {name}": (found == tested[:, half:]).float().mean().item()}


def text_values(name: str, seed: int, steps: int, step: Step) -> Values:
    """Bits per byte of held-out text."""
    import math

    import torch

    from attlas.tasks import byte_text, load_source
    from attlas.train import Recipe, fit, next_token_loss

    text = byte_text(load_source("python-docs"))
    net = network(name, TEXT_SEGMENT, 256, seed, base=10_000.0)
    fit(net, text.batches(TEXT_BATCH, TEXT_LENGTH, seed), next_token_loss, Recipe(steps), step=step)
    windows = text.test_windows(TEXT_LENGTH, WINDOWS)
    with torch.no_grad():
        nats = sum(next_token_loss(net, some).item() * len(some) for some in windows.split(16))
    return {f"bits per byte, {name}": nats / len(windows) / math.log(2)}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Four nets on two tasks."""
    found: dict[str, float] = {}
    for name in NAMES:

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        copy = (LONG_COPY_STEPS, LONG_COPY_BATCH) if long else (COPY_STEPS, COPY_BATCH)
        steps = LONG_TEXT_STEPS if long else TEXT_STEPS
        found |= remember(folder, f"copy-{name}", partial(copy_values, name, seed, *copy, say))
        found |= remember(folder, f"text-{name}", partial(text_values, name, seed, steps, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(what: str, name: str) -> float:
        return table[f"{what}, {name}"]["mean"]

    copy = {name: mean("copy accuracy", name) for name in NAMES}
    bits = {name: mean("bits per byte", name) for name in NAMES}
    measured = _told(table)
    if copy["full"] < LEARNT:
        return Verdict("not shown at this scale", f"Full attention does not learn to copy: {measured}")
    if bits["local"] - bits["full"] < APART:
        return Verdict("not shown at this scale", f"This text needs nothing beyond a segment: {measured}")
    rules = {
        f"copy accuracy at least {NEAR_COPY} of full": copy["combiner"] >= NEAR_COPY * copy["full"],
        "copy accuracy at least that of sparse": copy["combiner"] >= copy["sparse"],
        f"bits per byte at most {NEAR_TEXT} of full": bits["combiner"] <= NEAR_TEXT * bits["full"],
        "bits per byte below sparse": bits["combiner"] < bits["sparse"],
        "sparse above local on both tasks": copy["sparse"] > copy["local"] and bits["sparse"] < bits["local"],
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(what: str, digits: int) -> str:
        return ", ".join(
            f"{name} {table[f'{what}, {name}']['mean']:.{digits}f}"
            f" ± {table[f'{what}, {name}']['sd']:.{digits}f}"
            for name in NAMES
        )

    curve = "; ".join(
        f"after {share:.0%} of training "
        + ", ".join(f"{name} {table[f'copy accuracy at {share:.0%}, {name}']['mean']:.2f}" for name in NAMES)
        for share in CURVE
    )
    return f"Bits per byte: {row('bits per byte', 3)}. Copy accuracy: {row('copy accuracy', 3)} ({curve})."


CLAIM = Claim(
    says=(
        "Every token is reached, directly or through a region's summary, at the cost of a sparse pattern: "
        "language models come near full attention and are better than the sparse pattern itself."
    ),
    rule=(
        "Nets that differ in their token mixer alone, means over the seeds. Copying half a sequence: "
        f"Combiner-Fixed reaches at least {NEAR_COPY} of full attention's accuracy and at least that of the "
        "sparse fixed pattern (own segment and the last token of each earlier one). Bytes of text: at most "
        f"{NEAR_TEXT} of full attention's bits per byte, and fewer than the sparse pattern. Sparse is better "
        f"than the segment alone on both. Nothing is shown where full attention copies less than {LEARNT} "
        f"right, or where on the text it gains less than {APART} bits over the segment alone."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
