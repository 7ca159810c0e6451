"""What a mixer does, looked at from outside: as a dynamical system; whether its weights tell what matters."""

from attlas.inspect.attention_importance import attention_agreement, weights_and_importance
from attlas.inspect.consequences import Check, consequences
from attlas.inspect.dsf import describe_mixer, inspect_dsf
from attlas.inspect.from_mixer import Realised, from_mixer, from_scan, realises
from attlas.inspect.ltv import LTV
from attlas.inspect.memory import StateSize, jacobian_kernel, state_size

__all__ = [
    "LTV",
    "Check",
    "Realised",
    "StateSize",
    "attention_agreement",
    "consequences",
    "describe_mixer",
    "from_mixer",
    "from_scan",
    "inspect_dsf",
    "jacobian_kernel",
    "realises",
    "state_size",
    "weights_and_importance",
]
