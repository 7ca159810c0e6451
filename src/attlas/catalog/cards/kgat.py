"""KGAT."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="kgat",
    title="KGAT: Knowledge Graph Attention Network for Recommendation",
    year=2019,
    room="models",
    kind="model and objective",
    what=(
        "Users, items and the entities of a knowledge graph as one graph of typed edges. Each edge's weight "
        "is a softmax, over all triples of its head, of a TransR score, computed once per epoch and held "
        "constant; embeddings are propagated with it through bi-interaction layers, and their concatenation "
        "ranks items. Pairs (BPR) and triples (TransR) are trained in turns."
    ),
    lives=(
        "attlas.models.kgat:KGAT",
        "attlas.models.kgat:MatrixFactorisation",
        "attlas.layers.kgat:KGATLayer",
        "attlas.layers.kgat:RelationAttention",
        "attlas.layers.kgat:BiInteraction",
        "attlas.train.kgat:train_kgat",
    ),
    source="arXiv:1905.07854",
    code="xiangwang1223/knowledge_graph_attention_network",
    departures=(
        "LeakyReLU has slope 0.2 as in the official TensorFlow code (recbole has 0.01: pass an aggregator "
        "with another slope).",
        "Several relations between the same two nodes are separate terms of the softmax; recbole adds their "
        "scores before it.",
        "node_dropout, which the official code reads and does not use, is not here.",
        "NDCG divides by the gain of the best list; the official code divides by the best order of the hits "
        "that were found, which gives more.",
        "Validation decides the epoch of every arm, and the test items of a user exclude the validation "
        "ones.",
        "The claim takes 10 interactions per user, width 32, layers (32, 16), and up to 12 epochs; "
        "BPR-MF, where KGAT starts, up to 400.",
    ),
    unverified=(
        "The paper's figures (Amazon-book, Last-FM, Yelp2018): these data are in no package.",
        "The released TensorFlow code was not run; recbole's PyTorch version, with copied weights, was "
        "compared outside of the tests.",
    ),
    claim="attlas.catalog.claims.kgat:CLAIM",
)
