"""The errors that mean "the user gave something that cannot work"."""

from __future__ import annotations

__all__ = ["UnsupportedModel", "UsageError"]


class UsageError(ValueError):
    """Bad input from a user; the command prints its text and exits with code 2.

    The text names what was given, what was expected, and what to do.
    """


class UnsupportedModel(UsageError):
    """The model lacks something that Attlas needs; the text says what."""
