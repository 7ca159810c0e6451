"""Graphs: edges from senders to receivers, where they come from, and how they change."""

from attlas.graph.batches import SizeBucket, batch, ragged, size_buckets, to_padded, unbatch
from attlas.graph.change import (
    coalesce,
    complete,
    keep_edges,
    reverse,
    subgraph,
    undirected,
    with_self_loops,
    with_virtual_nodes,
    without_self_loops,
)
from attlas.graph.contraction import BANKS, MPNN, PPGN, PPGN_PLUS, Bank, computable, elimination, treewidth
from attlas.graph.encodings import (
    flip_signs,
    laplacian_eigenvectors,
    random_walk_diagonals,
    relative_random_walks,
    shortest_paths,
)
from attlas.graph.encodings_kernels import (
    ELECTROSTATIC,
    electrostatic_statistics,
    heat_kernel_diagonals,
)
from attlas.graph.encodings_roles import wl_roles
from attlas.graph.files import load_graph, save_graph
from attlas.graph.graph import Graph, Sorted
from attlas.graph.hops import Adjacency, adjacency, average, hop_features
from attlas.graph.kept import kept
from attlas.graph.make import (
    from_networkx,
    from_pyg,
    from_scipy,
    to_networkx,
    to_pyg,
    to_scipy,
)
from attlas.graph.motif import Motif, clique, cycle, motifs, path
from attlas.graph.neighbours import at_most, neighbour_mean, neighbour_sum
from attlas.graph.pairs import PairGraph, pairs_of
from attlas.graph.polynomials import homomorphisms, motif_features
from attlas.graph.prone import prone
from attlas.graph.sample import NeighbourLoader, Sampled, sample_hops, sample_neighbours
from attlas.graph.segment import segment_reduce, segment_softmax
from attlas.graph.subgraph_counts import injective, subgraph_counts
from attlas.graph.tables import NamedGraph, read_edges
from attlas.graph.walks import WalkTokens, walk_tokens

__all__ = [
    "BANKS",
    "ELECTROSTATIC",
    "MPNN",
    "PPGN",
    "PPGN_PLUS",
    "Adjacency",
    "Bank",
    "Graph",
    "Motif",
    "NamedGraph",
    "NeighbourLoader",
    "PairGraph",
    "Sampled",
    "SizeBucket",
    "Sorted",
    "WalkTokens",
    "adjacency",
    "at_most",
    "average",
    "batch",
    "clique",
    "coalesce",
    "complete",
    "computable",
    "cycle",
    "electrostatic_statistics",
    "elimination",
    "flip_signs",
    "from_networkx",
    "from_pyg",
    "from_scipy",
    "heat_kernel_diagonals",
    "homomorphisms",
    "hop_features",
    "injective",
    "keep_edges",
    "kept",
    "laplacian_eigenvectors",
    "load_graph",
    "motif_features",
    "motifs",
    "neighbour_mean",
    "neighbour_sum",
    "pairs_of",
    "path",
    "prone",
    "ragged",
    "random_walk_diagonals",
    "read_edges",
    "relative_random_walks",
    "reverse",
    "sample_hops",
    "sample_neighbours",
    "save_graph",
    "segment_reduce",
    "segment_softmax",
    "shortest_paths",
    "size_buckets",
    "subgraph",
    "subgraph_counts",
    "to_networkx",
    "to_padded",
    "to_pyg",
    "to_scipy",
    "treewidth",
    "unbatch",
    "undirected",
    "walk_tokens",
    "with_self_loops",
    "with_virtual_nodes",
    "without_self_loops",
    "wl_roles",
]
