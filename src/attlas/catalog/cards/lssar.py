"""LSSA and LSSAR."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="lssar",
    title="Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models",
    year=2025,
    room="attend",
    kind="score and normaliser",
    what=(
        "LSSA: cosines times log(head width) log(n_i), softplus, divided by their sum over the row; n_i is "
        "the number of keys that the row sees. LSSAR then keeps what lies above the mean of the row, raised"
        " to a power and divided by its sum again. A chain of stages that can be used alone: "
        "`TimesLogCount() >> L1('softplus') >> ShiftPower(p) >> L1()`, also after softmax. On CPU the strip"
        " kernel runs it in two sweeps over the keys, and so does its backward, in memory linear in the "
        "length; everywhere else the row blocks do."
    ),
    lives=(
        "attlas.attend.lssa:lssa",
        "attlas.attend.lssa:lssar",
        "attlas.attend.lssa:ShiftPower",
        "attlas.attend.counts:TimesLogCount",
        "attlas.attend.lssa:lssar_port",
        "attlas.layers.lssa:LssarAttention",
        "attlas.attend.strip_forms:weighted_strips",
    ),
    source="arXiv:2501.13428",
    code="iminfine/freeatten",
    departures=(
        "The power is taken of x / (the row's largest x), which the following division by the sum undoes: "
        "with p = 15 the powers themselves are too small for float32. `lssar_port` is a port that "
        "circulates and adds 1e-8 to the sum instead.",
        "A row whose weights are all equal (to 64 units of rounding) has nothing above its mean, 0 / 0 by "
        "the formula: nothing is taken off there, so that it keeps its weights.",
        "n_i counts the keys that a row may see, also under windows and other patterns; extra terms count.",
        "Parts of a row do not merge, and return_state=True is refused: the re-weighting needs the sum of "
        "the whole row, and its log(n_i) the number of all its keys. Shards would take two rounds.",
        "The claim trains 200 steps of 8 windows instead of 300 of 16, and heads are 16 wide (64 in the "
        "paper).",
    ),
    unverified=(
        "The repository that the paper names was not available; the formulas were cross-checked on write-ups "
        "and on a port.",
        "Whether gradients of the power were clipped, and whether an early version divided by the square "
        "root of the width instead of normalising queries and keys.",
        "The paper's losses at 1K to 8K tokens of a model of 124M parameters: not run here.",
    ),
    claim="attlas.catalog.claims.lssar:CLAIM",
)
