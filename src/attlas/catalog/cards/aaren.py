"""Aaren."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="aaren",
    title="Attention as an RNN",
    year=2024,
    room="layers",
    kind="recurrent attention layer",
    what=(
        "Softmax attention of a learned query, which sees no token, to every prefix of the sequence. The "
        "logit of a key does not depend on who asks, so that all prefixes come from one associative scan "
        "over (maximum, sum of weights, weighted values), and a token is decoded from a state of head "
        "width + 2 numbers a head. Here it is a scan with q = k = 1 and the logits as gates; `prefix` "
        "with the monoid `SoftmaxMean` is the second route, and both agree in value and gradient."
    ),
    lives=(
        "attlas.layers.aaren:Aaren",
        "attlas.layers.aaren:prefix_softmax",
        "attlas.scan.monoids:SoftmaxMean",
        "attlas.scan.prefix:prefix",
    ),
    source="arXiv:2405.13956",
    departures=(
        "The scan takes O(N) work in two levels of chunks, not the paper's log2(N) passes over everything.",
        "The learned vector starts from N(0, 1 / width).",
        "The claim reads digits as sequences and short pieces of two texts in place of the UCR and UEA "
        "series: they come with packages that are here.",
    ),
    unverified=(
        "One learned vector per layer is a reading of the paper; whether layers share it was not checked.",
        "The paper's results (reinforcement learning, events, forecasts, UEA classification), its counts of "
        "parameters and its hyper-parameters: not run and not checked here.",
    ),
    claim="attlas.catalog.claims.aaren:CLAIM",
)
