"""Sums whose weights factorise, carried as a state: linear in the tokens, constant per decoded token."""

from attlas._common.room import make_callable
from attlas.scan.core import scan
from attlas.scan.kernels import LRPE, Feature, Identity, Kernel, Taylor, elu1, relu, sigmoid
from attlas.scan.memory import memory, recall, start_memory
from attlas.scan.memory_rule import SILU, Activation, MemoryRule, additive, squared
from attlas.scan.state import State

__all__ = [
    "LRPE",
    "SILU",
    "Activation",
    "Feature",
    "Identity",
    "Kernel",
    "MemoryRule",
    "State",
    "Taylor",
    "additive",
    "elu1",
    "memory",
    "recall",
    "relu",
    "scan",
    "sigmoid",
    "squared",
    "start_memory",
]

make_callable(__name__, scan)
