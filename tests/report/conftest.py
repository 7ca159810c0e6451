"""A synthetic run: smooth invented figures for an invented model, only to exercise tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attlas.pattern import causal, elastic, sink, window
from attlas.report.page import ReportFiles, write_report
from attlas.report.reading import load_run
from attlas.report.run import Run

LAYERS, KV_HEADS = 6, 3
LENGTHS, EXTEND = (1024, 2048), 4096
THREE = ("dense", "plan", "uniform")  # timed at every length, asked at the extension and with two keys
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
MAIN = {
    "dense": ("Dense", 1.0, 0.17, 0.95),
    "plan": ("Plan", 0.5, 0.35, 0.85),
    "uniform": ("Uniform window + sink", 0.5, 1.5, 0.45),
    "per_layer": ("Per-layer plan", 0.5, 0.9, 0.6),
    "shuffled": ("Shuffled plan", 0.5, 1.8, 0.2),
    "mean_attention": ("Mean-attention plan", 0.5, 1.85, 0.25),
}


def _quality(answer: float, exact: float, density: float, length: int) -> dict[str, Any]:
    stretch = math.log2(length / 1024)
    by_depth = [
        {
            "depth": depth,
            "exact": round(max(0.0, min(1.0, exact - 0.1 * stretch + 0.2 * (depth - 0.5) * (2 - exact))), 3),
            "answer_ce": round(answer * (1.4 - 0.8 * depth), 3),
            "n": 8,
        }
        for depth in DEPTHS
    ]
    return {
        "text_nll": round(3.03 - 0.02 * stretch + 0.03 * (1 - density), 4),
        "answer_ce": round(answer * (1 + 0.2 * stretch), 4),
        "exact": round(sum(entry["exact"] for entry in by_depth) / len(by_depth), 4),
        "needles": 40,
        "by_depth": by_depth,
    }


def _time(density: float, length: int = EXTEND) -> dict[str, Any]:
    part = length / EXTEND
    prefill, prefill_bound = 3.6 * density * part**2 + 0.2 * part, 2.9 * density * part**2
    decode, decode_bound = 36 * density * part + 3, 29 * density * part
    return {
        "batch": 8,
        "prefill_batch": 1,
        "kv_bytes": int(188_743_680 * density * part * 1.004),
        "kv_bytes_bound": int(188_743_680 * density * part),
        "prefill_seconds": 4.2 * part + 0.2 + 4.1 * density * part**2,
        "prefill_attention_seconds": prefill,
        "prefill_bound_seconds": prefill_bound,
        "prefill_fraction": prefill_bound / prefill,
        "decode_ms": 55 + 42 * density * part,
        "decode_ms_single": 31 + 6 * density * part,
        "decode_attention_ms": decode,
        "decode_bound_ms": decode_bound,
        "decode_fraction": decode_bound / decode,
    }


def _multi_key(answer: float, exact: float) -> dict[str, Any]:
    return {"text_nll": 2.9, "answer_ce": 2 * answer, "exact": exact, "needles": 16, "by_depth": []}


def _method(
    name: str, label: str, budget: float | None, density: float, answer: float, exact: float
) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "budget": budget,
        "density": {str(length): density for length in (*LENGTHS, EXTEND)},
        "quality": {str(length): _quality(answer, exact, density, length) for length in (*LENGTHS, EXTEND)},
        "time": {},
    }


def synthetic_results() -> dict[str, Any]:
    """A complete results.json; every figure in it is invented by a formula."""
    methods = []
    for name, (label, density, answer, exact) in MAIN.items():
        method = _method(name, label, None if name == "dense" else 0.5, density, answer, exact)
        timed = (*LENGTHS, EXTEND) if name in THREE else (EXTEND,)
        method["time"] = {str(length): _time(density, length) for length in timed}
        if name in THREE:
            method["multi_key"] = {"1024": _multi_key(answer, round(exact * 12) / 16)}
        else:
            method["quality"].pop(str(EXTEND))
        methods.append(method)
    for budget in (0.35, 0.25):
        loss = 0.5 / budget
        methods.append(
            _method(f"plan@{budget}", f"Plan at {budget}", budget, budget, 0.35 * loss**2, 0.85 / loss)
        )
        methods.append(
            _method(f"uniform@{budget}", f"Uniform at {budget}", budget, budget, 1.5 * loss, 0.45 / loss**2)
        )
    alphas = [[512 * ((layer + head) % 3) for head in range(KV_HEADS)] for layer in range(LAYERS)]
    betas = [[0.125 * ((2 * layer + 3 * head) % 5) for head in range(KV_HEADS)] for layer in range(LAYERS)]
    return {
        "schema": "attlas.run",
        "version": 1,
        "model": {
            "name": "synthetic-decoder",
            "family": "synthetic",
            "layers": LAYERS,
            "heads": 9,
            "kv_heads": KV_HEADS,
            "head_width": 64,
            "parameters": 1_234_567,
            "context": 8192,
        },
        "lengths": list(LENGTHS),
        "extend": EXTEND,
        "budget": 0.5,
        "methods": methods,
        "pareto": {
            "objectives": ["1024", "2048"],
            "points": [
                {
                    "id": i,
                    "losses": [1 + 0.5 * i, 6 / (1 + 0.5 * i)],
                    "density": {"1024": 0.48 + 0.002 * i},
                    "validation": 0.4 + 0.05 * abs(i - 3),
                    "chosen": i == 3,
                }
                for i in range(8)
            ],
        },
        "plan": {
            "alphas": alphas,
            "betas": betas,
            "file": "plan.json",
            "rules": [
                [_rule(a, b) for a, b in zip(*row, strict=True)] for row in zip(alphas, betas, strict=True)
            ],
        },
        "fallbacks": [{"what": "decode: <reference>", "why": "bias with gradient & more", "count": 2}],
        "stages": [
            {"name": "calibrate", "seconds": 61.2, "resumed": False},
            {"name": "profile", "seconds": 312.0, "resumed": True},
        ],
        "settings": {"seed": 0, "lengths": [1024, 2048], "budget": 0.5, "data": "synthetic"},
        "versions": {"python": "3.11.2", "attlas": "0.1.0"},
        "machine": {"cores": 2, "threads": 2, "memory_bytes": 25_769_803_776, "accelerator": None},
        "notes": ["Every figure of this run is invented: it only exercises the report."],
    }


def _rule(alpha: int, beta: float) -> str:
    span = elastic(alpha, beta, minimum=128, multiple=64, offset=-64)
    return str(causal() & (window(span) | sink(64)))


@pytest.fixture
def results() -> dict[str, Any]:
    """The synthetic results as a fresh JSON object that a test may change."""
    return synthetic_results()


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a results.json and returns its folder."""

    def write(value: Any) -> Path:
        (tmp_path / "results.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path

    return write


@pytest.fixture
def read_run(write_run: Callable[[Any], Path]) -> Callable[[Any], Run]:
    """Writes results and loads them as a `Run`."""
    return lambda value: load_run(write_run(value))


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    """The whole report of the synthetic run, written once for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "results.json").write_text(json.dumps(synthetic_results()))
    return write_report(folder)
