"""The progress bars of the command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attlas.cli.bars import Bars


@pytest.fixture
def shown():
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    return stream, console


def test_a_bar_per_stage(shown):
    stream, console = shown
    with Bars(console) as bars:
        bars.stage("profile", 2)
        bars.advance()
        bars.advance()
        bars.stage("search", 3)
        bars.advance(3)
    last = stream.getvalue().rsplit("profile", 1)[1]
    assert "2/2" in last and "search" in last and "3/3" in last


def test_a_stage_that_comes_back_goes_on_in_its_bar(shown):
    stream, console = shown
    with Bars(console) as bars:
        bars.stage("evaluate", 2)
        bars.advance(2)
        bars.stage("evaluate", 4)
        bars.advance(4)
    assert "6/6" in stream.getvalue()


def test_bars_stop_on_an_error(shown):
    stream, console = shown
    with pytest.raises(KeyboardInterrupt), Bars(console) as bars:
        bars.stage("profile", 2)
        raise KeyboardInterrupt
    assert "0/2" in stream.getvalue() and bars._progress.finished is False
    assert not bars._progress.live.is_started


def test_steps_before_any_stage_are_ignored(shown):
    stream, console = shown
    with Bars(console) as bars:
        bars.advance()
    assert stream.getvalue() == ""
