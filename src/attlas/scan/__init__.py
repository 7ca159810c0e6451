"""Sums whose weights factorise, carried as a state: linear in the tokens, constant per decoded token."""

from attlas._common.room import make_callable
from attlas.scan.core import scan
from attlas.scan.kernels import LRPE, Feature, Identity, Kernel, Taylor, elu1, relu, sigmoid
from attlas.scan.monoids import Add, Affine, LogSumExp, Max, Monoid, SoftmaxMean, TopR
from attlas.scan.prefix import prefix
from attlas.scan.selective import selective_scan
from attlas.scan.state import State

__all__ = [
    "LRPE",
    "Add",
    "Affine",
    "Feature",
    "Identity",
    "Kernel",
    "LogSumExp",
    "Max",
    "Monoid",
    "SoftmaxMean",
    "State",
    "Taylor",
    "TopR",
    "elu1",
    "prefix",
    "relu",
    "scan",
    "selective_scan",
    "sigmoid",
]

make_callable(__name__, scan)
