"""Flowformer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="flowformer",
    title="Flowformer: Linearizing Transformers with Conservation Flows",
    year=2022,
    room="layers",
    kind="linear attention layer",
    what=(
        "Attention as a flow from keys (sources) to queries (sinks) with capacities phi(q) . phi(k), phi "
        "= sigmoid. Conserving what each query takes in makes keys compete (a softmax over their "
        "outflow); conserving what each key gives away tells how much a query is allowed (a sigmoid of "
        "its inflow). Two forms: `flow` over whole sequences, self or cross, and `causal_flow`, whose "
        "sums run over earlier tokens only: five causal scans and a prefix of log-sum-exp, decoded from a "
        "state of constant size."
    ),
    lives=(
        "attlas.layers.flowformer:FlowAttention",
        "attlas.layers.flowformer:CausalFlowAttention",
        "attlas.layers.flowformer:flow",
        "attlas.layers.flowformer:causal_flow",
    ),
    source="arXiv:2202.06258",
    code="thuml/Flowformer",
    departures=(
        "The causal form holds a state per chunk; the official code an (N, D, E) tensor of running sums.",
        "Padding leaves all sums, the competition's softmax and both counts; the official text code's "
        "call that should mask it has no effect.",
        "The clamp of the conserved outflow is an option: 1 as in the generic and vision code by default; "
        "the text code has 5, the reinforcement learning code 10, the JAX code none.",
        "The vision code's further 1e-6 behind each inner product is not here.",
        "The claim trains 337 steps, which are 15 epochs; 270 were tried on a debug seed (1000) first.",
    ),
    unverified=(
        "Whether the paper's formulas have the clamp: the code was read, not the paper's text.",
        "The paper's figures (Long-Range Arena, WikiText-103, ImageNet, time series, D4RL): not run here.",
    ),
    claim="attlas.catalog.claims.flowformer:CLAIM",
)
