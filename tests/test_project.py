"""The project's own files agree with each other."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib

import pytest
import typer

from attlas.cli import app


@pytest.fixture(scope="module")
def settings(project):
    return tomllib.loads((project / "pyproject.toml").read_text())


def _name(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def _pins(project):
    lines = (project / "constraints.txt").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))


def test_every_direct_dependency_is_pinned(project, settings):
    extras = settings["project"]["optional-dependencies"]
    groups = (settings["project"]["dependencies"], *extras.values())
    direct = {_name(line) for lines in groups for line in lines}
    assert direct - {"attlas"} <= set(_pins(project))


def test_the_pinned_torch_takes_the_cpu_build_too(project):
    assert re.fullmatch(r"\d+\.\d+\.\d+", _pins(project)["torch"])


def test_the_licence_is_the_one_that_is_declared(project, settings):
    assert settings["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (project / "LICENSE").read_text()


def test_every_import_of_the_source_is_a_declared_dependency(project, settings):
    extras = settings["project"]["optional-dependencies"]
    lines = [*settings["project"]["dependencies"], *extras["bridges"], *extras["tune"], *extras["pyg"]]
    declared = {_name(line).replace("-", "_") for line in lines}
    # Packages whose import has another name, or that a declared one is built on and hands out.
    declared |= {"vl_convert", "attlas", "markupsafe", "typing_extensions", "huggingface_hub", "tokenizers"}
    declared |= {"ignite", "sklearn"}
    found = set()
    statement = re.compile(r"^\s*(?:import ([a-z_0-9]+)|from ([a-z_0-9]+)[.\w]* import)", re.MULTILINE)
    for path in (project / "src").rglob("*.py"):
        found |= {one or two for one, two in statement.findall(path.read_text(encoding="utf-8"))}
    assert found - declared - set(sys.stdlib_module_names) <= {"pydoc_data"}


def test_make_targets_that_the_texts_name_exist(project):
    targets = set(re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", "docs/decisions.md"):
        text = (project / name).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, name


def test_attlas_commands_that_the_readme_names_exist(project):
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^attlas (.+?)(?:  #.*)?$", (project / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        name, *rest = shlex.split(line)
        command = commands[name]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
