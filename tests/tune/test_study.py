"""The whole run on a tiny model: its files, resuming after a kill at every part, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.pattern import Plan
from attlas.report import load_run
from attlas.tasks import TextSource
from attlas.tune import Calibration, Settings, Silent, Study, limits, tune
from attlas.tune import store as store_module
from attlas.tune.progress import as_progress
from tasks.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model()
SOURCE = TextSource("words", "none", "made for tests", WORDS)
CALIBRATION = Calibration(
    needle=1,
    text=1,
    passage=1,
    per_item=2,
    answer_tokens=12,
)
OPTIONS = {
    "lengths": (768, 1024),
    "extend": 1280,
    "needles": 4,
    "per_item": 2,
    "calibration": CALIBRATION,
    "candidates": 4,
    "validations": 2,
    "baseline_candidates": 2,
    "extra_budgets": (0.4,),
    "extra_needles": 2,
    "multi_key_needles": 2,
    "timing": False,
}


class Killed(BaseException):
    """Stands for kill -9: nothing may be written after it."""


def run(folder: Path | None, **changes) -> Plan:
    return tune(MODEL, TOKENIZER, SOURCE, out=folder, **{**OPTIONS, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def test_results_hold_every_method_with_its_quality_and_density(finished):
    found = json.loads((finished / "results.json").read_text())
    names = ["dense", "plan", "uniform", "per_layer", "mean_attention", "shuffled", "plan@0.4", "uniform@0.4"]
    assert [method["name"] for method in found["methods"]] == names
    for method in found["methods"]:
        extended = method["name"] in ("dense", "plan", "uniform")
        assert sorted(map(int, method["quality"])) == [768, 1024] + [1280] * extended
        for quality in method["quality"].values():
            assert quality["needles"] == (2 if "@" in method["name"] else 4)
            assert quality["text_nll"] > 0 and 0 <= quality["exact"] <= 1
        limit = method["budget"] or 1.0
        assert all(density <= limit + 0.03 for density in method["density"].values())
    assert found["extend"] == 1280 and found["lengths"] == [768, 1024]
    assert sum(point["chosen"] for point in found["pareto"]["points"]) == 1
    stages = [stage["name"] for stage in found["stages"]]
    assert stages == ["calibrate", "profile", "search", "select", "baselines", "evaluate"]
    assert not any(stage["resumed"] for stage in found["stages"])


def test_the_report_room_reads_the_results(finished):
    loaded = load_run(finished)
    assert loaded.method("plan").quality[1280].needles == 4
    assert loaded.rules and len(loaded.rules) == 2


def test_the_plan_is_the_chosen_point_and_knows_where_it_comes_from(finished):
    plan = Plan.load(finished / "plan.json")
    found = json.loads((finished / "results.json").read_text())
    chosen = next(point for point in found["pareto"]["points"] if point["chosen"])
    assert {n: plan.density(int(n)) for n in chosen["density"]} == pytest.approx(chosen["density"])
    assert all(plan.density(n) <= 0.5 for n in (768, 1024, 1280))
    assert plan.provenance["text"] == "words" and plan.provenance["budget"] == 0.5
    assert plan.metrics["quality"]["768"]["needles"] == 4


def test_killed_after_any_part_and_started_again_ends_in_the_same_plan(finished, tmp_path, monkeypatch):
    """Every write of the run is once the last one before the kill."""
    write, parts = store_module.write_json, []

    def stop_at_new_part(path, value):
        written = write(path, value)
        if Path(path).name not in parts and Path(path).name != "stages.json":
            parts.append(Path(path).name)
            raise Killed
        return written

    monkeypatch.setattr(store_module, "write_json", stop_at_new_part)
    for _ in range(100):
        try:
            run(tmp_path)
        except Killed:
            continue
        break
    assert len(parts) > 25 and parts[0] == "run.json"
    assert not list(tmp_path.rglob("*.partial"))
    ours, theirs = (json.loads((folder / "plan.json").read_text()) for folder in (tmp_path, finished))
    assert ours == theirs
    results, reference = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path, finished)
    )
    assert results["methods"] == reference["methods"] and results["pareto"] == reference["pareto"]
    assert all(stage["resumed"] for stage in results["stages"])


def test_killed_while_profiling_goes_on_after_the_last_profiled_item(finished, tmp_path):
    class Stop:
        seen = 0

        def stage(self, name, total):
            self.name = name

        def advance(self, steps=1):
            self.seen += self.name == "profile"
            if self.seen == 2:
                raise Killed

    with pytest.raises(Killed):
        run(tmp_path, progress=Stop())
    counted = Stop()
    counted.seen = 10
    assert run(tmp_path, progress=counted) == Plan.load(finished / "plan.json")
    # Six items, two of them done before the kill: the two are told at once, then one by one.
    assert counted.seen == 15


def test_a_finished_run_is_read_not_repeated(finished):
    calls = []
    hook = MODEL.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        assert run(finished) == Plan.load(finished / "plan.json")
    finally:
        hook.remove()
    assert not calls


def test_another_run_in_the_folder_is_refused_unless_fresh(finished, tmp_path):
    with pytest.raises(
        UsageError, match=r"holds a run of other settings \(budget 0.5 there, 0.4 here\); choose"
    ):
        run(finished, budget=0.4)
    with pytest.raises(UsageError, match=r"other settings \(seed 0 there, 3 here\)"):
        run(finished, seed=3)
    other = TextSource("other", "none", "made for tests", WORDS[::-1])
    with pytest.raises(UsageError, match=r"other settings \(text \w+ there, \w+ here\)"):
        tune(MODEL, TOKENIZER, other, out=finished, **OPTIONS)
    short = {"needles": 0, "extra_budgets": ()}
    run(tmp_path, **short)
    assert run(tmp_path, budget=0.45, fresh=True, **short).density(1024) <= 0.45


def test_without_a_folder_only_the_plan_is_made():
    said = []
    plan = run(None, needles=None, progress=said.append)
    assert plan.density(1024) <= 0.5
    assert said == ["calibrate", "profile", *["search"] * len(CALIBRATION.weights()), "select"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0.0}, r"budget must lie in \(0, 1\], the share of the cache to keep, got 0.0"),
        ({"budget": 1.5}, r"budget must lie in \(0, 1\]"),
        ({"budget": float("nan")}, r"budget must lie in \(0, 1\]"),
        ({"lengths": (1024, 768)}, r"lengths must be given and increase, such as 1024,2048, got 1024, 768"),
        ({"lengths": ()}, r"lengths must be given and increase, such as 1024,2048, got none"),
        (
            {"lengths": (768, 1000)},
            r"lengths and extend must be multiples of the block of 64, got 1000",
        ),
        (
            {"extend": 512},
            r"extend must be at least the last of lengths \(1024\), got 512; give 1024 to plan for the",
        ),
        ({"extend": 8192}, r"extend asks for 8192 tokens, above the context of 4096 of "),
        (
            {"lengths": (1024, 8192), "extend": 8192},
            r"lengths asks for 8192 tokens, above the context of 4096",
        ),
        ({"lengths": (1024, 8192), "extend": None}, r"lengths asks for 8192 tokens, above the context of"),
        (
            {"budget": 0.01},
            r"budget 0.01 cannot be met at 768 tokens, where the smallest rule keeps 128 tokens, a density "
            r"of 0.1667; raise the budget or use longer lengths",
        ),
        (
            {"calibration": Calibration(needle=1, text=0, per_item=9)},
            r"per_item must be at most 6, the number",
        ),
    ],
)
def test_bad_settings_say_what_is_wrong(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "new" / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_is_named_and_computed_again_once_deleted(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    # Of a baseline: a run that only misses one leaves it out, a damaged file must not look like that.
    part, profile = folder / "state" / "search-per_layer.json", folder / "state" / "profile.safetensors"
    part.write_text("{}")
    with pytest.raises(UsageError, match=r"search-per_layer\.json, which the run needs to go on, is damaged"):
        run(folder)
    part.unlink()
    profile.write_bytes(profile.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"profile\.safetensors is damaged .*; delete it and profile again"):
        run(folder)
    profile.unlink()
    assert run(folder) == Plan.load(finished / "plan.json")


def test_bad_calibration_settings_are_refused():
    with pytest.raises(
        UsageError, match=r"calibration needs at least one item .*got 0 needle, 0 text, 0 passage"
    ):
        Calibration(needle=0, text=0, passage=0)
    with pytest.raises(UsageError, match=r"validations must be >= 1, got 0"):
        Settings(validations=0)
    with pytest.raises(
        UsageError, match=r"mixes are weights >= 0 of \(needle, text, passage\), got \(\(0.0, 0.0, 0.0\),\)"
    ):
        Calibration(mixes=((0.0, 0.0, 0.0),))
    with pytest.raises(UsageError, match=r"text_rise must be a number of nats >= 0, got -0.1"):
        Settings(text_rise=-0.1)


def test_too_little_text_says_how_much_is_needed(tmp_path):
    with pytest.raises(
        UsageError, match=r"too little text: short has 5000 tokens, at least 59\d\d are needed"
    ):
        tune(
            MODEL,
            TOKENIZER,
            TextSource("short", "", "", WORDS[:5000]),
            out=tmp_path,
            **{**OPTIONS, "extend": 2048},
        )


def test_unknown_data_and_an_unwritable_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown data 'wikipedia'"):
        tune(MODEL, TOKENIZER, "wikipedia", out=tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file is a file, but a folder is needed \(out, --out\)"):
        run(tmp_path / "file")


def test_not_enough_memory_is_said_before_starting(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 20)
    with pytest.raises(
        UsageError, match=r"not enough memory for 1280 tokens: about \d.* GiB .* 0.0 GiB are available"
    ):
        run(tmp_path)


def test_the_validation_length_is_never_profiled():
    for lengths in ((1024, 2048), (1024,), (768, 1024), (256, 1024, 4096)):
        settings = Settings(lengths=lengths, extend=lengths[-1])
        assert settings.validation not in lengths and settings.validation % 64 == 0
        assert settings.extension is None and settings.all_lengths == lengths
    assert Settings().validation == 1536


@pytest.mark.parametrize(
    ("lengths", "context", "extend", "extension"),
    [
        ((1024, 2048), None, 4096, 4096),
        ((1024, 2048), 8192, 4096, 4096),
        ((1024, 2048), 3000, 2944, 2944),  # whole blocks of 64
        ((1024, 2048), 2048, 2048, None),
        ((4096, 8192), 131072, 8192, None),
    ],
)
def test_the_extension_follows_lengths_and_context(lengths, context, extend, extension):
    found = Settings(lengths=lengths).within(context)
    assert (found.extend, found.extension) == (extend, extension)
    assert found.to_dict()["extend"] == extend
    assert Settings(lengths=lengths, extend=lengths[-1] + 64).within(context).extend == lengths[-1] + 64


def test_an_extension_that_the_context_cuts_is_noted(monkeypatch):
    notes = []
    assert limits.fitted(MODEL, Settings(), "tiny", notes).extension == 4096 and not notes
    monkeypatch.setattr(MODEL.config, "max_position_embeddings", 3000)
    assert limits.fitted(MODEL, Settings(), "tiny", notes).extension == 2944
    monkeypatch.setattr(MODEL.config, "max_position_embeddings", 2048)
    assert limits.fitted(MODEL, Settings(), "tiny", notes).extension is None
    assert notes == [
        "the extension is 2944 tokens: the context of tiny is 3000 tokens",
        "no extension: the context of tiny is 2048 tokens",
    ]
    with pytest.raises(UsageError, match=r"lengths asks for 4096 tokens, above the context of 2048 of tiny"):
        limits.fitted(MODEL, Settings(lengths=(1024, 4096)), "tiny", notes)


def test_the_memory_of_an_answer_grows_with_what_the_plan_keeps():
    config = MODEL.config
    item, kv_heads = next(MODEL.parameters()).element_size(), config.num_key_value_heads
    cache = 2 * config.num_hidden_layers * kv_heads * config.head_dim * item
    dense, half = (limits.answer_memory(MODEL, 100, 28, kept=kept, rows=1) for kept in (1.0, 0.5))
    assert dense - half == 64 * cache
    assert limits.answer_memory(MODEL, 100, 28, kept=1.0, rows=3) == 3 * dense


def test_progress_must_be_usable():
    with pytest.raises(TypeError, match=r"progress must have stage\(\) and advance\(\)"):
        as_progress(3)


def test_encoders_are_told_where_to_go():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    encoder = BertForMaskedLM(config)
    with pytest.raises(UsageError, match=r"is an encoder: tune needs a decoder"):
        Study(encoder, TOKENIZER, SOURCE, Settings(), None, Silent())
