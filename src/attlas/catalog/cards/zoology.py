"""Zoology."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="zoology",
    title="Zoology: Measuring and Improving Recall in Efficient Language Models",
    year=2023,
    room="layers",
    kind="recall task, gated convolution and hybrid with attended rows",
    what=(
        "Multi-query associative recall (MQAR): pairs of key and value, then the keys again among filler; "
        "the label at a key is its value. BaseConv, (x W + b) ⊙ conv(x) + x with three taps or an implicit "
        "filter of any length by FFT, is the gated convolution that it measures. The hybrid adds attention "
        "to the few rows that a learned score of each token chooses: all rows are weighed in training, and "
        "only the chosen ones are computed in evaluation."
    ),
    lives=(
        "attlas.tasks.mqar:mqar",
        "attlas.layers.zoology:BaseConv",
        "attlas.layers.zoology:ImplicitConv",
        "attlas.layers.sparse_rows:SparseHybrid",
        "attlas.models.recall_net:RecallNet",
    ),
    source="arXiv:2312.04927",
    code="HazyResearch/zoology",
    departures=(
        "One generator of the seed draws test and training examples, filler included; the official code "
        "draws them with numpy and the filler with torch's global generator.",
        "The input of the hybrid is left as it is in evaluation; the official code adds into it in place.",
        "A threshold instead of the best rows makes the choice causal and gives a state; ours, for decoding.",
        "In the network nothing stands in the place of the MLP; the official identity adds a norm's output "
        "to the residual there. Linear layers keep torch's initial weights.",
        "Queries from a given slot on, and keys bound twice, are options of ours for other claims.",
        "The claim: vocabulary 512 and length 64 with 8 pairs, one learning rate and two rounds over "
        "20,000 examples, in place of 8192, four lengths, four rates and 64 rounds over 100,000.",
        "Attention without any convolution is an arm of --long only, and the rule compares with convolution "
        "and attention: on a debug seed (1000) two layers of attention alone had learnt little by then.",
    ),
    unverified=(
        "The paper's rule without parameters, which attends tokens that repeat an earlier one: its details "
        "were not seen, it is not here.",
        "97.4 % of the gap to attention closed on language (abstract): not run here.",
    ),
    claim="attlas.catalog.claims.zoology:CLAIM",
)
