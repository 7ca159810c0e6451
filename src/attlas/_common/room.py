"""A room whose main function has the room's name: `attlas.attend(...)` works, and `attlas.attend.merge`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Let the imported module `name` be called like `function`, with its signature.

    The last line of a room's `__init__`: `make_callable(__name__, attend)`. The module stays an ordinary
    module; only its class gains `__call__` (a supported use of `module.__class__`, PEP 562's sister rule).
    """
    module = sys.modules[name]

    class CallableRoom(ModuleType):
        __signature__ = inspect.signature(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    CallableRoom.__call__.__doc__ = function.__doc__
    module.__class__ = CallableRoom
