"""CAB."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="cab",
    title="CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling",
    year=2022,
    room="layers",
    kind="benchmark",
    what=(
        "Four patterns, noncausal or causal, self or cross, that a mixer has or lacks: here a contract that "
        "check_mixer tests for every registered mixer and for a class of yours. Scores of several "
        "tasks become one index per pattern; the efficiency length tells from which length on a "
        "linear attention is cheaper. ABC, Performer and cosFormer as CAB runs them, and small tasks "
        "for all four patterns."
    ),
    lives=(
        "attlas.layers:check_mixer",
        "attlas.laws:compositional_index",
        "attlas.laws:efficiency_length",
        "attlas.layers:ABCAttention",
        "attlas.layers:PerformerAttention",
        "attlas.layers:CosformerAttention",
        "attlas.catalog.mini_cab:trained",
    ),
    source="arXiv:2210.07661",
    code="Shark-NLP/CAB",
    departures=(
        "Causal ABC has the running sum that the released code forgets (there constant values come "
        "out divided by the position), so the published causal figures are not of this ABC.",
        "cosFormer has causal forms, with a fixed longest length in its angle in place of the current one. "
        "Padding is left out of its places and of Performer's maximum.",
        "Padding in the released Performer is masked for other samples and heads than it belongs to "
        "(the mask is repeated in another order than the keys); here it is the sample's own.",
        "Performer's orthogonal directions are drawn from all rotations alike; the released code takes the "
        "factor of a QR decomposition as it comes, with which weights stay off softmax's however "
        "many features there are.",
        "The contract also asks for what the official test does not: changed later tokens, batch and padding "
        "independence, states, gradients; in float64, to 1e-8.",
        "Mini-CAB replaces the seven tasks: digits, bytes of python-docs, sines, CO2 weeks, digit "
        "transductions; width 48, hundreds of steps, with learned positions for all attentions.",
        "Costs for the efficiency length are of a layer in evaluation mode without dropout, medians "
        "of runs in turns; the official script times training mode with dropout, without waiting for "
        "the device.",
        "Nystromformer, LARA, ProbSparse, S4D and LongShort are not here.",
    ),
    unverified=(
        "The published scores of the seven tasks; of the indices, masked language modelling is "
        "recomputed from its table, and of the efficiency lengths, ABC's.",
        "Token lengths of point clouds and super-resolution in the paper.",
    ),
    claim="attlas.catalog.claims.cab:CLAIM",
)
