"""Callable rooms."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from attlas._common.room import make_callable


@pytest.fixture
def room():
    name = "a_room_of_the_test"
    sys.modules[name] = ModuleType(name)
    yield name
    del sys.modules[name]


def test_a_room_calls_its_function_and_stays_a_module(room):
    module = sys.modules[room]
    module.helper = 3

    def measure(length: int, *, width: int = 2) -> int:
        """Measure."""
        return length * width

    make_callable(room, measure)
    assert module(4, width=5) == 20
    assert isinstance(module, ModuleType) and module.helper == 3
    assert str(inspect.signature(module)) == str(inspect.signature(measure))
    assert type(module).__call__.__doc__ == "Measure."


def test_other_modules_are_not_touched(room):
    make_callable(room, len)
    assert not callable(sys)
