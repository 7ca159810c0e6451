"""KGAT's claim: attention over typed edges of a knowledge graph recommends better than BPR-MF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

    from attlas.tasks.movielens_kg import MovieLensKG

__all__ = ["CLAIM", "judge", "measure"]

BASE, FULL, EVEN, PLAIN = "BPR-MF", "KGAT", "even weights", "no triples"
ARMS = (BASE, FULL, EVEN, PLAIN)
LONG_ARMS = (BASE, FULL)
PER_USER, MOST = 10, 20
WIDTH, LAYERS = 32, (32, 16)
RATES = (3e-4, 1e-3, 3e-3)
BATCH, TRIPLE_BATCH = 4096, 8192
EPOCHS, PATIENCE = 12, 4
BASE_EPOCHS, BASE_EVERY, BASE_PATIENCE = 400, 10, 5
LONG_EPOCHS = 30
SETTINGS = {
    "data": f"MovieLens-100K and its 91,631 triples, any rating counts; {PER_USER} interactions per user, "
    "80/10/10 "
    "per user (all interactions with --long, BPR-MF and KGAT only)",
    "model": f"width {WIDTH}, layers {LAYERS}, bi-interaction, dropout 0.1; KGAT starts from BPR-MF",
    "training": f"Adam, pairs in batches of {BATCH}, triples of {TRIPLE_BATCH}, up to {EPOCHS} epochs "
    f"({LONG_EPOCHS} with --long; BPR-MF {BASE_EPOCHS}); epoch and rate (of {RATES}) by validation recall, "
    "for every arm alike",
}


def quality(final: Tensor, data: MovieLensKG, known: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Recall and NDCG among the first MOST of all items that are not known."""
    from attlas.tasks.ranking import recall_and_ndcg

    scores = final[: data.users] @ final[data.users : data.users + data.items].T
    return recall_and_ndcg(scores, known, wanted, MOST)


def trained(
    arm: str, rate: float, data: MovieLensKG, seed: int, long: bool, folder: Path, step: Step
) -> Values:
    """Recall@20 on validation items, and recall and NDCG on test items, of the best epoch."""
    import torch

    from attlas.models.kgat import KGAT
    from attlas.train.kgat import Recommending, train_bpr, train_kgat

    known = data.table(data.train)
    valid, test = data.table(data.valid), data.table(data.test) & ~data.table(data.valid)
    base = arm == BASE
    plan = Recommending(
        data.train, data.items, lambda final: quality(final, data, known, valid & ~known)[0],
        epochs=BASE_EPOCHS if base else LONG_EPOCHS if long else EPOCHS, rate=rate, batch=BATCH,
        triple_batch=TRIPLE_BATCH, patience=BASE_PATIENCE if base else PATIENCE,
        every=BASE_EVERY if base else 1, seed=seed, step=step,
    )  # fmt: skip
    torch.manual_seed(seed)
    if base:
        start = _start(data)
        epoch = train_bpr(start, data.users, plan, start)
        _write(folder, f"start-{rate}", start.embedding)
        final = start()
    else:
        model = KGAT(
            data.users, data.entities, 2 * data.relations, width=WIDTH, relation_width=WIDTH, layers=LAYERS
        )
        start = _start(data)
        start.load_state_dict({"embedding": _read(folder)})
        model.start_from(start)
        graph = data.graph()
        epoch, weights = train_kgat(model, graph, plan, attentive=arm != EVEN, translation=arm != PLAIN)
        final = model(graph, weights)
    with torch.no_grad():
        found = (
            quality(final, data, known, valid & ~known)[0],
            *quality(final, data, known | valid, test & ~known),
        )
    return dict(zip(("valid", "recall", "ndcg"), found, strict=True)) | {"epoch": float(epoch)}


def _start(data: MovieLensKG) -> Any:
    from attlas.models.kgat import MatrixFactorisation

    return MatrixFactorisation(data.users, data.items, width=WIDTH)


def _write(folder: Path, name: str, tensor: Tensor) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"embedding": tensor.detach().contiguous()}, folder / f"{name}.safetensors")


def _read(folder: Path) -> Tensor:
    """The vectors of the BPR-MF that was best on validation items."""
    from safetensors.torch import load_file

    from attlas._common.files import read_json

    kept = {rate: read_json(folder / f"{_part(BASE, rate)}.json")["values"]["valid"] for rate in RATES}
    best = max(RATES, key=lambda rate: kept[rate])
    found: Tensor = load_file(folder / f"start-{best}.safetensors")["embedding"]
    return found


def _part(arm: str, rate: float) -> str:
    return f"{arm.lower().replace(' ', '-')}-{rate}"


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every arm at every rate; of each arm, what the rate that was best on validation items gives."""
    from attlas.tasks.movielens_kg import movielens_kg

    data = movielens_kg(seed=seed)
    data = data if long else data.sample(PER_USER, seed=seed)
    found: dict[str, float] = {}
    for arm in LONG_ARMS if long else ARMS:
        runs = []
        for rate in RATES:

            def say(text: str, name: str = f"{arm} at {rate}") -> None:
                step(f"{name}: {text}")

            one = partial(trained, arm, rate, data, seed, long, folder, say)
            runs.append(dict(remember(folder, _part(arm, rate), one)) | {"rate": rate})
        best = max(runs, key=lambda run: run["valid"])
        names = {"recall": f"recall@{MOST}", "ndcg": f"NDCG@{MOST}", "rate": "rate", "epoch": "epoch"}
        found |= {f"{told}, {arm}": best[name] for name, told in names.items()}
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    arms = [arm for arm in ARMS if f"recall@{MOST}, {arm}" in table]
    recall = {arm: table[f"recall@{MOST}, {arm}"] for arm in arms}
    measured = _told(table, arms)

    def gain(arm: str) -> float:
        return recall[FULL]["mean"] - recall[arm]["mean"]

    def apart(arm: str) -> float:
        return max(recall[FULL]["sd"], recall[arm]["sd"])

    worse = [arm for arm in arms if -gain(arm) > apart(arm)]
    if worse:
        return Verdict("does not hold", f"{measured} {FULL} is below {', '.join(worse)}.")
    close = [arm for arm in arms if arm != FULL and gain(arm) <= apart(arm)]
    if close:
        return Verdict(
            "not shown at this scale", f"{measured} Within the spread of {FULL}: {', '.join(close)}."
        )
    if len(arms) < len(ARMS):
        left = ", ".join(arm for arm in ARMS if arm not in arms)
        measured = f"{measured} Only the comparison with {BASE} was made, not that with: {left}."
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]], arms: Sequence[str]) -> str:
    def row(what: str) -> str:
        cells = [(arm, table[f"{what}, {arm}"]) for arm in arms]
        return ", ".join(f"{arm} {cell['mean']:.3f} ± {cell['sd']:.3f}" for arm, cell in cells)

    return f"Recall@{MOST}: {row(f'recall@{MOST}')}. NDCG@{MOST}: {row(f'NDCG@{MOST}')}."


CLAIM = Claim(
    says=(
        "Attention by relation on the graph of users, items and entities recommends better than "
        "collaborative filtering alone (BPR-MF), and both the attention and the training on triples "
        "contribute."
    ),
    rule=(
        f"Recall@{MOST} over all items on each user's test items, means over the seeds; a difference counts "
        f"beyond the larger spread of the two arms. It holds if {FULL} is above {BASE}, above the same with "
        f"even weights (1 / edges of the head), and above the same without training on triples; it does not "
        "hold if it is below any of them; within the spread nothing is shown. With --long only BPR-MF is "
        "compared, on all interactions."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
