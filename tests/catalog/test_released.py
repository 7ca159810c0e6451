"""The page on released code: entries are complete, their figures are computed, the page follows the file."""

from __future__ import annotations

import dataclasses
import json

import pytest

from attlas._common.errors import UsageError
from attlas._common.files import read_json, write_json
from attlas.catalog import find, results
from attlas.catalog.released import Released, __main__, _measure, _registry
from attlas.catalog.released._entry import filled
from attlas.catalog.released._page import released_page

ENTRY = Released(
    system="moa",
    point="It adds | one",
    repository="some/body",
    file="add.py",
    function="add",
    paper="Nothing is added.",
    release="One is added.",
    consequence="It is one more.",
    switch="`official=True` adds one.",
    figures=lambda seed: {"sum, here": seed + 1, "one": 1},
    shown="The sum is {sum, here:.1f±}, of which {one:.0f} too much.",
    commit="0123456789" * 4,
)


def test_every_entry_belongs_to_a_card_and_names_figures_that_it_has():
    entries = _registry.all_released()
    assert {"sinklora", "radial", "graphlayoutlm", "transnormerllm"} <= {entry.system for entry in entries}
    for entry in entries:
        assert find(entry.system).key == entry.system


@pytest.mark.parametrize("entry", _registry.all_released(), ids=lambda entry: entry.name)
def test_figures_fill_the_sentence(entry):
    measured = _measure.measure_entry(entry, seeds=1)["measured"]
    assert measured and "{" not in measured


def test_the_leak_is_that_of_the_eager_path():
    (entry,) = _registry.released_of("sinklora")
    found = entry.figures(0)
    assert found["later pairs of a shifted head, eager"] == 32**2
    assert found["later pairs of a shifted head, flash"] == found["weight on later tokens, flash"] == 0
    assert 0.5 < found["weight on later tokens, eager"] < 0.9


def test_padding_reaches_rows_without_edges_in_the_released_form_alone():
    (entry,) = _registry.released_of("graphlayoutlm")
    found = entry.figures(0)
    assert found["distinct logits"] == 1 and found["weight on padding, short"] == pytest.approx(452 / 709)
    assert found["change by another padding, uniform, short"] == 0
    assert found["change by another padding, uniform_padded, short"] > 0.5


def test_a_sentence_is_filled_with_means_and_deviations():
    runs = [entry_values(seed) for seed in range(3)]
    assert filled(ENTRY, runs) == "The sum is 2.0 ± 1.0, of which 1 too much."
    with pytest.raises(ValueError, match="shown names the figure 'two', measured are one, sum, here"):
        filled(dataclasses.replace(ENTRY, shown="{two:.1f}"), runs)


def entry_values(seed):
    return ENTRY.figures(seed)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"paper": " "}, "released 'moa': paper is empty"),
        ({"repository": "https://some/body"}, "repository reads 'owner/name', got 'https://some/body'"),
        ({"commit": "0123abc"}, "commit is 40 hexadecimal digits, got '0123abc'"),
    ],
)
def test_bad_entries(change, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(ENTRY, **change)


def test_figures_must_be_finite():
    entry = dataclasses.replace(ENTRY, figures=lambda seed: {"one": 1.0, "two": float("nan")})
    with pytest.raises(ValueError, match="seed 0 gave values that are not finite: two"):
        _measure.measure_entry(entry)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    done, broken = [], True

    def count(name):
        def figures(seed):
            if broken and name == "second":
                raise KeyboardInterrupt
            done.append((name, seed))
            return {"sum, here": seed, "one": 1}

        return dataclasses.replace(ENTRY, point=name, figures=figures)

    entries = [count("first"), count("second")]
    with pytest.raises(KeyboardInterrupt):
        _measure.measure_released(entries, tmp_path)
    assert not (tmp_path / "released.json").exists()
    broken, told = False, []
    found = _measure.measure_released(entries, tmp_path, step=told.append)
    assert done == [(name, seed) for name in ("first", "second") for seed in range(3)]
    assert told == ["1 of 2, moa: measured before, kept", "2 of 2, moa: second"]
    assert [path.name for path in tmp_path.iterdir()] == ["released.json"]
    assert read_json(tmp_path / "released.json") == json.loads(json.dumps(found))
    assert found["schema"] == "attlas.released" and found["versions"] and found["entries"][0]["summary"]


def test_the_page_is_that_of_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(f"{results.BEGIN}\n{results.END}\n")
    root = ["--root", str(tmp_path)]
    assert results.main(root) == 0
    page = tmp_path / "docs" / "released.md"
    assert "Nothing has been measured yet: `python -m attlas.catalog.released`." in page.read_text()
    monkeypatch.setattr(__main__, "all_released", lambda: (ENTRY,))
    assert __main__.main(["--out", str(tmp_path / "results")]) == 0
    assert "1 entries in " in capsys.readouterr().out
    assert results.main([*root, "--check"]) == 1
    assert "released.md is out of date: run make results" in capsys.readouterr().err
    assert results.main(root) == 0 and results.main([*root, "--check"]) == 0
    text = page.read_text()
    assert f"## {find('moa').title} (arXiv:2406.14909)\n\n### It adds | one\n" in text
    assert "| `moa` | It adds \\| one | `some/body`, `add.py` |" in text
    assert "in some/body at commit `012345678901`." in text
    assert "**Measured here**: The sum is 2.0 ± 1.0, of which 1 too much." in text
    assert "adds one. The released file was read; it was not run beside this library's form." in text
    assert "| sum, here | 2 | 1 |" in text
    assert "What the released" not in (tmp_path / "RESULTS.md").read_text()


def test_the_page_depends_on_nothing_but_the_file(tmp_path):
    result = _measure.measure_released([ENTRY], tmp_path)
    write_json(tmp_path / "copy.json", result)
    assert released_page(read_json(tmp_path / "copy.json")) == released_page(result)


def test_named_systems_are_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["sinklora"]) == 0
    assert capsys.readouterr().out.startswith("sinklora: The eager path of S2-Attn")
    assert list(tmp_path.iterdir()) == []
    assert __main__.main(["moae"]) == 2
    assert "nothing on the released code of 'moae'; entries are there for " in capsys.readouterr().err


def test_two_entries_of_one_name_are_refused(monkeypatch):
    from attlas.catalog.released import sinklora

    _registry.all_released.cache_clear()
    monkeypatch.setattr(sinklora, "RELEASED", sinklora.RELEASED * 2)
    with pytest.raises(ValueError, match="two entries have one name, sinklora-the_eager"):
        _registry.all_released()
    monkeypatch.setattr(sinklora, "RELEASED", (ENTRY,))
    with pytest.raises(ValueError, match=r"released/sinklora.py has system 'moa'; name the file after it"):
        _registry.all_released()
    monkeypatch.setattr(sinklora, "RELEASED", ENTRY)
    with pytest.raises(TypeError, match="must be a tuple of Released, got Released; write RELEASED = "):
        _registry.all_released()
    _registry.all_released.cache_clear()


def test_unknown_system():
    with pytest.raises(UsageError, match="entries are there for .*sinklora"):
        _registry.released_of("x")


def test_listing_loads_no_system(isolated_python):
    loaded = isolated_python(
        "import sys; from attlas.catalog.released._registry import all_released; all_released()",
        "print('torch' in sys.modules, 'attlas.layers' in sys.modules)",
    )
    assert loaded.endswith("False")
