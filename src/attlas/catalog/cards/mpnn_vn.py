"""MPNN with a virtual node."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="mpnn_vn",
    title="On the Connection Between MPNN and Graph Transformer",
    year=2023,
    room="inspect",
    kind="analysis and baselines",
    what=(
        "A node that is joined to all others makes message passing compute attention: linear attention in "
        "two rounds (it adds up the outer products of mapped keys and values), softmax attention in n rounds "
        "(it picks one node a round, and every node adds that one's message under a running maximum). With "
        "it, the baselines: a virtual node between the layers of any net, or as a node of the graph."
    ),
    lives=(
        "attlas.inspect.mpnn_vn:linear_by_virtual_node",
        "attlas.inspect.mpnn_vn:softmax_by_virtual_node",
        "attlas.layers.virtual_node:VirtualNodeLayer",
        "attlas.layers.virtual_node:VirtualNodeStack",
        "attlas.layers.virtual_node:GATv2Gather",
        "attlas.graph.change:with_virtual_nodes",
    ),
    source="arXiv:2301.11956",
    code="Chen-Cai-OSU/MPNN-GT-Connection",
    departures=(
        "Features, product and division are functions here; the theorems put MLPs in their place on a compact "
        "set. The construction with O(n^d) width (DeepSets) is only stated.",
        "Softmax attention is added up under a running maximum, which the paper's construction has not: its "
        "sums overflow where logits are large.",
        "VirtualNodeStack sums a layer's input (OGB, the paper's climate nets) or output (its copy of "
        "GraphGPS), with or without the residual; LRGB's form is a node of the graph (`with_virtual_nodes`).",
        "The claim: no climate data (the paper's sea-surface set is in no package); wind and dust are not "
        "run. 250 and 500 steps, four times as many behind --long.",
    ),
    unverified=(
        "The constructions were written after the paper's text; its code holds experiments only.",
        "The paper's results on LRGB, OGB and sea-surface temperature: not run here.",
    ),
    claim="attlas.catalog.claims.mpnn_vn:CLAIM",
)
