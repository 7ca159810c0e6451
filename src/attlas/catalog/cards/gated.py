"""Gated attention."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="gated",
    title="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
    year=2025,
    room="layers",
    kind="gated attention layer",
    what=(
        "Softmax attention with a gate y * sigmoid(x W_g) at one of five places, x being the layer's input: "
        "the heads' outputs (G1), values (G2), keys (G3), queries (G4) or the layer's output (G5); one gate "
        "for each head and channel, for each head, or shared by the heads; also additive (SiLU), never below "
        "a half (NS-sigmoid), and independent of the input. Gates are modules that `GatedAttention` takes at "
        "named places, with any pattern, score and normaliser, and that `attlas.insert` puts into a "
        "pretrained model. Query projections that hold a G1 gate, of the release and of Qwen3-Next, are "
        "split and fused."
    ),
    lives=(
        "attlas.layers.gated:GatedAttention",
        "attlas.layers.gated:Gate",
        "attlas.layers.gated:LearnedGate",
        "attlas.layers.gated_layouts:split_gate",
        "attlas.layers.gated_layouts:fuse_gate",
        "attlas.bridges.insert:insert",
    ),
    source="arXiv:2505.06708",
    code="qiuzh20/gated_attention",
    departures=(
        "Gates on queries and keys act behind their norm, which would cancel a factor per head, and before "
        "the rotation, with which a factor per channel does not commute.",
        "The form 2-sigmoid, 1 where its logit is 0, is not the paper's: with it a pretrained model starts "
        "unchanged when a gate is inserted.",
        "In the claim gates add parameters, elementwise as many as one projection: the arms are not of equal "
        "size. 200 steps of bytes in place of 400 billion tokens.",
    ),
    unverified=(
        "How the paper's gates are initialised: W_g is drawn as nn.Linear draws it.",
        "The released code holds G1 alone; G2 to G5 and the other forms follow the text of the paper.",
        "The additive form with the identity: tried in the paper, its exact place there was not seen.",
        "The paper's perplexities (15A2B and 1.7B models) and its time overhead: not run here.",
    ),
    claim="attlas.catalog.claims.gated:CLAIM",
)
