"""Mixers of the user's own in the comparison: the contract at the real size, their errors, names and code."""

from dataclasses import replace
from importlib import import_module

import pytest

from attlas._common.errors import UsageError
from attlas.catalog.bench import mixer_own as own_module
from attlas.catalog.bench.mixer_nets import Size, fitted
from attlas.catalog.bench.mixer_own import Absent, breaches, own_code
from attlas.catalog.bench.mixer_tasks import TASKS, recall_task, text_task
from attlas.catalog.bench.mixers import bench_mixers
from attlas.layers import MixerEntry, mixer_entry
from attlas.report.mixer_page import write_mixers
from attlas.report.mixer_tables import mixer_tables
from catalog.of_mine import MINE, MQAR, settings

SIZE = Size(16, 2)
LONG = recall_task(vocabulary=160, length=144, pairs=2, train=64, test=20, batch=8, steps=2)


def test_another_version_of_a_mixer_is_trained_anew(mine, tmp_path):
    before, entry = own_code(f"{mine}:Mean"), own_code(f"{mine}:ENTRY")
    (tmp_path / f"{mine}.py").write_text(MINE + "\n# changed\n")
    assert own_code(f"{mine}:Mean") != before and own_code(f"{mine}:ENTRY") != entry
    assert own_code("softmax") == "softmax"


def test_the_code_of_a_mixer_is_that_of_its_package_and_its_bases(mine, tmp_path):
    """Re-exported classes, what they import beside them, and bases in other packages."""
    package = tmp_path / f"pack_{mine}"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner.mixer import Mixer\n")
    (package / "inner" / "mixer.py").write_text(
        f"from {mine} import Mean\nfrom . import parts\n\nclass Mixer(Mean):\n    pass\n"
    )
    (package / "inner" / "parts.py").write_text("SCALE = 1\n")
    codes = [own_code(f"pack_{mine}:Mixer")]
    assert own_code(f"pack_{mine}:Mixer") == codes[0]
    changed = [package / "inner" / "mixer.py", package / "inner" / "parts.py", tmp_path / f"{mine}.py"]
    for file in changed:
        file.write_text(file.read_text() + "# changed\n")
        codes.append(own_code(f"pack_{mine}:Mixer"))
    assert len(set(codes)) == 4


def test_of_a_large_package_the_files_in_use_are_its_code(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(own_module, "FILES", 1)
    package = tmp_path / f"large_{mine}"
    package.mkdir()
    (package / "__init__.py").write_text(f"from {mine} import Mean\n")
    (package / "other.py").write_text("")
    before = own_code(f"large_{mine}:Mean")
    (package / "other.py").write_text("# changed\n")
    assert own_code(f"large_{mine}:Mean") == before
    (package / "__init__.py").write_text("# changed\n")
    assert own_code(f"large_{mine}:Mean") != before


def test_a_mixer_that_looks_ahead_is_refused(mine, tmp_path):
    with pytest.raises(
        UsageError, match=r"Leaky breaks the contract of mixers.*\n  CS future: the output of"
    ):
        bench_mixers(settings(f"{mine}:Leaky"), out=tmp_path / "out")
    with pytest.raises(
        UsageError, match="mixer must be one of .*softmax.*, or package.module:Class, got 'no'"
    ):
        bench_mixers(settings("no"), out=tmp_path / "out")
    with pytest.raises(
        UsageError, match="mixer 'nowhere:Mixer' cannot be imported: No module named 'nowhere'"
    ):
        bench_mixers(settings("nowhere:Mixer"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mixer_that_looks_ahead_in_long_sequences_alone_is_refused(mine, tiny, tmp_path, monkeypatch):
    """The small check has fewer tokens than the task."""
    monkeypatch.setitem(TASKS, "mqar", LONG)
    for name, said in (
        ("Late", "CS future: the output of the first 1 tokens changes with the 143 after"),
        ("Mixed", "CS batch: with 144 tokens"),
    ):
        with pytest.raises(
            UsageError, match=f"{name} breaks .* on task mqar at width 16, its figures .*\n  {said}"
        ):
            bench_mixers(settings(f"{mine}:{name}"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["window", "based_linear", "titans_mag", "sparse_hybrid"])
def test_mixers_of_ours_pass_the_check_at_the_size_that_is_trained(name):
    breaches(mixer_entry(name), TASKS["mqar_long"], 32, 2)


def test_a_leak_of_one_chunk_is_seen(mine):
    """Whole chunks of 4, 8 or 64 tokens that see themselves: no cut falls between them alone."""
    for chunk, length in ((4, 16), (8, 64), (64, 256)):
        task = text_task(length=length)

        def make(setting, chunk=chunk):
            return import_module(mine).Chunks(setting.width, chunk)

        entry = MixerEntry(f"{mine}:Chunks", make, frozenset({"CS"}))
        with pytest.raises(UsageError, match="future: the output of the first .* tokens changes"):
            breaches(entry, task, 8, 2)


def test_a_mixer_entry_of_the_users_is_called_as_it_was_asked_for(mine, tiny, tmp_path):
    """Also where its own name is that of the reference."""
    asked = settings("softmax", f"{mine}:ENTRY", seeds=1, lengths=(4, 6, 8, 10))
    result = bench_mixers(asked, out=tmp_path)
    assert [row["mixer"] for row in result["tasks"][0]["rows"]] == ["softmax", f"{mine}:ENTRY"]
    assert result["tasks"][0]["rows"][0]["parameters"] != result["tasks"][0]["rows"][1]["parameters"]
    assert set(result["speed"]["efficiency"]) == {f"{mine}:ENTRY"}
    assert len(write_mixers(tmp_path).pictures) == 3
    assert mixer_entry("softmax").name == "softmax"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Fails", "raised RuntimeError: too long"),
        ("Asserts", "raised AssertionError: no text"),
        ("Untrained", "raised KeyError: 'training'"),
    ],
)
def test_a_mixer_that_fails_at_the_real_size_alone_is_absent(mine, tiny, tmp_path, monkeypatch, name, said):
    monkeypatch.setitem(TASKS, "mqar", LONG)
    asked = settings("softmax", f"{mine}:{name}", tasks=("mqar", "copy"), lengths=(4, 8, 12, 144))
    result = bench_mixers(asked, out=tmp_path)
    recall, copied = (task["rows"] for task in result["tasks"])
    assert recall[0]["mean"] >= 0 and copied[1]["mean"] >= 0  # nine tokens are few enough
    assert recall[1] == {"mixer": f"{mine}:{name}", "width": 16, "absent": f"{mine}:{name} {said}"}
    softmax, own = result["speed"]["rows"]
    assert all(softmax["train_ms"]) and own["absent"] == f"{mine}:{name} {said}"
    assert all(own["train_ms"][:3]) and own["train_ms"][3] is None
    assert f"Left out: {mine}:{name} {said}." in mixer_tables(result)[0].notes


def test_an_error_of_a_mixer_of_ours_is_not_hidden():
    def make(setting):
        raise RuntimeError("a fault")

    entry = MixerEntry("softmax", make, frozenset({"CS"}))
    with pytest.raises(RuntimeError, match="a fault"):
        fitted(MQAR, entry, SIZE)
    with pytest.raises(Absent, match="mine:x raised RuntimeError: a fault"):
        fitted(MQAR, replace(entry, name="mine:x"), SIZE)
