"""Lightning Attention-2."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="lightning2",
    title=(
        "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models"
    ),
    year=2024,
    room="scan",
    kind="algorithm",
    what=(
        "Exact linear attention with a constant decay per head in linear time: quadratic inside chunks, a "
        "D x E state between them, forward and in a reverse sweep that keeps nothing but inputs and states. "
        "Here it is attlas.scan with log_decay of shape (heads,): -slopes."
    ),
    lives=("attlas.scan:scan", "attlas.layers.lightning:LightningAttention"),
    source="arXiv:2401.04658",
    code="OpenNLPLab/lightning-attention",
    departures=(
        "The convention of the paper's text, q faded by lambda^(r + 1) and k by lambda^(c - 1 - r) inside a "
        "chunk; the official kernel shifts both by one step, with the same result.",
        "The same sweep gives gradients of decays and states, which the paper does not define, and takes "
        "decays per token, gates, kernels, padding and packed sequences.",
    ),
    unverified=("The paper's GPU speeds: not run here.",),
    claim="attlas.catalog.claims.lightning2:CLAIM",
)
