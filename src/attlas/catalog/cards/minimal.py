"""Minimal transformer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="minimal",
    title="Reducing the Transformer Architecture to a Minimum",
    year=2024,
    room="layers",
    kind="simplified attention layers and model",
    what=(
        "A transformer with less in it: no MLP, since attention is a nonlinearity of third order already; "
        "one matrix W_QK in place of W_Q and W_K; no value and output matrices, or their product over all "
        "layers kept once at the end; a symmetric similarity, W_K := W_Q or T T^T with T lower triangular. "
        "An attention is composed of a similarity and of what it carries; converters turn a trained single "
        "head into its collapsed and triangular forms without changing its output."
    ),
    lives=(
        "attlas.layers.minimal:MinimalAttention",
        "attlas.layers.minimal:collapsed",
        "attlas.layers.minimal:collapsed_stack",
        "attlas.layers.minimal:triangular",
        "attlas.layers.one_triangle:one_triangle",
        "attlas.models.minimal:MinimalViT",
    ),
    source="arXiv:2410.13732",
    departures=(
        "Layers are pre-norm and residual, with learned places and a mean of the tokens read out: the "
        "paper's algebra has no residuals, and where its nets have them was not found. With a residual "
        "outputs are no convex combinations of tokens; MinimalAttention alone with Untouched makes them so.",
        "Symmetric logits are computed once per pair where all tokens see all and heads are at least 256 "
        "wide: on one CPU thread a training step is then 10 to 24% faster than the kernels for any queries "
        "and keys; at width 64 it was up to 1.9 times slower forward, so that narrower heads use the usual "
        "kernels.",
        "Registered mixers are causal with rotary positions, which keep symmetric logits symmetric.",
        "The claim trains on scikit-learn digits for 40 epochs in place of MNIST and CIFAR-10 for 500.",
    ),
    unverified=(
        "The published totals (287,686 and 101,470 for 6 layers with and without MLP, 563,242 and 198,100 "
        "for 12) follow from no width that was tried: they mean 45,926 and 16,105 parameters a layer, and "
        "neither is 4 N^2 (+ 2 h N^2 + h N + N) of a whole N, with or without some biases and LayerNorms.",
        "Width, patches and optimiser of the paper's nets, and its results: not checked.",
    ),
    claim="attlas.catalog.claims.minimal:CLAIM",
)
