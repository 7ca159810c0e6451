"""Sums whose weights factorise, carried as a state: linear in the tokens, constant per decoded token."""

from attlas._common.room import make_callable
from attlas.scan.core import scan
from attlas.scan.kernels import LRPE, Feature, Identity, Kernel, Taylor, elu1, relu, sigmoid
from attlas.scan.state import State

__all__ = ["LRPE", "Feature", "Identity", "Kernel", "State", "Taylor", "elu1", "relu", "scan", "sigmoid"]

make_callable(__name__, scan)
