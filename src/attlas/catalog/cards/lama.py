"""LAMA."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="lama",
    title="Low Rank Factorization for Compact Multi-Head Self-Attention",
    year=2019,
    room="layers",
    kind="pooling attention",
    what=(
        "A sequence of recurrent states is pooled by m attention distributions. Head r scores a token by a "
        "bilinear form of rank one with one context vector, c^T p_r q_r^T h; tanh, then length 1 over the "
        "heads, then a softmax over the tokens. 2 D m parameters and a time linear in the length: a star "
        "graph whose centre receives from all tokens by m kinds of edges, here `attend` with one query and "
        "given logits. The context is learned, or the mean of the tokens."
    ),
    lives=(
        "attlas.layers.lama:LAMA",
        "attlas.layers.lama:lama_logits",
        "attlas.layers.lama:star",
        "attlas.layers.lama:word_importance",
        "attlas.models.lama:RecurrentClassifier",
    ),
    source="arXiv:1912.00835",
    code="JohnGiorgi/compact-multi-head-self-attention-pytorch",
    departures=(
        "No official repository is known. The port named here, of others, takes the mean for the context and "
        "divides also a single head, and gives the same weights for two heads and more.",
        "One head alone is not divided by its length: every logit would be 1 or -1.",
        "A token whose m affinities are all 0 (0/0) has the logits 0 and gradient 0; a sequence of such "
        "tokens is pooled to its mean.",
        "After the division logits lie in [-1, 1]: no token gets more than e^2 = 7.4 times the weight of "
        "another. That is the formula's, and why its distributions are flat on long texts.",
        "P and Q start uniform in +-1 / sqrt(D), as linear layers do, a learned context from N(0, 1): the "
        "paper's start was not found.",
        "The claim: GRU of 64 per direction in place of 100 (which is behind --long), 3 epochs, one head "
        "count of 5, learning rate 2e-3 in place of 1e-3.",
    ),
    unverified=("Sizes of the paper's GRU, m, optimiser, and its results on reviews and news: not checked.",),
    claim="attlas.catalog.claims.lama:CLAIM",
)
