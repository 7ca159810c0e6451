"""p-adapter."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="p_adapter",
    title="p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models",
    year=2023,
    room="layers",
    kind="fine-tuning adapter",
    what=(
        "An adapter behind an attention module that takes one p-Laplacian message-passing step on the "
        "attention map, as a graph of query and value nodes: edges are weighed anew by how far apart their "
        "nodes are, p below 2 for similar and above 2 for dissimilar neighbours, with p and the share of the "
        "node itself learned. The step is softmax attention with another score and one extra edge, so that "
        "no map is held; a form on sparse graphs takes edges alone."
    ),
    lives=(
        "attlas.layers.p_adapter:PAdapter",
        "attlas.layers.p_adapter:p_laplacian_step",
        "attlas.layers.p_adapter:p_laplacian_edges",
        "attlas.layers.p_adapter:p_laplacian_official",
        "attlas.layers.p_adapter:pooled_nodes",
        "attlas.score.p_laplacian:PLaplacian",
        "attlas.tune.p_adapter:PAdapters",
        "attlas.tune.p_adapter:p_adapter",
    ),
    source="arXiv:2312.10613",
    code="wuhy68/p-Adapter",
    departures=(
        "In the released code the term of the node itself is zero on the graph of queries and values, and "
        "self-loops dominate on the values' own graph where p is well below 2: both by official=True; "
        "docs/released.md has the figures.",
        "The graph of queries and values is the default everywhere. The released code takes it in cached "
        "decoding and cross-attention, and the values' own in self-attention without a cache (training, "
        "prompts), which is augmented=False.",
        "Edges between equal features have weight 0 unless p = 2, where g has no part; features count as "
        "equal where their difference is within rounding of their size. p is kept within [1, 3].",
        "Weights of 1e-8 in the released powers are not added.",
        "Fine-tuning is wired for encoders of BERT's form; pooling of cross-attention's image nodes is a "
        "function of its own (`pooled_nodes`), there being no vision-language model here.",
        "The claim's graphs first had features of length 4 alone. Length 1 was added, and the rule put on "
        "it, after a look at seed 1000, which the claim does not use: the length decides whether a larger p "
        "favours the neighbours or the node itself, and the paper gives none for such graphs.",
        "The claim adapts MiniLM on WordNet glosses in place of BLIP on VQA, SNLI-VE and captions.",
    ),
    unverified=(
        "The paper's figures (VQA 2.0, VizWiz, SNLI-VE, COCO, TextCaps): not run here.",
        "Training in half precision, where the released powers overflow.",
    ),
    claim="attlas.catalog.claims.p_adapter:CLAIM",
)
