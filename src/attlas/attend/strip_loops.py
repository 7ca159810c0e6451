"""The strip kernel, compiled by `numba`: attention of many queries, forward and backward.

Work is cut into strips of up to ROWS queries and the runs of keys that some of them see (`strips.Strips`). A
strip's queries are turned once; its keys are taken CHUNK at a time, read where they lie. Within a chunk only
those vectors of queries are computed that see a key, and only the keys that they see. Threads take work in
turn, and what they leave does not depend on their number.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import carray

from attlas.attend import (
    decode_ir,
    decode_vectors,
    strip_backward,
    strip_features,
    strip_forward,
    strip_parts,
    strip_rules,
    strip_vectors,
)
from attlas.attend.strip_backward import backward
from attlas.attend.strip_forward import forward
from attlas.attend.strip_parts import CALL
from attlas.attend.team import address_of, digest

__all__ = ["CALL", "compiled"]

_MODULES = (
    decode_ir,
    decode_vectors,
    strip_backward,
    strip_features,
    strip_forward,
    strip_parts,
    strip_rules,
    strip_vectors,
)


def _entries(source: str) -> dict[tuple[str, bool], Callable[[Any], None]]:
    """The functions to compile. numba's cache on disk looks at their own text and at `source` only."""

    @no_type_check
    def forward_float32(call):
        if source:
            forward(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def forward_bfloat16(call):
        if source:
            forward(carray(call, 1)[0], np.int16(0))

    @no_type_check
    def backward_float32(call):
        if source:
            backward(carray(call, 1)[0], np.float32(0))

    @no_type_check
    def backward_bfloat16(call):
        if source:
            backward(carray(call, 1)[0], np.int16(0))

    return {
        ("forward", False): forward_float32,
        ("forward", True): forward_bfloat16,
        ("backward", False): backward_float32,
        ("backward", True): backward_bfloat16,
    }


def compiled(what: str, narrow: bool) -> int:
    """The address of the machine code, a function of the address of a CALL.

    what: "forward" or "backward"; narrow: bfloat16, else float32.
    """
    return address_of(_entries(digest(*_MODULES))[what, narrow], CALL)
