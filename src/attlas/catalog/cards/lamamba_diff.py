"""LaMamba-Diff."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="lamamba_diff",
    title="LaMamba-Diff: Linear-Time High-Fidelity Diffusion Models Based on Local Attention and Mamba",
    year=2024,
    room="layers",
    kind="layer and diffusion model",
    what=(
        "A block of three parts, each steered and gated by the condition and off at first: a selective scan "
        "along four serpentine paths over the map, attention in windows that are shifted in every second "
        "block, an MLP. A U-Net of such blocks predicts noise and variance of latents. Time and memory grow "
        "linearly with the tokens. Here with the scan itself, the blocks, the U-Net, a small net without "
        "U-Net, the objective, sampling and guidance."
    ),
    lives=(
        "attlas.scan:selective_scan",
        "attlas.layers.mamba:SelectiveSSM",
        "attlas.layers.lamamba:SS2D",
        "attlas.layers.lamamba:ShiftedWindowAttention",
        "attlas.layers.lamamba:lamamba_block",
        "attlas.models.lamamba:LaMambaUNet",
        "attlas.train.diffusion:Diffusion",
    ),
    source="arXiv:2408.02615",
    code="yunxiangfu2001/LaMamba-Diff",
    departures=(
        "Any sides: the released paths are for even squares. On odd sides the second and fourth path are "
        "still serpentines, not the first and third reversed; windows that do not divide the map are padded, "
        "and padding is a region of its own; an odd side is padded before it is halved and cut after.",
        "A map with one side within the window has no shift along that side only; the released code looks at "
        "squares.",
        "The released U-Net has a further Linear and LayerNorm in front of the head, and merges patches by a "
        "convolution unless told otherwise: here as the paper's description has it.",
        "The bias table of a window larger than the map keeps its size; only its middle is read.",
        "Labels are dropped when a batch is made, not inside the model; an average of weights (EMA) is left "
        "to the caller.",
        "The claim has no U-Net and no latents: digits of 16 x 16 pixels, two blocks of width 32, AdamW with "
        "rate 3e-3 and 120 steps. To compare at equal depth and size, every net has two mixers a block.",
    ),
    unverified=(
        "The paper's figures on ImageNet 256 and 512: not run here.",
        "Heads of the XL model (8 in the script's defaults) and the shapes of the other sizes.",
    ),
    claim="attlas.catalog.claims.lamamba_diff:CLAIM",
)
