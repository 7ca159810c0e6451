"""attlas list, show, explain, claim."""

from __future__ import annotations

import json

from attlas.cli import atlas as atlas_commands


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


def test_a_shade_is_blank_only_for_nothing():
    assert atlas_commands._shade(0) == " " and atlas_commands._shade(1) != " "
    assert atlas_commands._shade(255) == "#"


# Bad input to tune and generate: each says what is wrong.
