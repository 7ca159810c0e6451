"""A user's package of mixers, and tasks small enough for a test."""

import pytest

from attlas.catalog.bench.mixer_tasks import TASKS, copy_task, digits_task, text_task
from catalog.of_mine import MINE, MQAR


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's with mixers, as mine_HASH:Class."""
    name = "mine_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def tiny(monkeypatch):
    """Tasks small enough for a test."""
    monkeypatch.setitem(TASKS, "mqar", MQAR)
    monkeypatch.setitem(TASKS, "copy", copy_task(length=9, symbols=4, test=10, batch=4, steps=3))
    monkeypatch.setitem(TASKS, "text", text_task(length=16, test=4, batch=2, steps=3))
    digits = digits_task("digits", causal=False, train=60, test=20, batch=4, steps=2)
    monkeypatch.setitem(TASKS, "digits", digits)
