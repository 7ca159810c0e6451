"""attlas tune, generate and report, on a tiny model."""

from __future__ import annotations

import json

import pytest

import attlas


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
