"""GMN."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="gmn",
    title="Graph Mamba: Towards Learning on Graphs with State Space Models",
    year=2024,
    room="models",
    kind="graph model of selective scans",
    what=(
        "Every node becomes a short sequence: random walks of falling length visit sets of nodes, each the "
        "induced subgraph of a token, the node alone last. A small message-passing net encodes each token, a "
        "bidirectional selective scan reads them, and its last state is the node's; a second scan reads all "
        "nodes by degree. The graphs of a batch lie behind one another in one row, without padding."
    ),
    lives=(
        "attlas.layers.gmn:GMNLayer",
        "attlas.layers.gmn:SubgraphEncoder",
        "attlas.layers.mamba:BiMamba",
        "attlas.graph.walks:walk_tokens",
        "attlas.models.gmn:GMN",
    ),
    source="arXiv:2402.08678",
    departures=(
        "No code was released (the repository GraphMamba/GMN holds a README): the paper's text and both of "
        "its algorithms are followed. Its Algorithm 1 counts lengths from 1 and shows no reversal; here "
        "length 0 is included and longest walks stand first, as the text says.",
        "The node alone is one token, not s equal ones: K = s m + 1, and 1 for m = 0.",
        "Tokens are encoded by message passing with the mean of the nodes (any graph layers; GIN by "
        "default). The paper's other encoder, features along the walks, is not here.",
        "Nodes are scanned by rising in-degree. Degrees always tie somewhere: at random in training, by the "
        "rounded encodings of the nodes in evaluation, so that the model without walks does not depend on "
        "the numbering (unless two nodes are equal).",
        "A walk goes from a node to one of the nodes that send to it; draws are hashes of the seed, the "
        "graph's stream and the node's number in its graph.",
        "W_1 of the two directions and W_out are separate maps, B is discretised by Euler's rule, as in all "
        "of Mamba's code.",
        "The claim: 400 rings in place of 2,000, r = 6, 8 and 10 (r = 12 and 2,000 rings behind --long), "
        "ablations and the one-source rings at r = 8, one GIN layer as the encoder. Rate and encoder were "
        "chosen by looking at seed 1000, which the claim does not use; the rule is as it was before.",
    ),
    unverified=(
        "M, m and s of each data set of the paper, and its results on LRGB and others: not run here.",
    ),
    claim="attlas.catalog.claims.gmn:CLAIM",
)
