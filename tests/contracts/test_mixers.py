"""Every registered mixer keeps what it declares, and the checks find mixers that do not."""

import dataclasses

import pytest
import torch

from attlas.layers import MIXERS, MixerEntry, Setting, check_mixer, mixer_entry
from attlas.layers.contract import CHECKS
from attlas.layers.mixers import FORMS
from contracts.wrong_mixers import (
    Broken,
    ChangesItsState,
    CountsPadding,
    CountsQueries,
    DropsInTraining,
    EvenOnly,
    ForgetsBeyondWindows,
    ForgetsItsState,
    ForgetsTheSum,
    IgnoresTheContext,
    IgnoresTheQuery,
    Largest,
    Leaks,
    LeaksBeyondChunks,
    LeaksBeyondWindows,
    LeaksInTraining,
    LeaksLength,
    MixesNothing,
    MixesTheBatch,
    NoGradient,
    NoGradientOfChunks,
    NoNumber,
    OfFixedGrid,
    OfFixedLength,
    OneStateForAll,
    OnlyLater,
    Random,
    ReadsPadding,
    Right,
    SeesFour,
    SeesHalfTheContext,
    Shortens,
    StartsBehindPadding,
)

# Of every row weights sum to 1: equal tokens give equal outputs.
NORMALISED = {"abc", "aaren", "softmax", "window", "combiner_fixed", "combiner_logsparse"}


DECLARED = [(name, form) for name in sorted(MIXERS) for form in FORMS if form in MIXERS[name].forms]


@pytest.mark.parametrize(("name", "form"), DECLARED)
def test_registered(name, form):
    findings = check_mixer(MIXERS[name], forms=(form,), normalised=name in NORMALISED)
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize("name", [name for name, form in DECLARED if form == "CS"])
def test_bfloat16_is_near_float32_whole_and_in_pieces(name):
    torch.manual_seed(0)
    mixer = MIXERS[name].build(Setting(32, 2, length=24)).eval()
    x = torch.randn(2, 24, 32)
    if name == "sparse_hybrid":  # which rows are chosen turns on the last bit
        mixer.threshold = -1.0
    with torch.no_grad():
        wanted = mixer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = mixer(x)
        narrow = mixer.bfloat16()
        found = {"autocast": mixed.float(), "whole": narrow(x.bfloat16()).float()}
        if MIXERS[name].stateful:
            state, rows = narrow.start(2), []
            for piece in x.bfloat16().split(7, 1):
                y, state = narrow.advance(piece, state)
                rows.append(y)
            found["pieces"] = torch.cat(rows, 1).float()
    for how, out in found.items():
        worst = (out - wanted).abs().max() / wanted.abs().max()
        # Several roundings of 2^-9 in a row: projections, norms, gates.
        assert worst < 0.06, f"{name}, {how}: off by {worst:.3f}"


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_a_form_that_is_not_there_is_refused_with_the_reason(name):
    entry = MIXERS[name]
    for form in set(FORMS) - entry.forms:
        setting = Setting(8, 2, causal=form[0] == "C", cross=form[1] == "C", length=13)
        with pytest.raises(ValueError, match=f"mixer {name} has no {form} form, only"):
            entry.build(setting)


def found_in(kind, form="CS", *, normalised=False, checks=None, **declared):
    entry = MixerEntry(kind.__name__, kind, frozenset({form}), why_not="made for a test", **declared)
    return check_mixer(entry, normalised=normalised, checks=checks)


def test_what_is_right_has_no_findings():
    assert not found_in(Right, stateful=True, normalised=True)
    assert not found_in(Right, "NC") and not found_in(Right, "CC")
    assert not found_in(SeesFour, local=True) and not found_in(Largest, differentiable="almost")


def test_a_fixed_number_of_tokens_is_kept_to():
    assert not found_in(OfFixedLength, "NS", tokens="length")
    (finding,) = [one for one in found_in(OfFixedLength, "NS") if one.check == "shape"]
    assert str(finding) == "NS shape: ValueError: made for 37 tokens, got 1"
    entry = MixerEntry("grid", OfFixedGrid, frozenset({"NS"}), tokens="grid", why_not="made for a test")
    assert not check_mixer(entry) and not check_mixer(entry, grid=(3, 4))
    with pytest.raises(ValueError, match="mixer x: with a fixed number of tokens it has the form NS alone"):
        MixerEntry("x", Right, frozenset({"NS", "CS"}), tokens="length")
    for tokens, text in (("length", "setting needs a length"), ("grid", "setting needs a grid")):
        with pytest.raises(ValueError, match=text):
            getattr(Setting(8, 2), f"fixed_{tokens}")


def test_training_mode_is_left_out_where_chance_or_the_entry_says_so():
    assert not found_in(DropsInTraining, checks=("future", "batch"))
    assert found_in(LeaksInTraining, checks=("batch",)) and not found_in(
        LeaksInTraining, checks=("batch",), shares=True
    )


