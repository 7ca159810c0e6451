"""Lightning Attention-1 and TNL."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="lightning1",
    title=(
        "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention (TNL, 2024), "
        "and Lightning Attention-1 of TransNormerLLM (2023)"
    ),
    year=2024,
    room="layers",
    kind="linear attention layer",
    what=(
        "Linear attention with a constant decay per head and no denominator: every score is multiplied by "
        "exp(-slope) to the power of the distance. Slopes follow ALiBi over the heads and fall to nothing in "
        "the last layer. Lightning Attention-1 computes it in tiles, in quadratic time and linear memory; "
        "the TNL layer of 2024 in chunks that are linked by a state, in linear time, with SiLU queries, keys "
        "and values, a LayerNorm over all heads and a low-rank sigmoid gate."
    ),
    lives=(
        "attlas.layers.lightning:LightningAttention",
        "attlas.layers.lightning:lightning1",
        "attlas.layers.lightning:alibi_by_layer",
        "attlas.layers.lightning:linear_by_layer",
    ),
    source="arXiv:2405.17381",
    code="OpenNLPLab/lightning-attention",
    departures=(
        "Slopes are those of the official code by default; the papers print a schedule that is linear in the "
        "head, with a first head that never decays (linear_by_layer).",
        "A net of one layer has the factor of the first layer, 1 + 1e-5: the official expression is 0 / 0.",
        "Slopes are numbers, not buffers: they stay exact in half precision.",
        "Lightning Attention-1 folds the decay between tiles into one factor per step (Horner's rule) in "
        "place of a mask per pair of tiles; the sums are the same. Slopes get no gradient there.",
        "The claim runs 8192 tokens per batch in place of 16384 (--long), and tiles of 256 for Lightning-1.",
    ),
    unverified=("The papers' GPU speeds and the perplexities of the trained models: not run here.",),
    claim="attlas.catalog.claims.lightning1:CLAIM",
)
