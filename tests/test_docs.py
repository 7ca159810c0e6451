"""The Python examples of the README and of docs/ run, and what they name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import attlas
from skips import needs

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


class Example(NamedTuple):
    place: str
    code: str
    why_not: str | None


def _examples() -> list[Example]:
    found = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Example(f"{path.relative_to(ROOT)}:{line}", match["code"], match["why"]))
    return found


EXAMPLES = _examples()


def test_the_readme_has_examples_that_run():
    assert sum(example.why_not is None for example in EXAMPLES if example.place.startswith("README")) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_names_in_examples_exist(example):
    used = {
        node.attr
        for node in ast.walk(ast.parse(example.code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "at"
    }
    missing = sorted(name for name in used if not hasattr(attlas, name))
    assert not missing, f"{example.place} uses at.{', at.'.join(missing)}"


def _runs(example: Example) -> object:
    """The example, with what it needs beside Attlas's own dependencies."""
    marks = [needs("torch_geometric")] if "torch_geometric" in example.code else []
    return pytest.param(example, marks=marks, id=example.place)


@pytest.mark.parametrize("example", [_runs(example) for example in EXAMPLES if example.why_not is None])
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(example.code, example.place, "exec"), {"__name__": "example"})


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", "docs/decisions.md", "docs/formats.md", "docs/graphs.md"]
)
def test_links_to_files_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [link for link in links if not (ROOT / path).parent.joinpath(link).exists()]
    assert not missing