@pytest.mark.parametrize(
    ("kind", "options", "check", "text"),
    [
        (Leaks, {}, "future", "the output of the first 1 tokens changes with the 36 after them"),
        (LeaksBeyondWindows, {}, "future", "the output of the first 1 tokens changes with the 36 after"),
        (LeaksBeyondChunks, {}, "future", "the output of the first 16 tokens changes with the 115 after"),
        (
            LeaksBeyondChunks,
            {},
            "future",
            "the first 17 tokens alone give another output than before 114",
        ),
        (LeaksInTraining, {}, "future", ".* the 36 after them in training mode"),
        (LeaksInTraining, {"shares": True}, "future", ".* the 36 after them in training mode"),
        (LeaksInTraining, {}, "batch", "row 0 differs from the same row alone in training mode"),
        (MixesNothing, {}, "reach", "the last output does not depend on the first token"),
        (MixesNothing, {"local": True}, "reach", "the last output does not depend on any earlier token"),
        (MixesNothing, {"form": "NS"}, "reach", "the first output does not depend on the last token"),
        (SeesFour, {}, "reach", "the last output does not depend on the first token"),
        (Right, {"form": "NS"}, "reach", "the first output does not depend on the last token"),
        (OnlyLater, {"form": "NS"}, "reach", "the last output does not depend on the first token"),
        (
            MixesNothing,
            {"form": "NS", "local": True},
            "reach",
            "the first output does not depend on any other",
        ),
        (Right, {"form": "NS", "local": True}, "reach", "the first output does not depend on any other"),
        (Right, {"form": "NS", "tokens": "length"}, "shape", "36 tokens are taken, by a mixer of exactly 37"),
        (IgnoresTheContext, {"form": "NC"}, "reach", "no output depends on the first token of the context"),
        (SeesHalfTheContext, {"form": "CC"}, "reach", "no output depends on the last token of the context"),
        (IgnoresTheQuery, {"form": "NC"}, "reach", "the last output does not depend on its query"),
        (LeaksLength, {}, "future", "the first 1 tokens alone give another output than before 36 more"),
        (CountsQueries, {"form": "CC"}, "future", "the output of the first 1 tokens changes"),
        (ForgetsTheSum, {"normalised": True}, "constant", "equal tokens do not give equal outputs"),
        (ForgetsTheSum, {"stateful": True}, "incremental", "pieces of 1 tokens differ from all at once"),
        (MixesTheBatch, {}, "batch", "row 0 differs from the same row alone"),
        (ReadsPadding, {"padding": True}, "padding", "what stands in padding in front changes the output"),
        (
            CountsPadding,
            {"padding": True, "form": "NS"},
            "padding",
            "padding behind differs from cutting",
        ),
        (StartsBehindPadding, {"padding": True}, "padding", "padding in front differs from cutting it off"),
        (ForgetsItsState, {"stateful": True}, "incremental", "pieces of 3 tokens differ from all at once"),
        (ForgetsItsState, {"stateful": True}, "incremental", r"the state stands at \[1, 1\] after 37 tokens"),
        (ForgetsBeyondWindows, {"stateful": True}, "incremental", "pieces of 19 tokens differ from all at"),
        (ChangesItsState, {"stateful": True}, "incremental", "going on twice from one state differs"),
        (
            OneStateForAll,
            {"stateful": True},
            "incremental",
            "rows taken from a state by index_select are not",
        ),
        (EvenOnly, {}, "shape", "RuntimeError: .*"),
        (Shortens, {}, "shape", r"1 tokens: the output has shape \(2, 0, 8\), not \(2, 1, 8\)"),
        (NoNumber, {}, "shape", "1 tokens: the output is not finite"),
        (Random, {}, "repeats", "a second run gives another output"),
        (NoGradient, {}, "gradient", "GradcheckError: .*"),
        (NoGradientOfChunks, {}, "gradient", "GradcheckError: .*"),
        (Largest, {}, "gradient", "where all tokens are equal: GradcheckError: .*"),
        (Right, {"form": "NS", "permutes": True}, "permutes", "permuted tokens do not give the permuted"),
        (Broken, {}, "made", "RuntimeError: no weights for this one"),
    ],
)
def test_what_is_wrong_is_found(kind, options, check, text):
    import re

    findings = found_in(kind, **options)
    assert any(one.check == check and re.match(text, one.text, re.DOTALL) for one in findings), findings


def test_every_check_has_a_mixer_that_it_catches():
    kinds = [mark for mark in test_what_is_wrong_is_found.pytestmark if mark.name == "parametrize"]
    caught = {check for _, _, check, _ in kinds[0].args[1]}
    assert caught >= set(CHECKS)


def test_a_missing_form_needs_a_reason():
    entry = MixerEntry("silent", Right, frozenset({"CS"}))
    (finding,) = check_mixer(entry, checks=("shape",))
    assert str(finding) == "NS, NC, CC forms: missing, and why_not does not say why"
    assert not check_mixer(dataclasses.replace(entry, why_not="so"), checks=("shape",))


def test_a_class_without_an_entry_is_checked_for_what_it_is_taken_for():
    entry = mixer_entry("contracts.wrong_mixers:OfTheUser")
    assert entry.stateful and entry.local and entry.differentiable == "almost"
    assert not check_mixer(entry)
    with pytest.raises(ValueError, match="no NS form, only CS .a class without an entry is taken to be"):
        entry.build(Setting(8, 2, causal=False))
    (finding,) = check_mixer(mixer_entry("contracts.wrong_mixers:OfTheUserAlone"))
    assert str(finding).startswith("CS reach: the last output does not depend on any earlier token")


def test_checks_draw_nothing_from_the_callers_generator():
    before = torch.get_rng_state()
    found_in(Right)
    assert torch.equal(before, torch.get_rng_state())


def test_errors():
    with pytest.raises(ValueError, match="forms must be of NS, CS, NC, CC, got XS"):
        check_mixer(MIXERS["softmax"], forms=("XS",))
    with pytest.raises(ValueError, match="checks must be of shape, .*, constant, got speed"):
        check_mixer(MIXERS["softmax"], checks=("speed",))
