"""Every registered mixer keeps what it declares, and the checks find mixers that do not."""

import dataclasses

import pytest
import torch
from torch import nn

from attlas.layers import MIXERS, MixerEntry, Setting, check_mixer
from attlas.layers.contract import CHECKS
from attlas.layers.mixers import FORMS
from attlas.scan.state import State

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


class Wrong(nn.Module):
    """Running means of a linear map, spoilt in one way each."""

    def __init__(self, setting):
        super().__init__()
        self.map = nn.Linear(setting.width, setting.width)
        self.cross = setting.cross

    def mean(self, x, valid):
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x.cumsum(1) / count

    def forward(self, x, context=None, *, valid=None):
        if self.cross:
            return x * self.map(context).mean(1, keepdim=True)
        return self.mean(self.map(x), valid)

    def start(self, batch):
        nothing = self.map.weight.new_zeros(batch, self.map.out_features)
        return State({"sum": nothing}, torch.zeros(batch, dtype=torch.int64))

    def advance(self, x, state):
        total = self.map(x).cumsum(1) + state["sum"][:, None]
        count = state.position[:, None] + torch.arange(1, x.shape[1] + 1)
        after = State({"sum": total[:, -1]}, state.position + x.shape[1])
        return total / count[..., None], after


class Right(Wrong):
    """The same, not spoilt: what is found in the others is their own."""


class Leaks(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) + 1e-4 * x.flip(1).cumsum(1).flip(1)


class LeaksLength(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) * (1 + x.shape[1])


class ForgetsTheSum(Wrong):
    """Every token divides by the count, and only its own is there: CAB's causal ABC."""

    def mean(self, x, valid):
        return x / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


class MixesTheBatch(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) - 0.01 * x.mean(0)


class ReadsPadding(Wrong):
    def mean(self, x, valid):
        mean = super().mean(x, valid)
        return mean if valid is None else mean * valid[..., None]


class CountsPadding(Wrong):
    """Content of padding is left out, but it stays in the mean's count."""

    def mean(self, x, valid):
        return (x if valid is None else x * valid[..., None]).mean(1, keepdim=True).expand_as(x)


class ForgetsItsState(Wrong):
    def advance(self, x, state):
        return super().advance(x, self.start(len(x)))


class ChangesItsState(Wrong):
    def advance(self, x, state):
        out, after = super().advance(x, state)
        state["sum"].add_(1.0)
        return out, after


class OneStateForAll(Wrong):
    """A state of the first row serves the whole batch."""

    def advance(self, x, state):
        return super().advance(x, State({"sum": state["sum"][:1].expand_as(state["sum"])}, state.position))


class EvenOnly(Wrong):
    def mean(self, x, valid):
        return x.unflatten(1, (-1, 2)).flatten(1, 2)


class Shortens(Wrong):
    def mean(self, x, valid):
        return x[:, : x.shape[1] // 2 * 2]


class NoNumber(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) / (x.shape[1] - 1)


class Random(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) + torch.rand(())


class NoGradient(Wrong):
    def mean(self, x, valid):
        return super().mean(x + x.detach(), valid)


class CountsQueries(Wrong):
    def forward(self, x, context=None, *, valid=None):
        return x.cumsum(1).flip(1).cumsum(1) * context.mean(1, keepdim=True)


class Broken(Wrong):
    def __init__(self, setting):
        raise RuntimeError("no weights for this one")


def found_in(
    kind, form="CS", *, padding=False, stateful=False, permutes=False, normalised=False, checks=None
):
    entry = MixerEntry(
        kind.__name__,
        kind,
        frozenset({form}),
        stateful,
        padding,
        permutes=permutes,
        why_not="made for a test",
    )
    return check_mixer(entry, normalised=normalised, checks=checks)


def test_what_is_right_has_no_findings():
    assert not found_in(Right, stateful=True, normalised=True)
    assert not found_in(Right, "NC", normalised=False) and not found_in(Right, "CC")


@pytest.mark.parametrize(
    ("kind", "options", "check", "text"),
    [
        (Leaks, {}, "future", "the output of the first 1 tokens changes with the 12 after them"),
        (LeaksLength, {}, "future", "the first 1 tokens alone give another output than before 12 more"),
        (CountsQueries, {"form": "CC"}, "future", "the output of the first 1 tokens changes"),
        (ForgetsTheSum, {"normalised": True}, "constant", "equal tokens do not give equal outputs"),
        (ForgetsTheSum, {"stateful": True}, "incremental", "pieces of 1 tokens differ from all at once"),
        (MixesTheBatch, {}, "batch", "row 0 differs from the same row alone"),
        (ReadsPadding, {"padding": True}, "padding", "what stands in padding in front changes the output"),
        (CountsPadding, {"padding": True, "form": "NS"}, "padding", "padding behind the end differs from"),
        (ForgetsItsState, {"stateful": True}, "incremental", "pieces of 3 tokens differ from all at once"),
        (ForgetsItsState, {"stateful": True}, "incremental", r"the state stands at \[1, 1\] after 13 tokens"),
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


def test_checks_draw_nothing_from_the_callers_generator():
    before = torch.get_rng_state()
    found_in(Right)
    assert torch.equal(before, torch.get_rng_state())


def test_errors():
    with pytest.raises(ValueError, match="forms must be of NS, CS, NC, CC, got XS"):
        check_mixer(MIXERS["softmax"], forms=("XS",))
    with pytest.raises(ValueError, match="checks must be of shape, .*, constant, got speed"):
        check_mixer(MIXERS["softmax"], checks=("speed",))
