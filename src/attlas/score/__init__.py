"""Scores: how strongly a query looks at a key, as pure pair functions and their algebra."""

from attlas.score.base import Clamped, Edge, Lowering, PairResult, Score, ScoreSum
from attlas.score.bias import DistanceBias, EdgeBias, Given, RowScale, ScaledScore
from attlas.score.dot import Cosine, Dot

__all__ = [
    "Clamped",
    "Cosine",
    "DistanceBias",
    "Dot",
    "Edge",
    "EdgeBias",
    "Given",
    "Lowering",
    "PairResult",
    "RowScale",
    "ScaledScore",
    "Score",
    "ScoreSum",
]
