"""Titans."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="titans",
    title="Titans: Learning to Memorize at Test Time",
    year=2025,
    room="layers",
    kind="memory that learns at test time",
    what=(
        "A small network whose weights are a memory: every token is written to it by a step of gradient "
        "descent on ||M(k) - v||² with momentum and decay, whose sizes depend on the token, and then "
        "read. It stands alone (LMM), before a segment as context of its attention (MAC), beside a "
        "sliding window as a factor (MAG) or below one as a layer (MAL), with learned persistent tokens. "
        "A chunk is computed in its dual form, without any token's own weights; a linear memory's "
        "sequential rule by a triangular solve. TTT and the delta rule are settings of the same operator."
    ),
    lives=(
        "attlas.scan:memory",
        "attlas.layers.titans_memory:LongTermMemory",
        "attlas.layers.titans_context:MemoryAsContext",
        "attlas.layers.titans_context:LiteralMemoryAsContext",
        "attlas.layers.titans:MemoryAsGate",
        "attlas.layers.titans:MemoryAsLayer",
    ),
    source="arXiv:2501.00663",
    departures=(
        "MAC is causal inside a segment: the read made for position j is seen from position j on, and the "
        "output of position i reads the memory as i left it. As written, both let a token see later ones of "
        "its segment; LiteralMemoryAsContext does that, and a test shows the leak.",
        "The pointwise part of the depthwise-separable convolutions is the projection before them.",
        "MAL has a residual around its memory, inside of the layer.",
        "Attention has rotary positions: within a segment for MAC, along the sequence for MAG and MAL.",
        "The unofficial titans-pytorch differs: mean loss over the channels, momentum and decay per chunk "
        "(`commit` does that here), reads delayed by a chunk, a normalised residual memory.",
    ),
    unverified=(
        "alpha, eta and theta: sigmoids here, theta bounded so that a unit key is overwritten near half "
        "of the bound; the paper's functions are not known. They begin at 0.02, 0.1 and bound / (2 "
        "chunk) for every token.",
        "The gates: silu of both normalised factors, and silu of the linear gate before the output; the "
        "paper's non-linearity is not known.",
        "Segment, window, persistent tokens, chunk and depth of the paper's sizes; its displayed equations "
        "were not legible in the copy that was read. Its benchmark figures: not run here.",
        "The initial memory: normal weights that give unit keys pre-activations of variance 1, the last "
        "layer near 0.",
    ),
    claim="attlas.catalog.claims.titans:CLAIM",
)
