"""The mesh transformer."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="mesht",
    title="Training Transformers for Mesh-Based Simulations",
    year=2025,
    room="models",
    kind="model and pattern",
    what=(
        "Encode, process, decode: a transformer whose attention runs along the links of a mesh, with links "
        "to farther nodes (more hops, chosen distances, random jumps, global nodes) where rollouts are long. "
        "It predicts normalised increments and is rolled out on its own predictions, with prescribed "
        "boundary nodes overwritten."
    ),
    lives=(
        "attlas.models.mesh_transformer:MeshTransformer",
        "attlas.layers.mesh_transformer:MeshTransformerLayer",
        "attlas.models.mesh_simulator:MeshSimulator",
        "attlas.models.mesh_graph_net:MeshGraphNet",
        "attlas.graph.links:k_hop",
        "attlas.graph.links:at_distances",
        "attlas.graph.links:global_links",
        "attlas.graph.links:random_links",
    ),
    source="arXiv:2508.18051",
    code="DonsetPG/graph-physics",
    departures=(
        "Logits are masked before the softmax, as in the code; the paper writes the adjacency behind it.",
        "One RMSNorm before the gated MLP: in the code the block's norm and the MLP's own stand one behind "
        "the other.",
        "Encoder and decoder have two linear maps as in the paper (ends=4 for the code's).",
        "Heads are the slowest index of the width; the code has them as the fastest, so its weights need a "
        "permutation.",
        "Training noise falls on the predicted nodes only, and the target is the increment from the noisy "
        "state.",
        "The claim: simulated flows (no package ships data of fluid dynamics), 4 blocks of width 32, "
        "coordinates as node features, inflow of the following step given; speeds at the sharp edges of the "
        "airfoil are cut at 4 (the potential flow has 40 there, training has 2).",
    ),
    unverified=(
        "What the paper calls dilated sliding window and global attention is not in its code: here links at "
        "chosen distances, and links to and from a set of nodes.",
        "MeshGraphNet's 15 steps of width 128 are from memory.",
        "The paper's figures (aneurysm, cylinder flow and others): these data are in no package.",
    ),
    claim="attlas.catalog.claims.mesht:CLAIM",
)
