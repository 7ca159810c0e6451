"""Atomic writes and strict JSON."""

from __future__ import annotations

import os
import re

import pytest

from attlas._common import files
from attlas._common.errors import UsageError


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_atomic(path, "old")
    files.write_atomic(path, "näher")
    assert path.read_bytes() == "näher".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_write_keeps_the_former_file_and_leaves_nothing(tmp_path, monkeypatch, stop):
    path = tmp_path / "plan.json"
    files.write_atomic(path, "old")

    def interrupted(*_):
        raise stop

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(stop):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_json_is_sorted_and_ends_with_a_newline(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": [1, 2.5], "a": "ü"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"') and text.endswith("}\n") and "ü" in text
    assert files.read_json(tmp_path / "x.json") == {"a": "ü", "b": [1, 2.5]}


def test_not_a_number_is_refused_with_its_place():
    with pytest.raises(ValueError, match=re.escape("$.loss[1].text is nan")):
        files.to_json({"loss": [{"text": 1.0}, {"text": float("nan")}]})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "plan file .* is damaged, not valid JSON"),
        ('{"x": NaN}', "NaN is not a JSON number"),
        (b"\xff\xfe\x00", "is damaged"),
    ],
)
def test_damaged_json(tmp_path, content, text):
    path = files.write_atomic(tmp_path / "plan.json", content)
    with pytest.raises(UsageError, match=text):
        files.read_json(path, what="plan file")


def test_missing_json_and_folder(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json does not exist; check the path"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(UsageError, match="is a folder; give the file inside it"):
        files.read_json(tmp_path)


def test_unwritable_places_are_the_users_error(tmp_path):
    plain = files.write_atomic(tmp_path / "file", "x")
    with pytest.raises(UsageError, match="cannot write .*choose a folder that you may write to"):
        files.write_atomic(plain / "below", "x")
    with pytest.raises(UsageError, match="cannot write"):
        files.writable_folder(plain / "below")


def test_writable_folder_is_made_and_left_empty(tmp_path):
    folder = files.writable_folder(tmp_path / "new" / "run")
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "x.json is not a file of schema 'attlas.plan': found 'list'"),
        ({"schema": "other"}, "found 'other'"),
        ({"schema": "attlas.plan"}, "damaged: version must be a whole number from 1, got None"),
        ({"schema": "attlas.plan", "version": True}, "got True"),
        ({"schema": "attlas.plan", "version": 3}, "newer Attlas .*version 3, this one reads up to 2"),
    ],
)
def test_schema_errors(value, text):
    with pytest.raises(UsageError, match=text):
        files.check_schema(value, "attlas.plan", 2, source="x.json")


def test_schema_accepts_older_versions():
    value = {"schema": "attlas.plan", "version": 1}
    assert files.check_schema(value, "attlas.plan", 2, source="x.json") is value
