"""GAAM's claim: as good as attention over a frozen encoder's layers with hardly any parameters of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLAIM", "features", "judge", "measure", "network"]

LAYERS, WIDTH, CLASSES = 7, 384, 26
HEADS, GAUSSIANS = 8, 3
TRAIN, TEST, LONG_TRAIN, LONG_TEST = 4000, 1000, 20000, 5000
WORDS, BATCH, STEPS, LONG_STEPS, RATE = 48, 64, 400, 3000, 3e-3
SHARE, DRAWS = 0.2, 10
GAAM_ARM, PLAIN, MHA, MEAN = "GAAM", "GAAM without residual", "multi-head attention", "mean"
ARMS = (GAAM_ARM, PLAIN, MHA, MEAN)
NEAR, LEARNED = 0.01, 0.4
SETTINGS = {
    "task": f"WordNet glosses by lexicographer file, {CLASSES} classes, {TRAIN} to train on, {TEST} unseen "
    f"({LONG_TRAIN} and {LONG_TEST} with --long); the seed draws them and starts the nets",
    "features": f"all-MiniLM-L6-v2, frozen: embeddings and 6 layers, means over at most {WORDS} tokens, "
    f"{LAYERS} x {WIDTH}, standardised by the training glosses",
    "nets": "x + attention(x), mean of the rows, LayerNorm, linear classes; without residual: GAAM(x) alone; "
    "mean: without attention",
    "GAAM": f"along the {WIDTH} features, {HEADS} heads of {GAUSSIANS} Gaussians",
    "multi-head attention": f"over the {LAYERS} rows, {HEADS} heads, with biases",
    "training": f"AdamW {RATE} cosine, {STEPS} batches of {BATCH} ({LONG_STEPS} with --long)",
    "masking": f"{SHARE:.0%} of the {LAYERS} x {WIDTH} features set to their mean; random: {DRAWS} draws",
}


@cache
def features(count: int) -> tuple[Tensor, Tensor]:
    """((count, 7, 384), labels) of the first glosses in one order; computed once in a process."""
    import torch

    from attlas.bridges import load_encoder
    from attlas.tasks import glosses

    model, tokenizer = load_encoder("minilm")
    data = glosses(count=count, seed=0)
    found = torch.empty(count, LAYERS, WIDTH)
    # Texts of like length together: little padding.
    order = sorted(range(count), key=lambda at: len(data.texts[at]))
    with torch.no_grad():
        for first in range(0, count, 64):
            chosen = order[first : first + 64]
            words = tokenizer(
                [data.texts[at] for at in chosen],
                padding=True, truncation=True, max_length=WORDS, return_tensors="pt",
            )  # fmt: skip
            layers = torch.stack(model(**words, output_hidden_states=True).hidden_states, 1)
            mask = words["attention_mask"][:, None, :, None].float()
            found[chosen] = (layers * mask).sum(2) / mask.sum(2)
    return found, data.labels


def network(arm: str, seed: int) -> nn.Module:
    """A classifier of (B, 7, 384) with the attention of an arm; all else has equal sizes."""
    import torch
    from torch import nn

    from attlas.layers import GAAM, GaussianBlock, SelfAttention
    from attlas.models.small_net import MeanToken

    class Added(nn.Module):
        """x + inner(x)."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    torch.manual_seed(seed)
    attention: dict[str, nn.Module] = {
        GAAM_ARM: GaussianBlock([GAAM(HEADS, gaussians=GAUSSIANS, dim=-1)]),
        PLAIN: GAAM(HEADS, gaussians=GAUSSIANS, dim=-1),
        MHA: Added(SelfAttention(WIDTH, HEADS, bias=True)),
        MEAN: nn.Identity(),
    }
    torch.manual_seed(seed)  # equal starts of what is equal
    return nn.Sequential(
        attention[arm], MeanToken(), nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Linear(WIDTH, CLASSES)
    )


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Four classifiers, and the masks by GAAM's importance."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(told: str, arm: str = arm) -> None:
            step(f"{arm}: {told}")

        found |= remember(folder, arm.lower().replace(" ", "-"), partial(_one, arm, seed, long, say))
    return found


