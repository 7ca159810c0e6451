"""The page and the pictures: complete, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attlas._common.errors import UsageError
from attlas.report import page as page_module
from attlas.report.figures import FIGURES
from attlas.report.page import render_page, write_report


class Reader(HTMLParser):
    """Collects every attribute that can load something, the text, and the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag, attributes):
        self._inside.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append((tag, name, value or ""))

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self._inside and self._inside[-1] == "script":
            self.scripts.append(data)
        elif not (self._inside and self._inside[-1] == "style"):
            self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


@pytest.fixture
def without_bundle(monkeypatch):
    """Pages without the megabyte of Vega and without pictures, for tests of everything else."""
    monkeypatch.setattr(page_module, "_bundle", lambda: "")
    monkeypatch.setattr(page_module, "png", lambda chart: b"picture")


def test_page_loads_nothing(report):
    text = report.page.read_text(encoding="utf-8")
    reader = read(text)
    assert reader.loads == [("link", "href", "data:,")]
    assert "default-src 'none'" in text
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style and "@import" not in style
    specs = json.loads(reader.scripts[1])
    assert set(specs) == {figure.name for figure in FIGURES}
    assert "http" not in reader.scripts[1] and "http" not in reader.scripts[2]


def test_page_tells_everything(report):
    text = " ".join("".join(read(report.page.read_text(encoding="utf-8")).text).split())
    for wanted in (
        "synthetic-decoder",
        "With 50% of the KV memory the plan keeps 89%",
        "Mean-attention plan",
        "Two facts of one kind 1,024 tokens",
        "the question tells them apart by their owner",
        "50.0%90.490.0+0.4%6.452.001.4572%34.076.021.014.569%",
        "decode: <reference>",
        "bias with gradient & more",
        "5 min 12 s",
        "(from an earlier start)",
        "Every figure of this run is invented",
        "1,234,567",
        "24.0 GiB",
        "3.11.2",
        *(figure.caption for figure in FIGURES),
    ):
        assert wanted in text, wanted


def test_pictures_are_png_of_readable_size(report):
    assert [path.name for path in report.pictures] == [f"{figure.name}.png" for figure in FIGURES]
    for path in report.pictures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width >= 700 and height >= 250, path.name


@pytest.mark.usefixtures("without_bundle")
def test_text_from_the_run_cannot_break_out(results, write_run):
    evil = "</script><script>alert(1)</script><!--"
    results["notes"] = [evil]
    results["model"]["name"] = evil
    results["methods"][1]["label"] = evil
    results["settings"][evil] = evil
    reader = read(write_report(write_run(results)).page.read_text(encoding="utf-8"))
    assert len([script for script in reader.scripts if script.strip()]) == 2
    assert not any("alert(1)" in script for script in reader.scripts if not script.strip().startswith("{"))
    specs = next(script for script in reader.scripts if script.strip().startswith("{"))
    assert "<" not in specs and evil in json.dumps(json.loads(specs)).encode().decode("unicode_escape")
    assert evil in "".join(reader.text)


@pytest.mark.usefixtures("without_bundle")
def test_missing_parts_are_said_and_old_pictures_go(results, write_run):
    folder = write_run(results)
    assert (Path(folder) / "pictures" / "pareto.png") in write_report(folder).pictures
    for key in ("pareto", "fallbacks", "stages", "notes", "settings", "versions", "machine"):
        results.pop(key)
    for method in results["methods"]:
        method["time"] = {}
    files = write_report(write_run(results))
    text = "".join(read(files.page.read_text(encoding="utf-8")).text)
    assert "The run recorded no Pareto front." in text
    assert "The run measured no times and no KV bytes." in text
    assert "The run did not record its fallbacks." in text
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [
        "budgets.png", "needles.png", "patterns.png", "quality.png", "spans.png"
    ]  # fmt: skip


@pytest.mark.usefixtures("without_bundle")
def test_smallest_run_still_gives_a_page(write_run):
    smallest = {"schema": "attlas.run", "version": 1, "methods": [{"name": "dense"}]}
    files = write_report(write_run(smallest))
    text = "".join(read(files.page.read_text(encoding="utf-8")).text)
    assert files.pictures == ()
    assert "unnamed model" in text and "No verdict" in text and "The run recorded no quality figures." in text


@pytest.mark.usefixtures("without_bundle")
def test_no_fallback_is_said(results, write_run):
    results["fallbacks"] = []
    text = "".join(read(write_report(write_run(results)).page.read_text(encoding="utf-8")).text)
    assert "None: every attention call ran on the backend that was meant for it." in text


@pytest.mark.usefixtures("without_bundle")
def test_same_run_same_page(results, read_run):
    run = read_run(results)
    drawn, absent = page_module._draw(run)
    assert render_page(run, drawn, absent) == render_page(run, *page_module._draw(run))


@pytest.mark.usefixtures("without_bundle")
def test_damaged_run_writes_nothing(write_run):
    folder = write_run("{")
    with pytest.raises(UsageError, match="damaged, not valid JSON"):
        write_report(folder)
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_folder_that_cannot_be_written(results, write_run):
    folder = write_run(results)
    (folder / "pictures").write_text("in the way")
    with pytest.raises(UsageError, match=r"pictures is a file, but a folder is needed \(out, --out\)"):
        write_report(folder)
