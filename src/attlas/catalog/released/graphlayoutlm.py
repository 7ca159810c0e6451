"""GraphLayoutLM: what tokens without an edge of the layout graph get."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

TEXT, IMAGE, SHORT, LONG = 512, 197, 60, 400
"""Places for text and image in every input of the file (709), and text tokens of two pages."""
WIDTH, HEADS = 64, 4


def rows_without_edges(seed: int) -> Mapping[str, float]:
    """Distinct logits of such a row in float32, and how padding moves what it gets."""
    import torch

    from attlas.layers.graphlayoutlm import LAYOUT, GraphLayoutAttention

    length = TEXT + IMAGE
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, generator=generator) - 9e15
    found = {"distinct logits": float(len(logits.unique()))}
    x = torch.randn(1, length, WIDTH, generator=generator)
    nothing = LAYOUT.bind(
        layout=torch.zeros(2, 0, dtype=torch.int64), line=torch.zeros(length, dtype=torch.int64)
    )
    for name, text in {"short": SHORT, "long": LONG}.items():
        at = torch.arange(length)
        valid = ((at < text) | (at >= TEXT))[None]
        found[f"weight on padding, {name}"] = 1 - valid.float().mean().item()
        for rule in ("uniform_padded", "uniform"):
            torch.manual_seed(seed)
            layer = GraphLayoutAttention(WIDTH, HEADS, empty_row=rule).eval()
            # Padding tokens all have one embedding: this one or that one.
            pages = [
                torch.where(valid[..., None], x, x[:, place : place + 1]) for place in (TEXT - 1, TEXT - 2)
            ]
            with torch.no_grad():
                one, other = ((layer(page, nothing, valid) - page)[0, 0] for page in pages)
            found[f"change by another padding, {rule}, {name}"] = ((one - other).norm() / one.norm()).item()
    return found


RELEASED = (
    Released(
        system="graphlayoutlm",
        point="Tokens without an edge average over all 709 places, padding included",
        repository="Line-Kite/GraphLayoutLM",
        file="examples/run_cord.py",
        function="tokenize_and_align_labels (graph_mask) and model/graphlayoutlm.py, GraphAttentionLayer",
        commit="8a39a54557b318f90070710c3a868c650cdf6af2",
        paper="Attention in this layer runs along the edges of the layout graph alone.",
        release=(
            "The mask adds -9e15 to absent pairs. In float32 that leaves no trace of the score: a row "
            "without any edge (special, image and padding tokens, lines without relatives) has 709 equal "
            "logits, hence the mean of all values. No mask for padding is applied in this layer."
        ),
        consequence=(
            "These rows are uniform averages, not empty, and the shorter the text the more of it is padding: "
            "what a token gets depends on how much padding stands beside it."
        ),
        switch=(
            "`GraphLayoutAttention(..., empty_row='uniform_padded')` is the file; 'uniform', the mean over "
            "valid tokens, is the default."
        ),
        figures=rows_without_edges,
        shown=(
            "Of 709 random logits, {distinct logits:.0f} distinct value is left after -9e15. A row without "
            f"edges puts {{weight on padding, short:.2f}} of its weight on padding on a page of {SHORT} text "
            f"tokens and {{weight on padding, long:.2f}} on one of {LONG}. Another embedding of the padding "
            "token changes its update by {change by another padding, uniform_padded, short:.2f±} of its norm "
            "on the shorter page ({change by another padding, uniform, short:.0f} with 'uniform'; random "
            "hidden states)."
        ),
        compared=(
            "`GraphAttentionLayer` and `SubLayerConnection` themselves were run on 5 random pages of 709 "
            "places with the weights copied: equal to 1e-6."
        ),
    ),
)
