"""What a mixer does, looked at from outside: as a dynamical system; whether its weights tell what matters."""

from attlas.inspect.attention_importance import attention_agreement, weights_and_importance
from attlas.inspect.consequences import Check, consequences
from attlas.inspect.deconstructing import MapStatistics, between, map_statistics
from attlas.inspect.dsf import describe_mixer, inspect_dsf
from attlas.inspect.eqpoly import (
    Hierarchy,
    describe_hierarchy,
    features_beyond,
    hierarchy,
    separating,
)
from attlas.inspect.from_mixer import Realised, from_mixer, from_scan, realises
from attlas.inspect.ltv import LTV
from attlas.inspect.memory import StateSize, jacobian_kernel, state_size
from attlas.inspect.mpnn_vn import linear_by_virtual_node, margin, softmax_by_virtual_node
from attlas.inspect.sinks import Sinks, sink_strength

__all__ = [
    "LTV",
    "Check",
    "Hierarchy",
    "MapStatistics",
    "Realised",
    "Sinks",
    "StateSize",
    "attention_agreement",
    "between",
    "consequences",
    "describe_hierarchy",
    "describe_mixer",
    "features_beyond",
    "from_mixer",
    "from_scan",
    "hierarchy",
    "inspect_dsf",
    "jacobian_kernel",
    "linear_by_virtual_node",
    "map_statistics",
    "margin",
    "realises",
    "separating",
    "sink_strength",
    "softmax_by_virtual_node",
    "state_size",
    "weights_and_importance",
]
