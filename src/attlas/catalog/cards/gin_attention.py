"""GIN-, PNA- and sparse-GIN attention."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="gin_attention",
    title="Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers",
    year=2025,
    room="layers",
    kind="token mixers and fine-tuning",
    what=(
        "The attention map as the weighted adjacency of a graph network. GIN attention adds neighbours' "
        "features, taken from the layer's input without a value projection, to the token's own and puts an "
        "MLP per head behind them; PNA attention hands sum, mean, maximum and variance over the neighbours "
        "to such an MLP. Thresholds turn maps into adjacencies. Sparse GIN fine-tunes a frozen decoder by a "
        "small graph network on the strong edges of its own summed maps."
    ),
    lives=(
        "attlas.layers.gin_attention:GINAttention",
        "attlas.layers.pna_attention:PNAAttention",
        "attlas.layers.pna_attention:pna_aggregates",
        "attlas.layers.sparse_gin:SparseGIN",
        "attlas.layers.sparse_gin:strong_edges",
        "attlas.tune.sparse_gin:SparseGINAdapters",
        "attlas.tune.sparse_gin:sparse_gin",
        "attlas.attend.adjacency:SoftThreshold",
        "attlas.attend.adjacency:Binary",
        "attlas.attend.adjacency:TopShare",
    ),
    source="arXiv:2501.02393",
    code="lamm-mit/Graph-Aware-Transformers",
    departures=(
        "The released code's PNA maximum is the receiver's own value, -inf without neighbours, and its "
        "sparse GIN keeps self-loops alone: both by official=True; docs/released.md has the figures.",
        "TopShare takes a share of a row's own edges, so that a causal row does not depend on the length of "
        "the sequence; TopShare(count=k) is the paper's k = max(1, int(0.1 n)). The released maps "
        "'flowthreshold', 'silu+binary' and 'scaled_topk_causal_4d' are not here.",
        "No dropout of weights, no group norm over differential maps, no MLP scoring. Sparse GIN is one "
        "layer with ReLU and an outer residual; the released run has PReLU and leaves the residual out. Its "
        "RMSNorm behind the network is here too (norm=False: none). The released adjacencies 'mean', "
        "'learnable_aggregate' and 'threshold_any' and its distance scaling are not here.",
        "Softmax counts as positive on every edge of the pattern, also where it underflows, so that PNA's "
        "maximum under it is one over the pattern.",
        "Sparse GIN's cached decoding keeps the projected states of earlier tokens, which the released code "
        "lacks; beam search is refused.",
        "The claim trains 150 steps instead of 300 by default. Its fine-tuning part (with --long) reads "
        "python-docstrings in place of a Debian text.",
    ),
    unverified=(
        "The paper's figures (protein sequences, SmolLM and Llama fine-tuned on texts): not run here.",
        "Sparse GIN against LoRA: only with --long.",
    ),
    claim="attlas.catalog.claims.gin_attention:CLAIM",
)