def _split(seed: int, long: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    import torch

    train, test = (LONG_TRAIN, LONG_TEST) if long else (TRAIN, TEST)
    x, labels = features(train + test)
    order = torch.randperm(train + test, generator=torch.Generator().manual_seed(seed))
    kept = order[:train]
    x = (x - x[kept].mean(0)) / x[kept].std(0)
    return (x[kept], labels[kept]), (x[order[train:]], labels[order[train:]])


def _batches(x: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(0, len(labels), (BATCH,), generator=generator)
        yield x[chosen], labels[chosen]


def _one(arm: str, seed: int, long: bool, step: Step) -> Values:
    from attlas.train import Recipe, fit, label_loss

    step("features of the encoder")
    train, test = _split(seed, long)
    net: Any = network(arm, seed)
    steps = LONG_STEPS if long else STEPS
    fit(net, _batches(*train, seed), label_loss, Recipe(steps, learning_rate=RATE), step=step)
    values: Values = {
        f"accuracy, {arm}": _accuracy(net, *test),
        f"parameters, {arm}": float(sum(part.numel() for part in net[0].parameters())),
    }
    return {**values, **(_masked(net, train[0], test, seed) if arm == GAAM_ARM else {})}


def _accuracy(net: Any, x: Tensor, labels: Tensor) -> float:
    import torch

    with torch.no_grad():
        right: float = (net(x).argmax(-1) == labels).double().mean().item()
    return right


def _masked(net: Any, seen: Tensor, test: tuple[Tensor, Tensor], seed: int) -> Values:
    """Accuracy without the features of largest importance, and without as many random ones."""
    import torch

    from attlas.layers import importance

    with torch.no_grad():
        heat = importance(net[0].layers[0].weights(seen).mean(0)).flatten()
    count = round(SHARE * heat.numel())
    generator = torch.Generator().manual_seed(seed)

    def without(chosen: Tensor) -> float:
        kept = torch.ones_like(heat)
        kept[chosen] = 0.0  # the mean of a standardised feature
        return _accuracy(net, test[0] * kept.view(1, LAYERS, WIDTH), test[1])

    random = [without(torch.randperm(len(heat), generator=generator)[:count]) for _ in range(DRAWS)]
    return {
        "accuracy, most important masked": without(heat.topk(count).indices),
        "accuracy, random masked": sum(random) / DRAWS,
        "accuracy, random masked, least": min(random),
    }


def judge(runs: Sequence[Values]) -> Verdict:
    """Parity, and what the importance is worth."""
    table = spread(runs)
    told = _told(table)
    if table[f"accuracy, {MHA}"]["mean"] < LEARNED:
        return Verdict("not shown at this scale", f"Multi-head attention does not learn the task. {told}")
    gap, noise = _gap(table)
    rules = {
        f"GAAM at most {NEAR} below multi-head attention": (
            table[f"accuracy, {GAAM_ARM}"]["mean"] >= table[f"accuracy, {MHA}"]["mean"] - NEAR
        ),
        "important features are not worth less than random ones": gap >= -noise,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{told} Not met: {'; '.join(failed)}.")
    if gap <= noise:
        return Verdict("not shown at this scale", f"{told} The two masks differ by less than the seeds do.")
    return Verdict("holds", told)


def _gap(table: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """By how much masking the important features costs more, and the spread over the seeds."""
    best, random = table["accuracy, most important masked"], table["accuracy, random masked"]
    return random["mean"] - best["mean"], max(random["sd"], best["sd"])


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    arms = ", ".join(
        f"{arm} {row['mean']:.3f} ± {row['sd']:.3f} ({table[f'parameters, {arm}']['mean']:.0f} parameters)"
        for arm in ARMS
        for row in (table[f"accuracy, {arm}"],)
    )
    masks = ", ".join(
        f"{name} {row['mean']:.3f} ± {row['sd']:.3f}"
        for name in ("most important", "random")
        for row in (table[f"accuracy, {name} masked"],)
    )
    return f"Accuracy on unseen glosses: {arms}. With {SHARE:.0%} of the features masked: {masks}."


CLAIM = Claim(
    says=(
        "Weighting the features of a frozen encoder's layers by Gaussians of their own values is as good as "
        "multi-head attention over the layers with a small share of its parameters, and its weights tell "
        "which features matter."
    ),
    rule=(
        f"WordNet glosses in {CLASSES} classes, means over the seeds: the accuracy with GAAM is at most "
        f"{NEAR} below that with multi-head attention; and masking the {SHARE:.0%} of features with the "
        "largest importance costs more than masking as many random ones, by more than the spread of the "
        "seeds (a difference of either sign within the spread: not shown). Nothing is shown where multi-head "
        f"attention stays below {LEARNED}. Told, not judged: the parameters, which follow from the sizes; "
        "GAAM without the residual connection; and the mean without attention, which says what either adds."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
)
