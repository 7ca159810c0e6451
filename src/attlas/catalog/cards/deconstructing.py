"""Deconstructing attention."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="deconstructing",
    title="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    year=2025,
    room="models",
    kind="controlled variants of attention",
    what=(
        "Six replacements of attention that each give up one of its principles at its parameters: MLP (no "
        "mixing of tokens), Approximate (exp to second order), Non-approximate (a key's weight without a "
        "query), RndEmbQK and FixedSeqQK (maps that do not depend on the input: one stream of batch 1 for "
        "all rows) and StaticEmbQK (maps of the input embeddings); in all layers, or interleaved with "
        "standard attention by one of nine masks, with the control that deletes the replaced blocks, and "
        "statistics of the maps. Approximate and Non-approximate are token mixers with a state of constant "
        "size."
    ),
    lives=(
        "attlas.models.deconstructing:DeconstructedLM",
        "attlas.models.deconstructing:hybrid",
        "attlas.layers.deconstructing:Approximate",
        "attlas.layers.deconstructing:NonApproximate",
        "attlas.layers.deconstructing:SourcedAttention",
        "attlas.layers.deconstructing:GatedMLP",
        "attlas.inspect.deconstructing:map_statistics",
    ),
    source="arXiv:2510.11602",
    departures=(
        "The block is the small language model's (RMSNorm, GELU MLP of 4 times the width) and not Qwen2.5's; "
        "layers, width, masks and kinds are free.",
        "The inner width of the MLP variant is a whole number: its parameters miss those of attention by at "
        "most 1.5 times the width (0.4% at width 64).",
        "Features of Approximate hold each product of two columns once: 1 + D + D (D + 1) / 2 of them, with "
        "the same weights.",
        "The claim trains bytes for 320 steps of 8 windows of 64, in place of 15B tokens; it judges "
        "perplexity per byte, of which the paper's thresholds say nothing. 150 steps of windows of 128 left "
        "four layers of attention barely better than bigrams on seed 1000, which the claim does not use; "
        "the rule is as it was before.",
    ),
    unverified=(
        "No official code was found: the sources are the paper's formulas.",
        "Sigma of the random embeddings (0.02 here, that of the embeddings), what the stream does in a "
        "hybrid's standard layers (attention to itself here), whether sources pass the norm of their block "
        "(they do here, as the layer's own input does), and whether the variants keep rotary positions "
        "(here all that compare two tokens do).",
        "Hybrid-skip deletes whole blocks, MLP included. The deviation over heads of HeadDiv is that of a "
        "population.",
        "The paper's figures (70M to 500M parameters on SlimPajama): not run here.",
    ),
    claim="attlas.catalog.claims.deconstructing:CLAIM",
)
