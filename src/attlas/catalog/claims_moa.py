"""MoA's claim: at half the key-value cache, spans per head keep what a uniform window loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attlas._common.files import read_json
from attlas.catalog.claims import Claim, Step, Values, Verdict, spread

__all__ = ["CLAIM", "judge", "measure", "values_of"]

BUDGET, NEEDLES, CONTEXT = 0.5, 24, 1024
SHARE, TEXT_LOSS = 0.5, 0.03
SETTINGS = {"model": "demo", "data": "python-docs", "budget": BUDGET, "length": CONTEXT, "needles": NEEDLES}
# Below this share of needles found by the dense model there is no long-range answer to lose.
DENSE_FINDS = 0.5
METHODS = ("dense", "plan", "uniform", "shuffled", "mean_attention")
MEASURES = {"answer_ce": "answer CE", "exact": "exact match", "text_nll": "text NLL"}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """One seed of `attlas tune demo` at one length (two with `long`): other texts, needles and questions."""
    from attlas.bridges import load_model
    from attlas.tune import Calibration, tune

    model, tokenizer = load_model("demo")
    lengths = (CONTEXT, 2 * CONTEXT) if long else (CONTEXT,)
    # Fewer items than a run of `attlas tune`, so that a seed takes about 4 minutes on 2 cores.
    few = Calibration(needle=3, text=1, passage=2, validation_needle=2, validation_passage=2)
    tune(
        model,
        tokenizer,
        "python-docs",
        budget=BUDGET,
        lengths=lengths,
        extend=None,
        needles=NEEDLES,
        extra_budgets=(),
        multi_key_needles=0,
        calibration=Calibration() if long else few,
        candidates=6,
        timing=False,
        out=folder,
        seed=seed,
        progress=step,
    )
    return values_of(read_json(folder / "results.json", what="results"), lengths)


def values_of(run: Mapping[str, object], lengths: Sequence[int]) -> dict[str, float]:
    """Answer cross-entropy, exact match and text NLL of every method, and the deployed density, by length."""
    found = {}
    for method in run["methods"]:  # type: ignore[attr-defined]
        if method["name"] not in METHODS:
            continue
        for length in lengths:
            where = "" if length == CONTEXT else f" at {length}"
            label = method["name"].replace("_", "-")
            for key, words in MEASURES.items():
                found[f"{label} {words}{where}"] = float(method["quality"][str(length)][key])
            found[f"{label} density{where}"] = float(method["density"][str(length)])
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, applied to the means over the seeds."""
    mean = {name: row["mean"] for name, row in spread(runs).items()}
    table = spread(runs)

    def text(name: str) -> str:
        return f"{table[name]['mean']:.3f} ± {table[name]['sd']:.3f}"

    loss = mean["plan text NLL"] - mean["dense text NLL"]
    measured = (
        f"answer cross-entropy at density {mean['plan density']:.2f}: dense {text('dense answer CE')}, plan "
        f"{text('plan answer CE')}, uniform window {text('uniform answer CE')}, shuffled "
        f"{text('shuffled answer CE')}, profiled by mean attention {text('mean-attention answer CE')}; "
        f"needles found: dense {mean['dense exact match']:.2f}, plan {mean['plan exact match']:.2f}, uniform "
        f"{mean['uniform exact match']:.2f}; text loss {loss:+.3f} nats against dense."
    )
    if mean["dense exact match"] < DENSE_FINDS:
        return Verdict("not shown at this scale", f"The dense model misses most needles: {measured}")
    others = min(mean["shuffled answer CE"], mean["mean-attention answer CE"])
    holds = (
        mean["plan answer CE"] <= SHARE * mean["uniform answer CE"]
        and loss <= TEXT_LOSS
        and others >= mean["uniform answer CE"]
    )
    return Verdict("holds" if holds else "does not hold", measured[0].upper() + measured[1:])


CLAIM = Claim(
    says=(
        "With the same average span, spans per head raise the retrieval accuracy of pretrained models 1.5 to "
        "7.1 times over a uniform window, without training."
    ),
    rule=(
        f"SmolLM2-135M-Instruct at {CONTEXT} tokens, {BUDGET:.0%} of the cache, text and wordings unseen in "
        f"calibration, {NEEDLES} needles, means over the seeds: the plan's answer cross-entropy is at most "
        f"{SHARE} of the uniform window's, its text NLL within {TEXT_LOSS} nats of dense, and the shuffled "
        "plan and the plan profiled by mean attention are no better than the uniform window."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=12.0,
)
