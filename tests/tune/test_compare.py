"""What a run tells beside quality: times by method and length, and every fallback, also of a resumed run."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.attend import record_fallback
from attlas.bridges import describe
from attlas.tasks import TextSource
from attlas.tune import Calibration, choice, compare, study, tune
from tasks.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENIZER, MODEL = tiny_tokenizer(), tiny_model()
SOURCE = TextSource("words", "none", "made for tests", WORDS)
FEW = Calibration(needle=1, text=0, passage=1, per_item=2)
OPTIONS = {
    "lengths": (768, 1024),
    "extend": 1024,
    "needles": 2,
    "per_item": 2,
    "calibration": FEW,
    "candidates": 2,
    "validations": 1,
    "baseline_candidates": 1,
    "extra_budgets": (),
    "multi_key_needles": 0,
}


def run(folder: Path) -> dict:
    tune(MODEL, TOKENIZER, SOURCE, out=folder, **OPTIONS)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def telling(monkeypatch):
    """Validation and timing that fall back once each time; timing tells the length alone."""
    evaluate = choice.evaluate

    def validated(*args, **kwargs):
        happened = {"what": "validated", "why": "because", "count": 1}
        return replace(evaluate(*args, **kwargs), fallbacks=(happened,))

    def measured(model, plan, length, rates):
        record_fallback("timed", "because")
        return {"prefill_seconds": float(length)}

    monkeypatch.setattr(choice, "evaluate", validated)
    monkeypatch.setattr(compare, "measure", measured)


def test_times_of_all_methods_at_the_longest_length_and_of_the_main_ones_at_each(telling, tmp_path):
    methods = {method["name"]: method["time"] for method in run(tmp_path)["methods"]}
    assert set(methods) == {*compare.MAIN, compare.OWN}
    for name, time in methods.items():
        assert set(time) == ({"768", "1024"} if name in compare.EXTENDED else {"1024"})
        assert all(entry == {"prefill_seconds": float(length)} for length, entry in time.items())


def test_fallbacks_of_selection_and_timing_are_told_once_more_when_resumed(telling, tmp_path):
    found = run(tmp_path)
    counts = {row["what"]: row["count"] for row in found["fallbacks"]}
    assert counts["timed"] == len(compare.MAIN) + 1 + len(compare.EXTENDED)
    # The dense model, then every validated plan.
    validated = len(list((tmp_path / "state").glob("validation-*.json")))
    assert counts["validated"] >= validated > 2
    (tmp_path / "results.json").unlink()
    assert run(tmp_path)["fallbacks"] == found["fallbacks"]


def test_parts_made_by_other_code_are_not_continued(telling, tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(study, "source_digest", lambda *rooms: "0123")
    with pytest.raises(UsageError, match=r"holds a run of other settings \(attlas .* there, .* 0123 here\)"):
        run(tmp_path)


def test_changed_weights_are_another_run_although_the_plan_still_fits(telling, tmp_path):
    run(tmp_path)
    changed = deepcopy(MODEL)
    with torch.no_grad():
        changed.model.layers[0].self_attn.q_proj.weight.mul_(4)
    assert describe(changed).fingerprint == describe(MODEL).fingerprint
    with pytest.raises(UsageError, match=r"other settings \(weights \w+ there, \w+ here\)"):
        tune(changed, TOKENIZER, SOURCE, out=tmp_path, **OPTIONS)


def test_fresh_removes_what_would_pass_for_its_own_result(telling, tmp_path, monkeypatch):
    run(tmp_path)

    class Stopped(BaseException):
        pass

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr(study, "build_calibration", stop)
    with pytest.raises(Stopped):
        tune(MODEL, TOKENIZER, SOURCE, out=tmp_path, fresh=True, **OPTIONS)
    assert not (tmp_path / "plan.json").exists() and not (tmp_path / "results.json").exists()
