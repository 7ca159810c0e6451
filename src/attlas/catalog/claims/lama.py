"""LAMA: low-rank pooling classifies like a self-attention block of many more parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "judge", "measure"]

TRAIN, TEST, WORDS = 6000, 2000, 24
EMBEDDING, HIDDEN, HEADS, DROPOUT = 64, 64, 5, 0.2
LONG_EMBEDDING, LONG_HIDDEN = 100, 100
ATTENTION_HEADS = 4
EPOCHS, BATCH, RATE = 3, 32, 2e-3
ARMS = ("mean", "additive", "self-attention", "LAMA", "LAMA+ctx")
RIVAL, OURS = ARMS[2], ARMS[3]
NEAR, LEARNT = 0.01, 0.4
CLASSES = 26
SETTINGS = {
    "data": f"WordNet's noun glosses, {CLASSES} classes, {TRAIN} to train on and {TEST} to judge by, the "
    f"first {WORDS} words of each; words that stand twice in the training part",
    "net": f"embedding {EMBEDDING}, BiGRU of {HIDDEN} per direction (100 and 100 with --long), dropout "
    f"{DROPOUT}, pooling, linear classes",
    "pooling": f"LAMA with {HEADS} heads, self-attention with {ATTENTION_HEADS}",
    "training": f"AdamW {RATE} without weight decay, cosine, {EPOCHS} epochs of batches of {BATCH}",
    "time": "CPU time of training per epoch",
}


def pooling(name: str, width: int) -> tuple[nn.Module, int]:
    """What pools the states of a net, and to how many vectors."""
    from attlas.layers import LAMA, AdditivePooling, MeanPooling, SelfAttentionPooling

    if name == "mean":
        return MeanPooling(), 1
    if name == "additive":
        return AdditivePooling(width), 1
    if name == "self-attention":
        return SelfAttentionPooling(width, ATTENTION_HEADS), 1
    return LAMA(width, HEADS, context="mean" if name == "LAMA+ctx" else "learned"), HEADS


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Five nets on the same glosses."""
    found: dict[str, float] = {}
    for name in ARMS:

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        values = remember(folder, name.replace("+", "-"), partial(_trained, name, seed, long, say))
        found |= {f"{key}, {name}": value for key, value in values.items()}
    return found


def _trained(name: str, seed: int, long: bool, step: Step) -> Values:
    import torch
    from torch.nn.functional import cross_entropy

    from attlas.models import RecurrentClassifier
    from attlas.tasks import glosses, vocabulary
    from attlas.train import Recipe, fit

    train, test = glosses(count=TRAIN + TEST, seed=seed).split(TRAIN, TEST)
    words = vocabulary(train.texts)
    shown, judged = (words.encode(part.texts, WORDS) for part in (train, test))
    embedding, hidden = (LONG_EMBEDDING, LONG_HIDDEN) if long else (EMBEDDING, HIDDEN)
    torch.manual_seed(seed)
    pool, pooled = pooling(name, 2 * hidden)
    net = RecurrentClassifier(
        pool, vocabulary=len(words), classes=len(train.names), pooled=pooled,
        embedding=embedding, hidden=hidden, dropout=DROPOUT,
    )  # fmt: skip

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, valid, labels = batch
        return cross_entropy(model(ids, valid), labels)

    recipe = Recipe(EPOCHS * TRAIN // BATCH, learning_rate=RATE, weight_decay=0.0)
    begun = time.process_time()
    fit(net, _batches(*shown, train.labels, seed), loss, recipe, step=step)
    spent = (time.process_time() - begun) / EPOCHS
    with torch.no_grad():
        parts = zip(*(part.split(256) for part in judged), strict=True)
        right = torch.cat([net(ids, valid).argmax(-1) for ids, valid in parts]) == test.labels
    return {
        "accuracy": right.double().mean().item(),
        "attention parameters": float(sum(p.numel() for p in pool.parameters())),
        "seconds per epoch": spent,
    }


def _batches(
    ids: Tensor, valid: Tensor, labels: Tensor, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Epoch after epoch, each in an order of its own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(ids), generator=generator).split(BATCH):
            yield ids[chosen], valid[chosen], labels[chosen]


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on means over the seeds."""
    table = spread(runs)

    def mean(what: str, name: str) -> float:
        return table[f"{what}, {name}"]["mean"]

    measured = _told(table)
    if mean("accuracy", RIVAL) < LEARNT:
        return Verdict("not shown at this scale", f"Self-attention does not learn the classes: {measured}")
    rules = {
        f"accuracy at most {NEAR} below self-attention": (
            mean("accuracy", OURS) >= mean("accuracy", RIVAL) - NEAR
        ),
        "less time per epoch with every seed": all(
            run[f"seconds per epoch, {OURS}"] < run[f"seconds per epoch, {RIVAL}"] for run in runs
        ),
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def one(name: str) -> str:
        accuracy = table[f"accuracy, {name}"]
        return (
            f"{name} {accuracy['mean']:.3f} ± {accuracy['sd']:.3f} "
            f"({table[f'attention parameters, {name}']['mean']:.0f} parameters of the pooling, "
            f"{table[f'seconds per epoch, {name}']['mean']:.1f} CPU seconds an epoch)"
        )

    ours, theirs = (table[f"attention parameters, {name}"]["mean"] for name in (OURS, RIVAL))
    # The states' width, from LAMA's P, Q and context.
    width = ours / (2 * HEADS + 1)
    more, less = (pool + (vectors * width + 1) * CLASSES for pool, vectors in ((theirs, 1), (ours, HEADS)))
    return (
        f"Accuracy: {', '.join(map(one, ARMS))}. Given, not measured: the pooling of {OURS} has "
        f"{theirs / ours:.1f} times fewer parameters than that of {RIVAL}; with the classes, which read "
        f"{HEADS} vectors and not one, {less:,.0f} against {more:,.0f}, {more / less:.1f} times fewer."
    )


CLAIM = Claim(
    says=(
        "Attention of rank one per head against one context vector classifies texts as well as multi-head "
        "self-attention, with fewer parameters and less time."
    ),
    rule=(
        f"Glosses of {CLASSES} classes, the same BiGRU with five poolings, means over the seeds: LAMA's "
        f"accuracy is at most {NEAR} below that of the self-attention block, and an epoch of "
        "training takes less CPU time with every seed. The parameters are given with the sizes, of "
        f"the pooling and of pooling and classes together, and not judged. "
        f"Nothing is shown where self-attention is below {LEARNT}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
