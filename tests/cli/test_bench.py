"""attlas bench and inspect."""

from __future__ import annotations

import json
import sys


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
    assert "length must lie in 16 .. 256, got 3" in refused("inspect", "dsf", "--length", 3)
    assert not list(tmp_path.iterdir())


def test_bench_mixers_prints_and_writes(attlas_says, tmp_path, monkeypatch):
    from attlas.catalog.bench.mixer_tasks import TASKS, copy_task

    monkeypatch.setitem(TASKS, "copy", copy_task(length=9, symbols=4, test=10, batch=4, steps=2))
    (tmp_path / "mine_of_the_command.py").write_text(
        "from torch import nn\n\n\nclass Sums(nn.Linear):\n"
        "    def __init__(self, width, heads):\n        super().__init__(width, width)\n\n"
        "    def forward(self, x):\n        return super().forward(x).cumsum(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    asked = ["bench", "mixers", "--mixer", "mine_of_the_command:Sums", "--task", "copy", "--seeds", "1"]
    asked += ["--rates", "0.01", "--widths", "8", "--lengths", "", "--out", "out"]
    code, text, _ = attlas_says(*asked)
    assert code == 0 and "copy: copying 4 random symbols of 4" in text and "Sums" in text
    assert (tmp_path / "out" / "mixers" / "loss-copy.png").exists()
    code, text, _ = attlas_says(*asked, "--json")
    result = json.loads(text)
    assert result == json.loads((tmp_path / "out" / "mixers.json").read_text())
    assert result["command"] == (
        "attlas bench mixers --mixer mine_of_the_command:Sums --task copy --seeds 1 --rates 0.01 --widths 8 "
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


def test_bench_extrapolation_prints_and_writes(attlas_says, tmp_path, monkeypatch):
    from attlas.catalog.bench import extrapolation

    monkeypatch.setattr(extrapolation, "WIDTH", 16)
    asked = ["bench", "extrapolation", "--mixer", "softmax", "--seeds", "1", "--steps", "1"]
    asked += ["--lengths", "8,16", "--windows", "2", "--out", tmp_path]
    code, text, _ = attlas_says(*asked)
    assert code == 0 and "Trained at 8 bytes, tested up to 16 (2x)" in text and "softmax" in text
    assert (tmp_path / "extrapolation" / "loss.png").exists()
    code, text, _ = attlas_says(*asked, "--json")
    result = json.loads(text)
    assert result == json.loads((tmp_path / "extrapolation.json").read_text())
    assert result["command"] == (
        "attlas bench extrapolation --mixer softmax --seeds 1 --steps 1 --lengths 8,16 --windows 2"
    )


def test_bench_extrapolation_refuses_what_cannot_work(refused, tmp_path):
    error = refused("bench", "extrapolation", "--lengths", "long", "--out", tmp_path)
    assert "lengths must be whole numbers with commas between them, got 'long'" in error
    error = refused("bench", "extrapolation", "--mixer", "nosuch", "--out", tmp_path)
    assert "got 'nosuch'; this comparison also has flashsigmoid" in error
    assert not list(tmp_path.iterdir())
