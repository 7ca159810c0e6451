"""Sizes that all forms of the selective scan share."""

__all__ = ["CHUNK"]

CHUNK = 64
"""Steps between two saved states: in a backward pass those inside are computed again."""
