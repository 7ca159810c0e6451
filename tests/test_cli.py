"""The command: its options are frozen, bad input gets a sentence and exit code 2, Ctrl-C gets 130."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

import attlas
from attlas.cli import app, main
from attlas.cli import atlas as atlas_commands

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
    "bench": "",
    "inspect": "",
}
BENCH = {
    "patterns": (
        "--length --density --layers --grid --model --plan --needles --seeds --timing --out --fresh --json"
    ),
    "mixers": "--mixer --task --seeds --rates --steps --widths --heads --lengths --out --fresh --json",
}


INSPECT = {"dsf": "--mixer --length --out --json"}


@pytest.fixture
def attlas_says(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(attlas_says):
    """The message of a command that exits with 2."""

    def run(*arguments):
        code, _, error = attlas_says(*arguments)
        assert code == 2, error
        assert error.startswith("attlas: ") and "Traceback" not in error
        return error

    return run


def test_options_are_frozen():
    group = typer.main.get_command(app)
    assert options_of(group) == OPTIONS
    assert options_of(group.commands["bench"]) == BENCH
    assert options_of(group.commands["inspect"]) == INSPECT


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
    panels = ("On a model", "On the atlas and on patterns")
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


def test_list_and_its_json(attlas_says):
    code, text, _ = attlas_says("list")
    assert code == 0 and "moa" in text and "2024" in text
    code, text, _ = attlas_says("list", "--json")
    assert [card["key"] for card in json.loads(text)] == sorted(card["key"] for card in json.loads(text))
    assert "moa" in [card["key"] for card in json.loads(text)]


def test_show(attlas_says, refused):
    code, text, _ = attlas_says("show", "moa")
    assert code == 0
    for words in ("arXiv:2406.14909", "thu-nics/MoA", "Not verified", "Measure it: attlas claim moa"):
        assert words in text
    assert "did you mean 'moa'?" in refused("show", "moaa")


def test_explain_draws(attlas_says):
    code, text, _ = attlas_says("explain", "causal & (window(2) | sink(1))", "--length", "8")
    assert code == 0
    # Rows 0..7 see 1, 2, 3, 3, ... keys: 1 + 2 + 6 * 3 = 21 of 36.
    assert "pairs     21, 58.3% of dense causal" in text
    assert "keys      3 at most for a query, 37.5% of the tokens" in text
    picture = text.split("columns keys\n")[1].splitlines()
    assert picture[3] == "  ##  ####"


def test_explain_binds_the_length(attlas_says):
    code, text, _ = attlas_says("explain", "causal & window(elastic(4, 0.25))", "--length", "16")
    assert code == 0 and "causal & window(8) at N = 16" in text


def test_explain_refuses_what_is_no_pattern(refused):
    error = refused("explain", "causal & windw(3)")
    assert "'windw' is not a pattern (did you mean 'window'?); known: along, " in error
    error = refused("explain", "causal & (window(3)")
    assert "'(' was never closed, at '(window(3)'; known: along, " in error
    assert "waits for tensors (line), which a command cannot give" in refused("explain", "same('line')")


def test_explain_counts_as_the_layout_does(attlas_says):
    from attlas.pattern import Tokens, parse

    text = "causal & (window(100) | sink(4))"
    layout = parse(text).layout(Tokens(512), Tokens(512))
    assert layout.pairs < layout.computed < 512 * 512
    code, shown, _ = attlas_says("explain", text, "--length", "512")
    assert code == 0 and f"pairs     {layout.pairs:,}, " in shown
    assert f"computed  {layout.computed:,} in tiles, {layout.pairs / layout.computed:.0%} of them" in shown


def test_claim_needs_a_name_or_all(refused):
    assert "name the systems to measure, or give --all" in refused("claim")
    assert "name the systems to measure, or give --all" in refused("claim", "moa", "--all")
    assert "no system named 'nothing'" in refused("claim", "nothing")
    assert "seeds must be at least 1, got 0" in refused("claim", "moa", "--seeds", "0")


def test_claim_prints_what_was_found(attlas_says, monkeypatch, tmp_path):
    result = {
        "says": "less is more",
        "rule": "below 10",
        "measured": "worst loss 3.0.",
        "verdict": "holds",
        "summary": {"loss": {"mean": 2.0, "sd": 1.0, "least": 1.0, "largest": 3.0}},
        "runs": [{}, {}, {}],
        "seconds": 90.0,
    }
    monkeypatch.setattr("attlas.catalog.run_claim", lambda card, **options: result)
    code, text, _ = attlas_says("claim", "moa", "--out", tmp_path)
    assert code == 0
    for line in (
        "paper says less is more",
        "measured   worst loss 3.0.",
        "verdict    holds",
        "3 seeds, 1.5 min",
    ):
        assert line in text
    code, text, _ = attlas_says("claim", "moa", "--json")
    assert code == 0 and json.loads(text) == result


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


def test_a_shade_is_blank_only_for_nothing():
    assert atlas_commands._shade(0) == " " and atlas_commands._shade(1) != " "
    assert atlas_commands._shade(255) == "#"


# Bad input to tune and generate: each says what is wrong.


@pytest.fixture
def tiny_run(tiny_model, tmp_path):
    """A `tune` that takes seconds."""
    lengths = ["--lengths", "512,1024", "--extend", "1536", "--needles", "4", "--also", ""]
    return ["tune", tiny_model, *lengths, "--no-timing", "--out", tmp_path / "run"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--budget", "0"], "budget must lie in (0, 1]"),
        (["--budget", "1.5"], "budget must lie in (0, 1]"),
        (["--budget", "nan"], "budget must lie in (0, 1]"),
        (["--also", "0.3,x"], "also takes numbers joined by commas"),
        (["--lengths", "1024;2048"], "lengths are whole numbers joined by commas, as in 1024,2048; got"),
        (["--lengths", ""], "lengths must be given and increase"),
        (["--lengths", "1024,512"], "lengths must be given and increase"),
        (["--extend", "512"], "extend must be at least the last of lengths"),
        (["--data", "no-such-text"], "unknown data 'no-such-text'"),
    ],
)
def test_tune_refuses_before_the_model_is_loaded(refused, tiny_run, tmp_path, monkeypatch, options, text):
    monkeypatch.delattr("attlas.bridges.loading._from_pretrained")
    assert text in refused(*tiny_run, *options)
    assert not (tmp_path / "run").exists()


def test_tune_refuses_lengths_above_the_context(refused, tiny_run):
    assert "lengths asks for 4096 tokens, above the context of 2048" in refused(
        *tiny_run[:2], *tiny_run[-2:], "--lengths", "512,4096"
    )
    assert "extend asks for 4096 tokens, above the context of 2048" in refused(*tiny_run, "--extend", "4096")


def test_tune_refuses_too_little_text(refused, tiny_run, tmp_path):
    (tmp_path / "short.txt").write_text("Hardly anything.")
    assert "too little text" in refused(*tiny_run, "--data", tmp_path / "short.txt")


def test_tune_refuses_a_folder_that_cannot_be_written(refused, tiny_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(*tiny_run, "--out", tmp_path / "file" / "run")
    error = refused(*tiny_run, "--out", tmp_path / "file")
    assert "file is a file, but a folder is needed (out, --out); give another name" in error


def test_tune_refuses_without_memory(refused, tiny_run, monkeypatch):
    monkeypatch.setattr("attlas._common.machine._meminfo", lambda field: 1024**2)
    assert "not enough memory" in refused(*tiny_run)


@pytest.mark.parametrize(
    "options",
    [
        ["--extend", "4096"],
        ["--budget", "0.001"],
        ["--data", "short.txt"],
        ["--out", "new/run", "--extend", "4096"],
    ],
)
def test_a_refused_run_leaves_no_folder_behind(refused, tiny_run, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Hardly anything.")
    refused(*tiny_run, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_model_that_is_not_found_leaves_no_folder_behind(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = refused("tune", "someone/modl")
    assert "someone/modl is neither a folder, a GGUF file nor 'demo', nor on the hub" in error
    assert not list(tmp_path.iterdir())


def test_tune_writes_plan_and_report_and_goes_on_where_it_was(attlas_says, refused, tiny_run, tmp_path):
    code, text, error = attlas_says(*tiny_run)
    assert code == 0, error
    assert "uniform window" in text and "profile" in error
    run = tmp_path / "run"
    plan, results = (run / "plan.json").read_text(), json.loads((run / "results.json").read_text())
    assert (run / "report.html").stat().st_size > 10_000
    (run / "plan.json").unlink()
    code, text, _ = attlas_says(*tiny_run)
    assert code == 0 and (run / "plan.json").read_text() == plan
    again = json.loads((run / "results.json").read_text())
    assert again["methods"] == results["methods"]
    assert all(stage["resumed"] for stage in again["stages"])
    code, text, _ = attlas_says("report", run)
    assert code == 0 and "uniform window" in text
    assert "holds a run of other settings" in refused(*tiny_run, "--seed", "1")
    part = run / "state" / "scores-plan-512.json"
    part.write_text(part.read_text()[:100])
    error = refused(*tiny_run)
    assert f"{part}, which the run needs to go on, is damaged (not valid JSON: " in error
    assert "delete it: the same command computes this part again" in error


def test_a_model_that_is_none(refused, tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    plan = ["--plan", tmp_path / "plan.json", "--prompt", "Hello"]
    (tmp_path / "plan.json").write_text("{")
    assert "does not exist" in refused("tune", tmp_path / "nothing" / "there")
    assert "not a .gguf model" in refused("tune", tmp_path / "notes.txt")
    assert "is not a model" in refused("tune", tmp_path / "empty")
    assert "damaged" in refused("generate", tmp_path / "empty", *plan)


def test_generate_refuses_bad_plans(refused, tiny_model, tmp_path):
    prompt = ["--prompt", "Hello"]
    missing = tmp_path / "none.json"
    assert "does not exist" in refused("generate", tiny_model, "--plan", missing, *prompt)
    newer = tmp_path / "newer.json"
    newer.write_text('{"schema": "attlas.plan", "version": 99}')
    assert "newer" in refused("generate", tiny_model, "--plan", newer, *prompt)


@pytest.fixture
def tiny_plan(tiny_model, tmp_path):
    """A plan file for the tiny model."""
    from attlas.bridges import describe, load_model

    path = tmp_path / "plan.json"
    attlas.uniform_plan(describe(load_model(tiny_model)[0]), density=0.5).save(path)
    return path


def test_generate_refuses_a_plan_for_another_model(refused, tiny_model, tiny_plan, tmp_path):
    value = json.loads(tiny_plan.read_text())
    value["model"]["fingerprint"] = "0" * len(value["model"]["fingerprint"])
    tiny_plan.write_text(json.dumps(value))
    assert "does not fit" in refused("generate", tiny_model, "--plan", tiny_plan, "--prompt", "Hello")


def test_generate_refuses_prompts(refused, tiny_model, tiny_plan, tmp_path):
    base = ["generate", tiny_model, "--plan", tiny_plan]
    (tmp_path / "latin").write_bytes(b"\xe4\xf6")
    assert "--prompt TEXT or with --prompt-file FILE" in refused(*base)
    assert "the prompt is empty" in refused(*base, "--prompt", " ")
    assert "cannot be read" in refused(*base, "--prompt-file", tmp_path / "none.txt")
    assert "cannot be read" in refused(*base, "--prompt-file", tmp_path / "latin")


def test_generate_answers(attlas_says, tiny_model, tiny_plan):
    command = [
        "generate",
        tiny_model,
        "--plan",
        tiny_plan,
        "--prompt",
        "Hello " * 40,
        "--max-new-tokens",
        "8",
    ]
    code, text, error = attlas_says(*command)
    assert code == 0 and text.endswith("\n")
    assert "tokens read, 8 written" in error and "of the key-value cache kept for" in error
    assert attlas_says(*command)[1] == text
    code, _, _ = attlas_says(*command, "--beams", "2")
    assert code == 0


def test_a_temperature_means_sampling(attlas_says, tiny_model, tiny_plan):
    command = ["generate", tiny_model, "--plan", tiny_plan, "--prompt", "Hello", "--max-new-tokens", "16"]
    likeliest = attlas_says(*command)[1]
    assert attlas_says(*command, "--seed", "1")[1] == likeliest
    hot = [*command, "--temperature", "5"]
    assert attlas_says(*hot)[1] != likeliest
    assert attlas_says(*hot, "--sample") == attlas_says(*hot)
    assert attlas_says(*hot, "--seed", "1")[1] != attlas_says(*hot)[1]


def test_generate_refuses_what_is_longer_than_the_context(refused, tiny_model, tiny_plan):
    command = ["generate", tiny_model, "--plan", tiny_plan, "--prompt", "a", "--raw"]
    error = refused(*command, "--max-new-tokens", "2048")
    assert "the prompt has 1 tokens and up to 2048 are to be written: 2049 together, above the " in error
    assert "context of 2048 of tiny-llama" in error and "lower max_new_tokens (--max-new-tokens)" in error


def test_generate_refuses_without_memory(refused, tiny_model, tiny_plan, monkeypatch):
    monkeypatch.setattr("attlas._common.machine._meminfo", lambda field: 1024)
    command = ["generate", tiny_model, "--plan", tiny_plan, "--prompt", "Hello", "--beams", "3"]
    error = refused(*command)
    assert "not enough memory for 1" in error and "tokens in 3 beams: about " in error
    assert "shorten the prompt, or write fewer tokens or with fewer beams" in error


def test_generate_refuses_encoders(refused, capsys, tiny_model, tiny_plan, tmp_path):
    import shutil

    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_model, folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=2000, **sizes)).save_pretrained(folder)
    capsys.readouterr()  # the bar of writing it
    error = refused("generate", folder, "--plan", tiny_plan, "--prompt", "Hello")
    assert "BertForMaskedLM does not generate text: it is an encoder" in error and "give a decoder" in error


def test_report_of_no_run(refused, tmp_path):
    assert "results.json" in refused("report", tmp_path)
    assert "nosuch is not a folder; give the output folder of a tune run" in refused("report", "nosuch")


def test_bench_patterns_prints_and_writes(attlas_says, tmp_path, monkeypatch):
    from attlas.catalog.bench import patterns as module
    from attlas.catalog.static_patterns import SEQUENCE

    monkeypatch.setattr(module, "SEQUENCE", SEQUENCE[:1])
    asked = (
        "bench",
        "patterns",
        "--length",
        64,
        "--grid",
        "",
        "--layers",
        2,
        "--no-timing",
        "--out",
        tmp_path,
    )
    code, text, _ = attlas_says(*asked)
    assert code == 0 and "On a sequence of 64 tokens, asked for 25.0% of the causal pairs" in text
    assert str(tmp_path / "static_patterns.json").replace("\n", "") in text.replace("\n", "")
    assert (tmp_path / "static_patterns" / "sequence-window.png").exists()
    code, text, _ = attlas_says(*asked, "--json")
    result = json.loads(text)
    assert result["command"] == "attlas bench patterns --length 64 --layers 2 --grid '' --no-timing"
    assert result == json.loads((tmp_path / "static_patterns.json").read_text())


def test_bench_patterns_refuses_what_cannot_work(refused, tmp_path):
    error = refused("bench", "patterns", "--grid", "4x4", "--out", tmp_path)
    assert "grid is FRAMESxHEIGHTxWIDTH, as in 48x8x16, or '' for none; got '4x4'" in error
    error = refused("bench", "patterns", "--plan", tmp_path / "plan.json", "--out", tmp_path)
    assert "a plan needs the model that it was made for: give --model too" in error
    assert "length must be at least 64 tokens, got 3" in refused("bench", "patterns", "--length", 3)
    assert "density is a share of the pairs" in refused("bench", "patterns", "--density", 2)
    assert not list(tmp_path.iterdir())


def test_inspect_dsf_prints_and_writes(attlas_says, tmp_path):
    asked = ("inspect", "dsf", "--mixer", "linear", "--mixer", "window", "--length", 16, "--out", tmp_path)
    code, text, _ = attlas_says(*asked)
    assert code == 0 and "State of one sequence, width 32, 2 heads" in text and "constant" in text
    assert (tmp_path / "dsf" / "kernels.png").exists() and (tmp_path / "dsf" / "index.html").exists()
    code, text, _ = attlas_says(*asked, "--json")
    result = json.loads(text)
    assert code == 0 and [row["name"] for row in result["mixers"]] == ["linear", "window"]
    assert result == json.loads((tmp_path / "dsf.json").read_text())
    assert result["command"] == "attlas inspect dsf --mixer linear --mixer window --length 16"


def test_inspect_dsf_takes_a_class_of_the_folder(attlas_says, tmp_path, monkeypatch):
    (tmp_path / "mixers_of_mine.py").write_text(
        "from torch import nn\n\n\nclass Same(nn.Linear):\n    def __init__(self, width, heads):\n"
        "        super().__init__(width, width)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, text, _ = attlas_says(
        "inspect", "dsf", "--mixer", "mixers_of_mine:Same", "--length", 16, "--out", tmp_path / "out"
    )
    assert code == 0 and "mixers_of_mine:Same" in text


def test_inspect_dsf_refuses_what_cannot_work(refused, tmp_path):
    error = refused("inspect", "dsf", "--mixer", "lineal", "--out", tmp_path)
    assert "mixer must be one of" in error and "linear" in error and "got 'lineal'" in error
    error = refused("inspect", "dsf", "--mixer", "nowhere:Mixer", "--out", tmp_path)
    assert "mixer 'nowhere:Mixer' cannot be imported" in error
    assert "length must lie in 16 .. 1024, got 3" in refused("inspect", "dsf", "--length", 3)
    assert not list(tmp_path.iterdir())


def test_bench_mixers_prints_and_writes(attlas_says, tmp_path, monkeypatch):
    from attlas.catalog.bench.mixer_tasks import TASKS, copy_task

    monkeypatch.setitem(TASKS, "copy", copy_task(length=9, symbols=4, test=10, batch=4, steps=2))
    (tmp_path / "mine_of_the_command.py").write_text(
        "from torch import nn\n\n\nclass Each(nn.Linear):\n"
        "    def __init__(self, width, heads):\n        super().__init__(width, width)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    asked = ["bench", "mixers", "--mixer", "mine_of_the_command:Each", "--task", "copy", "--seeds", "1"]
    asked += ["--rates", "0.01", "--widths", "8", "--lengths", "", "--out", "out"]
    code, text, _ = attlas_says(*asked)
    assert code == 0 and "copy: copying 4 random symbols of 4" in text and "Each" in text
    assert (tmp_path / "out" / "mixers" / "loss-copy.png").exists()
    code, text, _ = attlas_says(*asked, "--json")
    result = json.loads(text)
    assert result == json.loads((tmp_path / "out" / "mixers.json").read_text())
    assert result["command"] == (
        "attlas bench mixers --mixer mine_of_the_command:Each --task copy --seeds 1 --rates 0.01 --widths 8 "
        "--lengths ''"
    )


def test_bench_mixers_refuses_what_cannot_work(refused, tmp_path):
    error = refused("bench", "mixers", "--rates", "fast", "--out", tmp_path)
    assert "rates must be numbers with commas between them, got 'fast'" in error
    error = refused("bench", "mixers", "--widths", "8.5", "--out", tmp_path)
    assert "widths must be whole numbers with commas between them, got '8.5'" in error
    error = refused("bench", "mixers", "--mixer", "nosuch", "--out", tmp_path)
    assert "mixer must be one of " in error and "or package.module:Class, got 'nosuch'" in error
    assert "task must be one of mqar, " in refused("bench", "mixers", "--task", "chess", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


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
