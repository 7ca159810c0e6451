"""The random-features study of one attention layer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="rfa",
    title="What Can a Single Attention Layer Learn? A Study Through the Random Features Lens",
    year=2023,
    room="laws",
    kind="learning law",
    what=(
        "One attention layer whose query-key matrices are random and frozen, with ReLU and 1/N in place of "
        "the softmax: the values enter linearly, so that ridge regression is its training. It tells which "
        "functions of a query and a set of keys a layer learns from how many examples, beside a fully "
        "connected random-feature net of as many fitted parameters, and with heads biased towards keys near "
        "the query. The layer of infinitely many heads is an arc-cosine kernel, given here in closed form."
    ),
    lives=(
        "attlas.laws.rfa:attention_features",
        "attlas.laws.rfa:random_heads",
        "attlas.laws.rfa:perceptron_features",
        "attlas.laws.rfa:attention_kernel",
        "attlas.laws.ridge:ridge_fit",
        "attlas.laws.ridge:kernel_ridge_fit",
    ),
    source="arXiv:2307.11353",
    departures=(
        "Ridge regression with a validated penalty in place of least squares under the norm constraints of "
        "the paper's theory.",
        "The baseline's weights are scaled so that its units have variance 1 before the ReLU; the paper's "
        "scale is not known here.",
    ),
    unverified=(
        "The feature's formula, N(0, 1/4) and the bias diag(I, 0) are from knowledge of the paper; they "
        "agree with each other and with what was measured.",
        "The paper's exponents, constants and its own experiments.",
        "The kernel of biased heads: only that of unbiased ones is given.",
    ),
    claim="attlas.catalog.claims.rfa:CLAIM",
)
