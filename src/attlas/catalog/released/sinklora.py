"""LongLoRA's shifted sparse attention, on which SinkLoRA builds: the eager path looks ahead."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

HEADS, LENGTH, GROUPS, WIDTH = 4, 256, 4, 16


def looks_ahead(seed: int) -> Mapping[str, float]:
    """Pairs (i, j) with j > i of a shifted head, and the weight that random queries put on them."""
    import torch

    from attlas.attend import attend
    from attlas.pattern import Tokens, leaky_s2_attention, s2_attention

    half = LENGTH // GROUPS // 2
    torch.manual_seed(seed)
    query, key = torch.randn(2, 1, HEADS, LENGTH, WIDTH)
    # The value tells the last half group from all else: its output is the weight on it.
    late = (torch.arange(LENGTH) >= LENGTH - half).float()[None, None, :, None].expand(1, HEADS, -1, -1)
    found = {}
    for name, make in {"eager": leaky_s2_attention, "flash": s2_attention}.items():
        seen = make(HEADS, groups=GROUPS).bind(N=LENGTH)
        above = seen.mask(Tokens(LENGTH), Tokens(LENGTH)).triu(1)
        out = attend(query, key, late, pattern=seen)[0, HEADS // 2 :, :half]
        found[f"later pairs of a shifted head, {name}"] = above.sum().item() / (HEADS // 2)
        found[f"weight on later tokens, {name}"] = out.mean().item()
    return found


RELEASED = (
    Released(
        system="sinklora",
        point="The eager path of S2-Attn lets the first tokens see the last ones",
        repository="dvlab-research/LongLoRA",
        file="llama_attn_replace.py",
        function="forward_noflashattn",
        commit="d4eb344c5ccc9e91c0812a2b2aeea69070df8c33",
        paper=(
            "Heads attend causally within groups; half of the heads have their groups shifted by half a "
            "group."
        ),
        release=(
            "Shifted heads are rolled round the end of the row and every group gets the same triangular "
            "mask. The last group then holds the last half group of tokens in front of the first half group, "
            "which sees all of it: (G / 2)^2 pairs a head look ahead. `forward_flashattn` in the same file "
            "does not do this."
        ),
        consequence=(
            "Trained on this path, the first G / 2 tokens of a row read from its end. Full attention, which "
            "the model is used with afterwards, does not show them those tokens."
        ),
        switch="`leaky_s2_attention` is the eager path, `s2_attention` the flash path and the default.",
        figures=looks_ahead,
        shown=(
            f"At {LENGTH} tokens in {GROUPS} groups {{later pairs of a shifted head, eager:.0f}} pairs of a "
            "shifted head look ahead on the eager path and {later pairs of a shifted head, flash:.0f} on the "
            "flash path; with random queries and keys the first half group puts {weight on later tokens, "
            "eager:.3f±} of its weight on the last one, against {weight on later tokens, flash:.0f}."
        ),
        compared=(
            "`forward_noflashattn` itself was run (rotary positions left out) on 4 shapes, grouped keys "
            "included, and compared with `attend` under the pattern: equal to 1e-6."
        ),
    ),
)
