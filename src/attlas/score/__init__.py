"""Scores: how strongly a query looks at a key, as pure pair functions and their algebra."""

from attlas.score.base import Clamped, Edge, Lowering, PairResult, Score, ScoreSum
from attlas.score.bias import DistanceBias, EdgeBias, Given, RowScale, ScaledScore
from attlas.score.bilinear import Bilinear
from attlas.score.dot import Cosine, Dot
from attlas.score.flashbias import (
    LowRankBias,
    Modulated,
    alibi,
    alibi_slopes,
    cosine_of_distance,
    factored,
    rank_of,
    squared_distance,
)
from attlas.score.graph import Additive, EdgeProduct, GraphBias, TypedBias
from attlas.score.p_laplacian import PLaplacian, log_edge_weight

__all__ = [
    "Additive",
    "Bilinear",
    "Clamped",
    "Cosine",
    "DistanceBias",
    "Dot",
    "Edge",
    "EdgeBias",
    "EdgeProduct",
    "Given",
    "GraphBias",
    "LowRankBias",
    "Lowering",
    "Modulated",
    "PLaplacian",
    "PairResult",
    "RowScale",
    "ScaledScore",
    "Score",
    "ScoreSum",
    "TypedBias",
    "alibi",
    "alibi_slopes",
    "cosine_of_distance",
    "factored",
    "log_edge_weight",
    "rank_of",
    "squared_distance",
]
