"""PNA attention's maximum and sparse GIN's edges, as released."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

LENGTH, HEADS, WIDTH, THETA = 128, 4, 16, 0.2
REPOSITORY, COMMIT = "lamm-mit/Graph-Aware-Transformers", "fb2c6efbdd334bf3f422bab95ce44f14f130f0c9"


def maxima(seed: int) -> Mapping[str, float]:
    """How many tokens get their own value or -inf, and how many have a neighbour with a larger one."""
    import torch

    from attlas.attend import Softmax, SoftThreshold
    from attlas.layers import pna_aggregates
    from attlas.pattern import causal

    torch.manual_seed(seed)
    query, key, value = torch.randn(3, 1, HEADS, LENGTH, WIDTH)
    chain = Softmax() >> SoftThreshold(THETA)
    found = {}
    for name, normaliser in {"softmax": None, "relu": chain}.items():
        paper, released = (
            pna_aggregates(query, key, value, pattern=causal(), normaliser=normaliser, own=own)[
                ..., 2 * WIDTH : 3 * WIDTH
            ]
            for own in (None, value)
        )
        finite = released.isfinite().all(-1)
        same = (released == value).all(-1)
        found[f"share of own values, {name}"] = same[finite].float().mean().item()
        found[f"share of infinite rows, {name}"] = (~finite).float().mean().item()
        found[f"share of channels that differ, {name}"] = (paper != released)[finite].float().mean().item()
    return found


def edges(seed: int) -> Mapping[str, float]:
    """The edges of both forms, and how far a change of all earlier tokens reaches the last one."""
    import torch

    from attlas.layers import SparseGIN, strong_edges

    torch.manual_seed(seed)
    query, key = 2 * torch.randn(2, 1, HEADS, LENGTH, WIDTH)
    layer, x = SparseGIN(64, 16).eval(), torch.randn(1, LENGTH, 64)
    other = torch.cat([torch.randn(1, LENGTH - 1, 64), x[:, -1:]], 1)
    found = {}
    for name, official in {"paper": False, "release": True}.items():
        kept = strong_edges(query, key, official=official)
        receiver = torch.arange(LENGTH).repeat_interleave(kept.row_ptr.diff())
        with torch.no_grad():
            moved = (layer(other, kept) - layer(x, kept))[0, -1]
        found[f"edges, {name}"] = float(kept.col.numel())
        found[f"edges between tokens, {name}"] = float((kept.col != receiver).sum())
        found[f"change of the last token, {name}"] = moved.abs().max().item()
    return found


RELEASED = (
    Released(
        system="gin_attention",
        point="PNA attention's maximum is the receiver's own value",
        repository=REPOSITORY,
        file="src/xgpt/Attention_GNN.py",
        function="LlamaAttentionPNA.forward",
        commit=COMMIT,
        paper="The maximum of PNA attention is that of a token's neighbours' values, those with A_ij > 0.",
        release=(
            "The values are expanded along the senders' axis: entry (i, j) holds x_i, not x_j. The maximum "
            "over j is x_i where a neighbour exists; where a threshold leaves none, it is -inf."
        ),
        consequence=(
            "The third of the four aggregates carries nothing from other tokens, and a token without "
            "neighbours gives its MLP an infinite input."
        ),
        switch="`PNAAttention(official=True)`; `pna_aggregates(..., own=value)`.",
        figures=maxima,
        compared=(
            "The released module, with its weights in float32, beside `PNAAttention(official=True)`, under "
            "softmax and with a relu above 0.2: the same rows are not numbers, the others differ by less "
            "than 1e-6 of the largest output."
        ),
        shown=(
            f"{LENGTH} causal tokens of random queries, keys and values: under softmax the released maximum "
            "is the token's own value in {share of own values, softmax:.0%} of the rows and differs from the "
            "neighbours' maximum in {share of channels that differ, softmax:.0%} of the numbers; with a relu "
            f"above {THETA} {{share of infinite rows, relu:.0%}} of the rows are -inf."
        ),
    ),
    Released(
        system="gin_attention",
        point="The sparse GIN adapter keeps self-loops alone",
        repository=REPOSITORY,
        file="src/xgpt/graph_neural_network.py",
        function="CausalGINLayer.apply_causal_mask",
        commit=COMMIT,
        paper="A frozen layer's strong attention edges carry messages from earlier tokens to later ones.",
        release=(
            "`_apply_single_gnn` (llama_decoder_layer_with_gnn.py) stores the non-zeros of the "
            "lower-triangular adjacency as (row, column) = (source, target), with the row the query. The "
            "causal mask then keeps source <= target, which on such a matrix is the diagonal."
        ),
        consequence=(
            "No token reads another one: the released adapter is a network on each token by itself, scaled "
            "by how strongly the token attends to itself."
        ),
        switch="`strong_edges(..., official=True)`, `SparseGINAdapters(model, official=True)`.",
        figures=edges,
        shown=(
            f"{LENGTH} causal tokens, {HEADS} heads of random queries and keys: {{edges, paper:.0f}} edges "
            "by the paper's rule, {edges between tokens, paper:.0f} of them between tokens; "
            "{edges, release:.0f} in the release, {edges between tokens, release:.0f} between tokens. Other "
            "features in all earlier tokens change the last one by {change of the last token, "
            "paper:.3f±} and {change of the last token, release:.3f}."
        ),
    ),
)
