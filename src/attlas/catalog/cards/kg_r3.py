"""KG-R3."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="kg_r3",
    title="A Retrieve-and-Read Framework for Knowledge Graph Link Prediction",
    year=2022,
    room="models",
    kind="retriever and reader model",
    what=(
        "Link prediction in two steps: a small subgraph around the source is retrieved, and a transformer "
        "reads it. Entities and triples are tokens; entities see entities, triples see triples, and a triple "
        "sees its own head and tail. The question [CLS, source, relation] attends to what was read, and its "
        "CLS with the source's token is compared with every entity."
    ),
    lives=(
        "attlas.models.kg_r3:Reader",
        "attlas.models.kg_r3:triple_tokens",
        "attlas.models.kg_r3:graph_pairs",
        "attlas.models.kg_r3:every_pair",
        "attlas.graph.retrieve:Incidence",
    ),
    source="arXiv:2212.09724",
    code="OSU-NLP-Group/KG-R3",
    departures=(
        "The paper's best retriever, beams of a trained MINERVA agent, is not here: breadth-first search and "
        "one hop are.",
        "Contexts are ragged and their masks exact edges; the official code pads, adds -1e4 to masked logits "
        "and lets the question attend to padding, so that a prediction depends on its batch.",
        "Breadth-first search draws a node's edges without replacement; the official code with replacement.",
        "Equal scores share their ranks; the official code's order of places breaks ties by index.",
        "Questions for the head use inverse relations on every data set, as the official code does on "
        "WN18RR.",
        "No segment embeddings.",
        "The claim runs on Nations with width 64 and 2 layers, with AdamW in place of Adamax; its contexts "
        "are drawn once per question. Nations has 14 entities and every edge of breadth-first search reaches "
        "a new one: its contexts hold at most 13 edges, those of one hop up to 20. Seven epochs end near a "
        "loss of 2.3 (guessing: 2.64), too little for the contexts to matter.",
    ),
    unverified=(
        "The paper's figures (FB15k-237, WN18RR): these data are in no package.",
        "The released code was not run; a layer was compared with transformers' BertLayer.",
    ),
    claim="attlas.catalog.claims.kg_r3:CLAIM",
)
