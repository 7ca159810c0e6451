"""MetaMixer and FFNet."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="metamixer",
    title="MetaMixer Is All You Need (FFNet)",
    year=2024,
    room="models",
    kind="mixer and vision model",
    what=(
        "The query-key-value scheme with every part exchangeable: a query map, an interaction with keys, an "
        "activation, an interaction with values. With keys and values made of the input and a softmax it is "
        "self-attention; with depthwise convolutions and GELU it is FFNified attention: two rounds of "
        "messages over a fixed stencil, weights per channel that no input changes. FFNet stacks it with "
        "convolutional channel mixers; at inference normalisations and branches fold into single "
        "convolutions."
    ),
    lives=(
        "attlas.layers:MetaMixer",
        "attlas.layers:ffn_mixer",
        "attlas.layers:attention_mixer",
        "attlas.layers:pooling_mixer",
        "attlas.layers:fuse",
        "attlas.layers:RepDepthwise",
        "attlas.models:FFNet",
        "attlas.models:small_ffnet",
    ),
    source="arXiv:2406.02021",
    code="ysj9909/FFNet",
    departures=(
        "The last normalisation folds into the classifier, so that fused nets have 2 width fewer parameters "
        "than the official code's (13.7M, 26.9M, 48.3M, 79.2M all the same).",
        "Attention in the scheme normalises queries, keys and values by batch statistics (FFNet's steps have "
        "no normalisation in front); folded, it is self-attention with biases.",
        "No squeeze-and-excitation and no other last normalisation, which the official code offers and no "
        "FFNet uses.",
        "The mixer register's entry has kernels of 7, as in the last two stages, whatever the grid.",
        "The small nets keep the full map, have torch's own initial weights (a spread of 0.02 hardly learns "
        "at this width) and no stochastic depth; the claim trains 200 steps of 64 images, --long 600 and "
        "images of 16 x 16.",
    ),
    unverified=(
        "ImageNet accuracy of the family (81.3 to 85.3 percent printed), latencies on mobile devices, and "
        "the results for super-resolution, 3D segmentation and time series: not run here.",
    ),
    claim="attlas.catalog.claims.metamixer:CLAIM",
)
