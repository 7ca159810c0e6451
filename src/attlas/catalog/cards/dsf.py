"""The dynamical-systems view of token mixers."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="dsf",
    title="Understanding the Differences in Foundation Models: Attention, State Space Models, and Recurrent "
    "Neural Networks",
    year=2024,
    room="inspect",
    kind="analysis framework",
    what=(
        "Causal token mixers as linear systems in time, h_i = Lam_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i "
        "u_i, written down from a module and its input: softmax and windowed attention, linear ones with "
        "their kernels, decays and gates (linear, normalised, BASED, cosFormer, Lightning, TransNormer, "
        "Aaren), ABC, gated convolutions, Mamba and qLSTM; SSD and softmax cut at an order from formulas. "
        "The other mixers, and classes of yours, are measured from outside by their Jacobian. What follows "
        "is computed: coupled normalisation, the state that softmax would need, memory kernels by lag. "
        "`attlas inspect dsf` shows all of it. The layers that the paper compares are here too."
    ),
    lives=(
        "attlas.inspect.ltv:LTV",
        "attlas.inspect.realisations:linear_attention",
        "attlas.inspect.from_mixer:from_mixer",
        "attlas.inspect.from_mixer:from_scan",
        "attlas.inspect.dsf:inspect_dsf",
        "attlas.layers.dsf:LinearAttention",
        "attlas.layers.dsf:NormalisedLinear",
        "attlas.layers.dsf:QLSTM",
    ),
    source="arXiv:2405.15731",
    code="IntelligentControlSystems/dsf-mqar",
    departures=(
        "Linear and normalised attention run by chunks and keep the undivided state: the state of the "
        "divided system depends on the query and cannot be decoded from. The official code forms n x n "
        "weights.",
        "qLSTM's gate is exp(-alpha softplus(f)), equal to the official sigmoid(-f)^alpha; its scan is plain "
        "torch in place of a CUDA kernel.",
        "Mixers whose system is not written down are measured from outside by their Jacobian, which lets the "
        "gates move with the input.",
        "The claim trains 600 steps of the smallest MQAR of the sheet at widths 8 and 32 of queries and "
        "keys; the paper's grid runs to 512 tokens and width 512.",
    ),
    unverified=("The paper's lemmas are paraphrased, its figures not run.",),
    claim="attlas.catalog.claims.dsf:CLAIM",
)
