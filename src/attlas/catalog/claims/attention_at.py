"""Attention AT's claim: adversarial training of attention scores makes weights agree with the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

    from attlas.models.attention_classifier import Sentences

__all__ = ["CLAIM", "judge", "measure"]

CATEGORIES = ("act", "communication", "cognition", "state")
TRAIN, TEST, WORDS, BATCH = 3200, 800, 20, 32
EMBEDDING, HIDDEN, STEPS = 64, 48, 500
LONG_EMBEDDING, LONG_HIDDEN, LONG_STEPS = 300, 128, 800
LEARNING_RATE, EPS, OTHER_EPS = 3e-3, 1.0, (0.1, 5.0)
VANILLA, PLAIN_AT, PLAIN_IAT, NOISE = "vanilla", "AT", "iAT", "random"
ARMS = (VANILLA, PLAIN_AT, PLAIN_IAT, NOISE)
LEARNT, HIGHER, NO_WORSE, SHARE = 0.5, 0.05, 0.01, 0.5
SETTINGS = {
    "task": f"WordNet glosses of noun.{', noun.'.join(CATEGORIES)}, {TRAIN} to train on, {TEST} unseen, "
    f"drawn anew by each seed, the first {WORDS} words; words seen twice or more, embeddings from scratch",
    "net": f"embedding {EMBEDDING}, BiLSTM {HIDDEN} per direction, additive attention, linear; with --long "
    f"{LONG_EMBEDDING} and {LONG_HIDDEN}, the paper's sizes",
    "training": f"AdamW {LEARNING_RATE} cosine, {STEPS} batches of {BATCH} (5 epochs; --long {LONG_STEPS}), "
    f"weight of the perturbed loss 1, eps {EPS:g}; iAT with differences as they are ('none'); the first seed "
    f"also trains AT with eps {OTHER_EPS[0]:g} and {OTHER_EPS[1]:g}",
    "measures": "macro F1; mean over the unseen sentences of the correlation of attention weights with the "
    "norm of the loss's gradient in a token's embedding (Pearson; Kendall is told)",
}


def objective(arm: str, eps: float, seed: int) -> Any:
    """The loss to train by."""
    import torch

    from attlas.train import AT, IAT, AttentionTraining, RandomDirection

    made: Mapping[str, Any] = {
        VANILLA: lambda: AttentionTraining(AT(eps), weight=0.0),
        PLAIN_AT: lambda: AttentionTraining(AT(eps)),
        PLAIN_IAT: lambda: AttentionTraining(IAT(eps, direction_norm="none")),
        NOISE: lambda: AttentionTraining(RandomDirection(eps, torch.Generator().manual_seed(seed))),
    }
    return made[arm]()


def batches(
    tokens: Tensor, valid: Tensor, labels: Tensor, rows: Iterator[Tensor]
) -> Iterator[tuple[Sentences, Tensor]]:
    """Batches without the columns that are padding in all sentences."""
    from attlas.models.attention_classifier import Sentences

    for index in rows:
        longest = int(valid[index].sum(1).max())
        yield Sentences(tokens[index, :longest], valid[index, :longest]), labels[index]


def trained(
    arm: str, eps: float, seed: int, sizes: tuple[int, int, int], name: str, step: Step
) -> dict[str, float]:
    """Macro F1 and both correlations on unseen glosses."""
    import torch
    from sklearn.metrics import f1_score

    from attlas.inspect.attention_importance import attention_agreement, weights_and_importance
    from attlas.models.attention_classifier import AttentionClassifier, Sentences
    from attlas.tasks import glosses, vocabulary
    from attlas.train import Recipe, fit

    train, test = glosses(CATEGORIES, seed=seed).split(TRAIN, TEST)
    words = vocabulary(train.texts)
    torch.manual_seed(seed)
    width, hidden, steps = sizes
    net = AttentionClassifier(len(words), len(CATEGORIES), width=width, hidden=hidden)
    rows = batches(*words.encode(train.texts, WORDS), train.labels, train.batches(BATCH, seed))
    fit(net, rows, objective(arm, eps, seed), Recipe(steps, learning_rate=LEARNING_RATE), step=step)
    inputs = Sentences(*words.encode(test.texts, WORDS))
    with torch.no_grad():
        found = net(inputs).argmax(-1)
    weights, importance = weights_and_importance(net, inputs, test.labels)
    values = {f"macro F1, {name}": float(f1_score(test.labels, found, average="macro"))}
    for kind in ("pearson", "kendall"):
        agreed = attention_agreement(weights, importance, inputs.valid, kind)
        values[f"{kind}, {name}"] = float(agreed.mean())
    return values


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every arm with one eps; the first seed also AT with the others."""
    sizes = (LONG_EMBEDDING, LONG_HIDDEN, LONG_STEPS) if long else (EMBEDDING, HIDDEN, STEPS)
    runs = [(arm, EPS, arm) for arm in ARMS]
    if seed == 0:
        runs += [(PLAIN_AT, eps, f"AT eps {eps:g}") for eps in OTHER_EPS]
    found: dict[str, float] = {}
    for arm, eps, name in runs:

        def say(text: str, name: str = name) -> None:
            step(f"{name}: {text}")

        found |= remember(folder, f"net-{name}", partial(trained, arm, eps, seed, sizes, name, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(what: str, arm: str) -> float:
        return table[f"{what}, {arm}"]["mean"]

    measured = _told(table, runs)
    if mean("macro F1", VANILLA) < LEARNT:
        return Verdict("not shown at this scale", f"The vanilla classifier learns too little: {measured}")
    gain = {arm: mean("pearson", arm) - mean("pearson", VANILLA) for arm in ARMS}
    clear = {
        arm: gain[arm] > max(HIGHER, table[f"pearson, {arm}"]["sd"] + table[f"pearson, {VANILLA}"]["sd"])
        for arm in (PLAIN_AT, PLAIN_IAT)
    }
    rules = {
        f"correlation of AT above vanilla by more than {HIGHER} and the spread": clear[PLAIN_AT],
        f"correlation of iAT above vanilla by more than {HIGHER} and the spread": clear[PLAIN_IAT],
        f"macro F1 of AT and iAT at most {NO_WORSE} below vanilla": all(
            mean("macro F1", arm) >= mean("macro F1", VANILLA) - NO_WORSE for arm in (PLAIN_AT, PLAIN_IAT)
        ),
        f"random directions gain less than {SHARE} of what AT gains": gain[NOISE] < SHARE * gain[PLAIN_AT],
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], runs: Sequence[Values]) -> str:
    parts = []
    for what, title in (("pearson", "Correlation with the gradient"), ("macro F1", "Macro F1")):
        rows = (
            f"{arm} {table[f'{what}, {arm}']['mean']:.3f} ± {table[f'{what}, {arm}']['sd']:.3f}"
            for arm in ARMS
        )
        parts.append(f"{title}: {', '.join(rows)}.")
    other = ", ".join(
        f"{eps:g}: {runs[0][f'macro F1, AT eps {eps:g}']:.3f} and {runs[0][f'pearson, AT eps {eps:g}']:.3f}"
        for eps in OTHER_EPS
        if f"macro F1, AT eps {eps:g}" in runs[0]
    )
    if other:
        first = f"{runs[0][f'macro F1, {PLAIN_AT}']:.3f} and {runs[0][f'pearson, {PLAIN_AT}']:.3f}"
        parts.append(f"F1 and correlation of AT in the first seed at eps {EPS:g}: {first}, {other}.")
    return " ".join(parts)


CLAIM = Claim(
    says=(
        "Training against worst-case perturbations of the attention scores gives no worse predictions, and "
        "attention weights that agree better with the gradient's importance of words."
    ),
    rule=(
        "Nets that differ in their objective alone, means over the seeds. The correlation of attention "
        f"weights with the gradient's importance is above the vanilla net's by more than {HIGHER}, and by "
        "more than the sum of both standard deviations, for AT and for iAT; their macro F1 is at most "
        f"{NO_WORSE} below; random perturbations of the same norm gain less than {SHARE} of what AT gains. "
        "The other values of eps are told, not judged. Nothing is shown where the vanilla net's macro F1 is "
        f"below {LEARNT}."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
)
