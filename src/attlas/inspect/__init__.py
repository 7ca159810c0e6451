"""What a mixer does, looked at from outside: as a dynamical system."""

from attlas.inspect.ltv import LTV

__all__ = ["LTV"]
