"""TransNormerLLM."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="transnormerllm",
    title="TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer",
    year=2023,
    room="models",
    kind="language model",
    what=(
        "A decoder on linear attention with decay and no softmax: Swish queries and keys, in the first layer "
        "learned relative positions (LRPE), a norm without scale over all heads after mixing, a linear gate, "
        "and gated units without activation. Decoding keeps a state of constant size; the robust inference "
        "multiplies it by the decay, where the textbook form overflows."
    ),
    lives=(
        "attlas.models.transnormerllm:TransNormerLLM",
        "attlas.layers.transnormer:TransNormerMixer",
        "attlas.layers.transnormer:SGLU",
        "attlas.layers.transnormer:SRMSNorm",
        "attlas.layers.transnormer:origin",
    ),
    source="arXiv:2307.14995",
    code="OpenNLPLab/TransnormerLLM",
    departures=(
        "Positions belong to the state, one per row of the batch; the official code keeps them in the "
        "module, and its path with a key cache gives all cached keys the position of the query.",
        "Padding contributes nothing and is no step of the decay, at any place of a row; the official "
        "code zeroes its values only.",
        "The gate's matrix is its own, not a quarter of one for all; released weights are not read.",
        "The head is not tied to the embedding.",
        "Inner width of the gated units is 8/3 of the width where none is given (the official configuration "
        "gives 2816 for 1024).",
        "The claim reads bytes of python-docs in place of licence texts, with batches of 8 and 300 steps, "
        "and every arm with every seed; gated units are sized so that all arms have equal parameters.",
    ),
    unverified=(
        "Sizes of the released models of 1B and 7B. The official configuration's default, here TRANSNORMERS"
        "['385M'], counts 465 million parameters with both embedding and head, 399 with one of them.",
        "The papers' perplexities and speeds: not run here.",
    ),
    claim="attlas.catalog.claims.transnormerllm:CLAIM",
)
