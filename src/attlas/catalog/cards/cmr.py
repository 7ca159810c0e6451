"""Contextual Memory Reweaving."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="cmr",
    title="Contextual Memory Reweaving in Large Language Models Using Layered Latent State Reconstruction",
    year=2025,
    room="layers",
    kind="memory of hidden states; our definition",
    what=(
        "Hidden states of earlier tokens, from several layers, are reconstructed and woven into later ones. "
        "The definition is ours: per segment of C tokens a memory keeps the R tokens of highest learned "
        "salience; their latents of two layers become one (residual low-rank maps, a learned share per "
        "layer); a later layer reads them by attention with a penalty of age, weighed by their salience, "
        "through a gate that is exactly closed at the start; a small loss draws the reconstruction to the "
        "last layer's output."
    ),
    lives=(
        "attlas.layers.cmr:Reweaving",
        "attlas.layers.cmr:LayeredReconstruction",
        "attlas.models.cmr:ReweavingNet",
    ),
    source="arXiv:2502.02046",
    departures=(
        "Only the abstract could be read, and it gives no operators: layers, choice, reconstruction, gate, "
        "losses and positions are definitions of ours, so nothing here says how well the paper's method "
        "does.",
        "The reconstruction loss compares after RMSNorm: without it the reconstruction and what it is drawn "
        "to, which contains it through the memory, grow without bound. It is a mean over tokens and "
        "channels, over all tokens and not the kept ones alone. The memory is read by the stream that "
        "enters the layer after the last captured one.",
        "Queries, items and the gate read hidden states after RMSNorm, since these grow from layer to layer.",
        "In training, noise on the salience makes items be drawn (an option, used by the claim): a kind of "
        "token that is never kept would never learn to be.",
        "While decoding an item is kept as its reconstruction, not as the latents of every layer.",
        "The claim is on associative recall beyond a window, not on language; a net without MLPs stands for "
        "the language model; 4 pairs in 32 tokens by default, 8 in 64 with --long.",
        "Sizes, steps and the number of items (twice the pairs, as many as pairs with --long) "
        "were changed after debug seeds of 1000 and above, which learnt nothing; thresholds were not.",
    ),
    unverified=(
        "Every quantitative statement of the paper (recall over lengths, rare tokens, numbers, overhead).",
        "Which layers, what is stored, how it is chosen and reconstructed in the paper; there is no official "
        "code, and a repository of another author is an interpretation of his.",
    ),
    claim="attlas.catalog.claims.cmr:CLAIM",
)
