"""Autoformer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="autoformer",
    title="Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting",
    year=2021,
    room="models",
    kind="series model and lag attention",
    what=(
        "Forecasts a series by reading its own past periods: the correlation of queries and keys at "
        "every lag, by FFT, gives a few lags for the whole series, and values rolled by them are "
        "averaged. Moving averages take the trend out after every step, and the decoder adds the "
        "trends up to the forecast's."
    ),
    lives=(
        "attlas.models:Autoformer",
        "attlas.layers:AutoCorrelation",
        "attlas.layers.autoformer:auto_correlation",
        "attlas.layers.autoformer:AutoformerEncoderLayer",
        "attlas.layers.autoformer:AutoformerDecoderLayer",
        "attlas.tasks:load_series",
    ),
    source="arXiv:2106.13008",
    code="thuml/Autoformer",
    departures=(
        "Values are read at t + tau, as in the official code; the correlation points to t - tau, which "
        "aligned=True reads.",
        "At least one lag: the official code takes none, and gives 0, where factor ln L is below 1. An even "
        "kernel of the moving average is refused; there it would shorten the series.",
        "In training, lags are those of the batch's mean correlation, and no rolled copy of the "
        "values is kept.",
        "The differences of lags were added to what the claim tells, and steps were made fewer, "
        "after a look at seed 1000, which it does not use; the rule is as it was before.",
        "The claim takes a fixed number of steps by AdamW with a cosine, not Adam halved per epoch "
        "with early stopping, width 64 and one layer each; its Transformer is pre-norm with learned "
        "positions.",
    ),
    unverified=(
        "The paper's figures (ETT, Electricity, Exchange, Traffic, Weather, ILI): not run here.",
        "Scores without the FFT for very short series: no case where it would pay was looked for.",
    ),
    claim="attlas.catalog.claims.autoformer:CLAIM",
)
