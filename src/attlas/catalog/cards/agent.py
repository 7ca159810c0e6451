"""Agent Attention."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="agent",
    title="Agent Attention: On the Integration of Softmax and Linear Attention",
    year=2023,
    room="layers",
    kind="attention over two hops",
    what=(
        "A few agents, means of the queries over boxes of the image, attend to all keys; the queries then "
        "attend to the agents. Both hops are softmaxes with a learned bias per agent and place (a small map "
        "resized, plus one per row and column), and a depthwise convolution of the values is added, since "
        "the weights have the rank of the agents only. Linear in the number of tokens. In a diffusion model "
        "the same needs no training: agents are merged tokens."
    ),
    lives=(
        "attlas.layers.agent:AgentAttention",
        "attlas.layers.agent:AgentBias",
        "attlas.layers.agent_sd:AgentSD",
        "attlas.layers.agent_sd:merge_tokens",
        "attlas.attend.via:via",
    ),
    source="arXiv:2312.08874",
    code="LeapLabTHU/Agent-Attention",
    departures=(
        "No dropout. Agents may be pooled to any h x w, also of grids that are not square, and along a "
        "sequence (then without biases).",
        "AgentSD merges towards the first token of each box; the official code draws one at random unless "
        "told otherwise, and can merge the queries and keys too (as ToMe), which is not here.",
        "Where and when AgentSD stands in a diffusion model (early steps) is left to the caller.",
        "The claim classifies scikit-learn digits as 64 pixel tokens with 9 agents, 12 rounds for 15 by "
        "default; ImageNet models (PVT, Swin, DeiT with 9 to 49 agents) are not built here.",
    ),
    unverified=(
        "The paper's figures on ImageNet, COCO, ADE20K and Stable Diffusion: not run here.",
        "A causal form: the paper has none, since agents are means over all queries.",
    ),
    claim="attlas.catalog.claims.agent:CLAIM",
)
