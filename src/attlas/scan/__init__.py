"""Sums whose weights factorise, carried as a state: linear in the tokens, constant per decoded token."""

from attlas._common.room import make_callable
from attlas.scan.core import scan
from attlas.scan.kernels import LRPE, Feature, Identity, Kernel, Taylor, elu1, relu, sigmoid
from attlas.scan.memory import memory, recall, start_memory
from attlas.scan.memory_rule import SILU, Activation, MemoryRule, additive, squared
from attlas.scan.monoids import Add, Affine, LogSumExp, Max, Monoid, SoftmaxMean, TopR
from attlas.scan.prefix import prefix
from attlas.scan.selective import selective_scan
from attlas.scan.state import State

__all__ = [
    "LRPE",
    "SILU",
    "Activation",
    "Add",
    "Affine",
    "Feature",
    "Identity",
    "Kernel",
    "LogSumExp",
    "Max",
    "MemoryRule",
    "Monoid",
    "SoftmaxMean",
    "State",
    "Taylor",
    "TopR",
    "additive",
    "elu1",
    "memory",
    "prefix",
    "recall",
    "relu",
    "scan",
    "selective_scan",
    "sigmoid",
    "squared",
    "start_memory",
]

make_callable(__name__, scan)
