"""The generated tables."""

from __future__ import annotations

import pytest

from attlas._common.errors import UsageError
from attlas._common.files import write_json
from attlas.catalog import results

CLAIM = {
    "schema": "attlas.claim",
    "version": 1,
    "name": "ring",
    "title": "Ring",
    "source": "arXiv:0000.00000",
    "command": "attlas claim ring",
    "says": "less is more",
    "rule": "worst loss below 10",
    "verdict": "does not hold",
    "measured": "worst loss 12.0.",
    "summary": {"loss": {"mean": 11.0, "sd": 1.0, "least": 10.0, "largest": 12.0}},
    "runs": [{}, {}, {}],
    "seconds": 120.0,
    "machine": {"processor": "abacus", "cores": 2, "memory_bytes": 2**33},
    "versions": {"python": "3.11"},
}
RUN = {
    "schema": "attlas.run",
    "version": 1,
    "model": {"name": "SmolLM2"},
    "notes": ["A note."],
    "methods": [
        {
            "name": "plan",
            "label": "the | plan",
            "density": {"1024": 0.49},
            "quality": {
                "2048": {"text_nll": 2.5, "answer_ce": 0.1, "exact": 0.75, "needles": 40},
                "1024": {"text_nll": 2.4},
            },
            "time": {"4096": {"batch": 8, "kv_bytes": 1000, "decode_ms": 12.34}},
        }
    ],
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{results.BEGIN}\nformer text\n{results.END}\nafter\n")
    return tmp_path


def run(root, *arguments):
    return results.main([*arguments, "--root", str(root)])


def test_pages_are_generated_and_checked(root, capsys):
    write_json(root / "results" / "ring.json", CLAIM)
    write_json(root / "results" / "demo.json", RUN)
    assert run(root, "--check") == 1
    assert "RESULTS.md is out of date: run make results" in capsys.readouterr().err
    assert run(root) == 0 and run(root, "--check") == 0
    page, readme = (root / "RESULTS.md").read_text(), (root / "README.md").read_text()
    assert page.index("attlas tune on SmolLM2") < page.index("## Ring (arXiv:0000.00000)")
    assert "**Verdict: does not hold**" in page and "| loss | 11 | 1 | 10 | 12 |" in page
    assert "Machine: abacus, 2 cores, 8 GiB." in page and "3 seeds, 2 minutes" in page
    assert "| the \\| plan | 1024 | 0.490 | 2.400 |  |  |  |" in page
    assert page.index("| 1024 |") < page.index("| 2048 |  | 2.500 | 0.100 | 0.75 | 40 |")
    assert "| the \\| plan | 4096 x 8 | 1,000 |  |  | 12.3 |  |" in page
    assert readme.startswith("before\n") and readme.endswith("after\n") and "former text" not in readme
    assert "| Ring | arXiv:0000.00000 | does not hold |" in readme
    assert "of 1 papers, each measured again with at least 3 seeds" in readme and "1 do not hold" in readme


def test_other_results_keep_their_columns(root):
    rows = [{"length": 8192, "speed": 3.14159}, {"length": 1024, "speed": None}]
    write_json(
        root / "results" / "prefill.json", {"schema": "attlas.bench", "title": "Prefill", "rows": rows}
    )
    assert run(root) == 0
    page = (root / "RESULTS.md").read_text()
    assert "## Prefill" in page and "| 8192 | 3.142 |" in page and "| 1024 |  |" in page


def test_static_patterns_come_after_the_claims(root):
    from report.test_static import RESULT

    write_json(root / "results" / "a.json", {"schema": "attlas.bench", "title": "Prefill", "rows": []})
    write_json(root / "results" / "ring.json", CLAIM)
    write_json(root / "results" / "static_patterns.json", RESULT)
    assert run(root) == 0
    page = (root / "RESULTS.md").read_text()
    places = [page.index(words) for words in ("## Ring", "## Static patterns at equal density", "## Prefill")]
    assert places == sorted(places)
    assert "Command: `attlas bench patterns`. Machine: abacus, 2 cores." in page


def test_without_results_the_pages_say_so(root):
    assert run(root) == 0
    assert "Nothing has been measured yet" in (root / "RESULTS.md").read_text()
    assert "Nothing has been measured yet" in (root / "README.md").read_text()


def test_a_result_without_schema_is_refused(root, capsys):
    write_json(root / "results" / "odd.json", [1])
    assert run(root) == 2
    assert "odd.json has no schema; write it with the command that measures it" in capsys.readouterr().err


def test_lost_marks():
    with pytest.raises(UsageError, match="README.md needs the marks"):
        results.fill_region("no marks", "x")
