"""NiNformer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="ninformer",
    title="NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function",
    year=2024,
    room="layers",
    kind="mixer",
    what=(
        "A whole MLP-Mixer block, with its residual steps, makes an element-wise gate for a linear map of "
        "the same tokens. As messages: a complete graph with learned static weights between positions; only "
        "the product makes the mixing depend on the input. The gate is the raw mixer output, neither "
        "squashed nor biased. The number of tokens is fixed."
    ),
    lives=(
        "attlas.layers:NiNBlock",
        "attlas.layers:MixerGate",
        "attlas.layers:MixerBlock",
        "attlas.models:PatchNet",
        "attlas.models:small_ninformer",
    ),
    source="arXiv:2403.02411",
    code="Abdullah-88/NiNformer",
    departures=(
        "The feed-forward part over the tokens is two batched products with tokens on the rows; the official "
        "code transposes, applies linear layers and transposes back.",
        "The small nets of the claim have no dropout (official: 0.5, for CIFAR-10) and width 32; 600 steps "
        "of 64 images without augmentation, --long 2400.",
        "The baselines normalise before the mean over the tokens, as published; NiNformer does not.",
    ),
    unverified=(
        "The paper's accuracies on CIFAR-10, CIFAR-100 and MNIST: not run here, and their numbers were not "
        "checked.",
    ),
    claim="attlas.catalog.claims.ninformer:CLAIM",
)
