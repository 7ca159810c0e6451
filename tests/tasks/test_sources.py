"""Texts: what is known, the user's files, and what every bad file is told."""

import json

import pytest

from attlas._common.errors import UsageError
from attlas.tasks import SOURCES, load_source


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_known_source_is_a_long_text_with_licence_and_origin(name):
    source = load_source(name)
    assert source.name == name
    assert len(source.text.split()) > 30_000
    assert source.licence == "PSF-2.0"
    assert "Python" in source.origin


def test_text_files_are_read_as_they_are(tmp_path):
    file = tmp_path / "book.md"
    file.write_text("Größe and size\n", encoding="utf-8")
    assert load_source(file).text == "Größe and size\n"
    assert load_source(str(file)).name == "book.md"


def test_jsonl_joins_the_texts(tmp_path):
    file = tmp_path / "pages.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two")) + "\n\n")
    assert load_source(file).text == "one\n\ntwo"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UsageError, match=r"unknown data 'wikipedia': neither a name \(python-docs, python-doc"
    ):
        load_source("wikipedia")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "is not UTF-8 text \\(byte 0\\); convert it"),
        ("a.txt", b" \n", "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 of .* is not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1 of .* has no string "text"'),
        ("a.jsonl", b"[1]\n", 'line 1 of .* has no string "text"'),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_source(tmp_path / name)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give one text file"):
        load_source(tmp_path)
