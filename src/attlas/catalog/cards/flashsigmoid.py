"""FlashSigmoid."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="flashsigmoid",
    title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    year=2024,
    room="attend",
    kind="normaliser and kernel",
    what=(
        "Every weight is the sigmoid of its own logit plus a constant, -log of the trained length: no sum "
        "over the row, no maximum, no second pass. Parts of a row add up, also with gradient, and a cache "
        "decodes with the bias of training. On CPU the strip kernel runs it in one sweep over the keys; its"
        " backward needs queries, keys, values and the bias alone. Composes with every pattern and score: "
        "ALiBi as `Dot() + DistanceBias(slopes)`, QK-norm as `norm=` of `SelfAttention`."
    ),
    lives=(
        "attlas.attend.flashsigmoid:flash_sigmoid",
        "attlas.attend.flashsigmoid:over_count_sigmoid",
        "attlas.attend.normaliser:Sigmoid",
        "attlas.attend.counts:OverCount",
        "attlas.layers.flashsigmoid:FlashSigmoid",
        "attlas.attend.strip_features:features",
    ),
    source="arXiv:2409.04431",
    code="apple/ml-sigmoid-attention",
    departures=(
        "The kernel computes 2^-|x| once and one division where the CUDA code uses sigmoid(x) = 0.5 (1 + "
        "tanh(x / 2)): processors have no instruction for tanh.",
        "`Sigmoid()` without a bias takes -log of each row's own number of edges: ours, not the paper's.",
        "No learned temperature; the score's scale is one.",
        "The claim trains 12 windows a step instead of 16.",
    ),
    unverified=(
        "The hybrid norm y = x + norm(attention(norm(x))) of a later version for long contexts: not here.",
        "The paper's 17 % over FlashAttention-2 is a figure of an H100; nothing of the kind is claimed for a "
        "CPU. `results/normalisers.json` holds what was measured here.",
    ),
    claim="attlas.catalog.claims.flashsigmoid:CLAIM",
)
