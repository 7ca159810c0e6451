"""The command: its options are frozen, bad input gets a sentence and exit code 2, Ctrl-C gets 130."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

import attlas
from attlas.cli import app

OPTIONS = {
    "tune": "model --budget --lengths --extend --data --out --seed --needles --also --timing --fresh",
    "generate": (
        "model --plan --prompt --prompt-file --max-new-tokens --sample --temperature --beams --seed --raw"
    ),
    "report": "folder",
    "list": "--json",
    "show": "name",
    "claim": "names --all --json --seeds --budget --long --fresh --out",
    "explain": "pattern --length",
    "graph": "",
    "bench": "",
    "inspect": "",
}
BENCH = {
    "patterns": (
        "--length --density --layers --grid --model --plan --needles --seeds --timing --out --fresh --json"
    ),
    "extrapolation": "--mixer --seeds --steps --lengths --windows --out --fresh --json",
    "mixers": "--mixer --task --seeds --rates --steps --widths --heads --lengths --out --fresh --json",
}


INSPECT = {"dsf": "--mixer --length --out --json"}
COLUMNS = "--sender --receiver --kind --values --header --undirected --nodes"
GRAPH = {
    "inspect": f"file {COLUMNS} --json",
    "encode": "file --encoding --out --sender --receiver --header --undirected --nodes --force",
    "train": (
        "file --labels --out --model --features --task --encodings --depth --width --heads --steps "
        f"--learning-rate --weight-decay --batch --fanout --check --seed {COLUMNS} --force --fresh --json"
    ),
    "predict": "run file --features --nodes --out",
    "layers": "--json",
}


def test_options_are_frozen():
    group = typer.main.get_command(app)
    assert options_of(group) == OPTIONS
    assert options_of(group.commands["bench"]) == BENCH
    assert options_of(group.commands["inspect"]) == INSPECT
    assert options_of(group.commands["graph"]) == GRAPH


def options_of(group):
    found = {}
    for name, command in group.commands.items():
        named = [
            parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name
            for parameter in command.params
        ]
        found[name] = " ".join(named)
    return found


def test_defaults_are_frozen():
    group = typer.main.get_command(app)
    tune = {parameter.name: parameter.default for parameter in group.commands["tune"].params}
    assert tune == {
        "model": None,
        "budget": 0.5,
        "lengths": "1024,2048",
        "extend": None,
        "data": "python-docs",
        "out": None,
        "seed": 0,
        "needles": 40,
        "also": "0.35,0.25",
        "timing": True,
        "fresh": False,
    }
    generate = {parameter.name: parameter.default for parameter in group.commands["generate"].params}
    assert (generate["max_new_tokens"], generate["sample"], generate["temperature"]) == (128, False, None)


def test_help_teaches(attlas_says):
    code, text, _ = attlas_says("--help")
    assert code == 0
    panels = ("On a model", "On a graph", "On the atlas and on patterns")
    for words in ("attlas tune demo --out runs/demo", "Exit codes", "The atlas holds", *panels, *OPTIONS):
        assert words in text


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_has_help(attlas_says, name):
    code, text, _ = attlas_says(name, "--help")
    assert code == 0 and "Usage: attlas " + name in text


def test_version(attlas_says):
    assert attlas_says("--version") == (0, f"attlas {attlas.__version__}\n", "")


def test_the_installed_command_and_the_module_are_the_same():
    done = subprocess.run([sys.executable, "-m", "attlas", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"attlas {attlas.__version__}\n"


def test_interrupted(attlas_says, monkeypatch):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("attlas.catalog.run_claim", lambda *_, **options: stop())
    code, _, error = attlas_says("claim", "moa")
    assert code == 130
    assert error == "attlas: interrupted; run the same command again to continue\n"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m attlas list --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_of_bench_mixers_names_every_task_and_the_defaults():
    from attlas.catalog.bench.mixer_settings import MixerSettings
    from attlas.catalog.bench.mixer_tasks import TASKS

    command = typer.main.get_command(app).commands["bench"].commands["mixers"]
    usual, given = MixerSettings(), {one.name: one for one in command.params}
    for name in (*TASKS, *usual.tasks):
        assert name in given["task"].help
    assert all(name in given["mixer"].help for name in usual.mixers)
    assert (given["seeds"].default, given["heads"].default) == (usual.seeds, usual.heads)
    for name in ("rates", "widths", "lengths"):
        assert given[name].default == ",".join(map(str, getattr(usual, name)))
