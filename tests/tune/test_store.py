"""The folder of a run: what is there is read as it was written, or named as damaged with its remedy."""

import json
import re
from pathlib import Path

import pytest

from attlas._common.errors import UsageError
from attlas.tune import Settings
from attlas.tune.store import Store

FACTS = {"model": "abc", "text": "def"}


def opened(folder: Path | None, *, fresh: bool = False) -> Store:
    return Store(folder, Settings(), FACTS, fresh=fresh)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two parts and a stage."""
    store = opened(tmp_path / "run")
    with store.stage("search"):
        store.get("one", lambda: {"value": [0.1, None, 1e-300], "text": "ä"})
        store.get("two", lambda: [])
    return tmp_path / "run"


def test_a_part_is_computed_once(folder):
    store = opened(folder)
    assert store.get("one", lambda: pytest.fail("computed again")) == {
        "value": [0.1, None, 1e-300],
        "text": "ä",
    }
    assert store.get("three", lambda: (1, 2)) == [1, 2]
    assert [stage["resumed"] for stage in store.stages] == [True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"part": "one", "dig', "not valid JSON: "),
        ("", "not valid JSON: "),
        ('{"losses": [1.0]}', "it does not have the form of a part"),
        ("[1, 2]", "it does not have the form of a part"),
        ('{"part": "two", "digest": "0", "value": []}', "its content is not what was written there"),
        ('{"part": "one", "digest": "0", "value": []}', "its content is not what was written there"),
    ],
)
def test_a_damaged_part_is_named_at_once_and_deleting_it_helps(folder, content, reason):
    file = folder / "state" / "one.json"
    file.write_text(content)
    text = f"{file}, which the run needs to go on, is damaged ({reason}"
    with pytest.raises(UsageError, match=re.escape(text)) as caught:
        opened(folder)
    assert str(caught.value).endswith(
        "); delete it: the same command computes this part again and keeps the others"
    )
    file.unlink()
    assert opened(folder).get("one", lambda: 7) == 7


def test_the_part_of_another_name_is_foreign(folder):
    state = folder / "state"
    (state / "one.json").write_text((state / "two.json").read_text())
    with pytest.raises(
        UsageError, match=r"one\.json, which .* \(its content is not what was written there\)"
    ):
        opened(folder)


@pytest.mark.parametrize("content", ['{"settings"', "[]", '{"settings": 3}', "null"])
def test_damaged_settings_of_a_run_mean_a_fresh_start(folder, content):
    file = folder / "state" / "run.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"run\.json, which the run needs to go on, is damaged \(") as caught:
        opened(folder)
    assert "start afresh (fresh=True, --fresh): everything is computed again" in str(caught.value)
    assert opened(folder, fresh=True).get("one", lambda: 7) == 7


@pytest.mark.parametrize("content", ["[", "{}", '["search"]', '[{"name": "search"}]'])
def test_damaged_times_can_be_deleted(folder, content):
    file = folder / "state" / "stages.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"stages\.json, .*; delete it: only the times of the stages so far"):
        opened(folder)
    file.unlink()
    assert opened(folder).stages == []


def test_a_run_without_a_part_can_be_forgotten(tmp_path, folder):
    store = opened(tmp_path / "new" / "run")
    with store.stage("calibrate"):
        pass
    store.forget_refused()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    before = sorted(path.name for path in (folder / "state").iterdir())
    opened(folder).forget_refused()
    assert sorted(path.name for path in (folder / "state").iterdir()) == before


def test_forgetting_keeps_what_was_there_before(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    opened(tmp_path).forget_refused()
    opened(tmp_path / "empty").forget_refused()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_another_run_is_refused_with_the_difference(folder):
    with pytest.raises(UsageError, match=r"run holds a run of other settings \(budget 0.5 there, 0.4 here\)"):
        Store(folder, Settings(budget=0.4), FACTS, fresh=False)
    with pytest.raises(
        UsageError, match=r"\(model abc there, xyz here\); choose another folder, or start afresh"
    ):
        Store(folder, Settings(), FACTS | {"model": "xyz"}, fresh=False)


def test_parts_must_be_json(folder):
    with pytest.raises(ValueError, match=r"JSON holds only finite numbers, but \$\.value is nan"):
        opened(folder).get("three", lambda: float("nan"))
    assert not (folder / "state" / "three.json").exists()
    assert json.loads((folder / "state" / "two.json").read_text())["part"] == "two"
