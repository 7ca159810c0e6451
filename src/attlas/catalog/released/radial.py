"""Radial attention: the block mask of the file and the formula."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

FRAMES, SIZES = 21, (30 * 52, 45 * 80)  # Wan 2.1 at 480p and 720p
DECAYS = {"1": 1.0, "one fifth": 0.2}


@lru_cache(maxsize=1)
def densities() -> Mapping[str, float]:
    """Share of the pairs that each form keeps."""
    from attlas.pattern import Tokens, radial, radial_official

    found = {}
    for size in SIZES:
        space = Tokens(FRAMES * size)
        found[f"formula, {size}"] = radial(size).density(space, space)
        for name, decay in DECAYS.items():
            mask = radial_official(FRAMES, size, decay=decay, sink=1)
            found[f"file, decay {name}, {size}"] = mask.density(space, space)
    return found


RELEASED = (
    Released(
        system="radial",
        point="The mask of blocks is another one than the formula",
        repository="mit-han-lab/radial-attention",
        file="radial_attn/attn_mask.py",
        function="gen_log_mask_shrinked, get_window_width, get_diagonal_split_mask",
        commit="72788d4f0a6d202f1ec5f1c98a6e4c8b2e34fdbc",
        paper=(
            "The window of positions halves whenever the distance in frames doubles, down to one position; "
            "then frames are dropped."
        ),
        release=(
            "A window is a power of two from the bit lengths of the frame's size and of the distance, times "
            "a decay factor that the formula does not have, and never below a block. Frames are dropped by a "
            "threshold of 128 tokens, whatever the block is. Each pair of frames is then rounded to blocks: "
            "those are kept of whose columns more than 60% hold more than a third of the rows."
        ),
        consequence=(
            "What is kept, and the cost, depends on the decay factor and the block besides the geometry."
        ),
        switch=(
            "`radial_official(frames, size, decay=, block=, sink=)` is the file, `radial(size)` the formula."
        ),
        figures=lambda seed: densities(),
        shown=(
            f"Of all pairs at {FRAMES} frames of {SIZES[0]} tokens the formula keeps {{formula, "
            f"{SIZES[0]}:.3f}}, the file {{file, decay 1, {SIZES[0]}:.3f}} at decay 1 and {{file, decay one "
            f"fifth, {SIZES[0]}:.3f}} at decay 0.2 (a released script's); at frames of {SIZES[1]} tokens "
            f"{{formula, {SIZES[1]}:.3f}}, {{file, decay 1, {SIZES[1]}:.3f}} and {{file, decay one fifth, "
            f"{SIZES[1]}:.3f}}."
        ),
        compared="`gen_log_mask_shrinked` itself was run on 60 random geometries: all masks equal.",
    ),
)
