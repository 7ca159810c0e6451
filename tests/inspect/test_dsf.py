"""Mixers as systems: the module's output from its transfer matrix, its memory, the table of the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.inspect import (
    Realised,
    consequences,
    describe_mixer,
    from_mixer,
    from_scan,
    inspect_dsf,
    jacobian_kernel,
    realisations,
    realises,
    state_size,
)
from attlas.inspect.from_mixer import _MAKERS
from attlas.layers import (
    MIXERS,
    ABCAttention,
    BaseConv,
    CosformerAttention,
    LightningAttention,
    LinearAttention,
    Mamba,
    SelfAttention,
    Setting,
    ShortConv,
    TransNormerMixer,
    mixer_entry,
)
from attlas.pattern import causal
from attlas.scan import Identity, State, Taylor, elu1, scan

n, C, H = 10, 8, 2


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def draw(generator):
    def one(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return one


def realised(name):
    torch.manual_seed(3)
    return mixer_entry(name).build(Setting(C, H, length=2 * n)).double()


KNOWN = (
    *("softmax", "window", "linear", "based_linear", "normalised_linear", "aaren", "mamba", "qlstm"),
    *("qlstm_reversed", "lightning", "transnormer", "cosformer", "abc", "base_conv", "base_conv_long"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_a_mixer_is_its_system(name, draw):
    mixer, x = realised(name), draw(2, n, C)
    found, exact = from_mixer(mixer, x), mixer(x)
    same(found.run(), exact)
    same(torch.einsum("bijed,bjd->bie", found.system.transfer(), found.inputs), exact)


SCANS = {
    "plain": {},
    "elu + 1": {"kernel": elu1()},
    "divided": {"kernel": elu1(), "normalise": True},
    "divided, eps": {"kernel": elu1(), "normalise": True, "eps": 0.3},
    "Taylor": {"kernel": Taylor(), "normalise": True},
    "decay per head": {"log_decay": (H,)},
    "decay": {"log_decay": (2, H, n)},
    "decay per channel": {"log_decay": (2, H, n, 3), "kernel": Identity()},
    "gates": {"log_gate": (2, H, n), "log_decay": (2, H, n)},
    "gates, divided": {"log_gate": (2, H, n), "log_decay": (2, H, n), "kernel": elu1(), "normalise": True},
}


@pytest.mark.parametrize("given", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("shared", [1, H])
def test_every_scan_is_a_system(given, shared, draw):
    q, k, v = draw(2, H, n, 3), draw(2, shared, n, 3), draw(2, H, n, 4)
    given = {
        name: (-draw(*value).abs() if name == "log_decay" else 400 * draw(*value))
        if isinstance(value, tuple)
        else value
        for name, value in given.items()
    }
    if "log_gate" in given and not given.get("normalise"):
        given["log_gate"] = given["log_gate"] / 400
    system = from_scan(q, k, 4, **given)
    out, weights = scan(q, k, v, **given, return_weights=True, backend="reference")
    same(system.run(v), out)
    one = torch.eye(4, dtype=torch.float64)
    same(system.transfer(), weights[..., None, None] * one)


def test_grouped_queries_with_biases_are_a_system(draw):
    mixer = SelfAttention(C, 4, kv_heads=2, pattern=causal(), bias=True).double()
    x = draw(2, n, C)
    same(from_mixer(mixer, x).run(), mixer(x))
    assert from_mixer(mixer, x).system.size == 4 * n * C // 4


def test_mamba_without_its_projection_is_a_system_too(draw):
    mixer, x = Mamba(C, states=3, out=False).double(), draw(2, n, C)
    same(from_mixer(mixer, x).run(), mixer(x))


def test_a_class_of_yours_can_be_registered(draw):
    class Halved(LinearAttention):
        pass

    with pytest.raises(
        TypeError, match="the system of Halved is not written down; known: ABCAttention, Aaren, BaseConv,"
    ):
        from_mixer(Halved(C, H).double(), draw(1, n, C))
    try:

        @realises(Halved)
        def make(mixer, x) -> Realised:
            return _MAKERS[LinearAttention](mixer, x)

        mixer, x = Halved(C, H).double(), draw(1, n, C)
        same(from_mixer(mixer, x).run(), mixer(x))
    finally:
        del _MAKERS[Halved]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: LightningAttention(C, H, slopes=(0.0, 0.7), bias=True), id="lightning, biases"),
        pytest.param(lambda: TransNormerMixer(C, H, hidden=12, lrpe=True), id="transnormer, positions"),
        pytest.param(lambda: CosformerAttention(C, H, causal=True, longest=n, bias=False), id="cosformer"),
        pytest.param(lambda: ABCAttention(C, H, slots=3, causal=True), id="abc, 3 slots"),
        pytest.param(lambda: BaseConv(C, ShortConv(C, 2 * n, bias=False)), id="base_conv, many taps"),
    ],
)
def test_settings_of_a_mixer_are_in_its_system(make, draw):
    torch.manual_seed(3)
    mixer, x = make().double(), draw(2, n, C)
    with torch.no_grad():
        for part in mixer.parameters():
            part.add_(0.3 * draw(*part.shape))  # norms and biases away from 1 and 0
    found = from_mixer(mixer, x)
    same(found.run(), mixer(x))
    same(torch.einsum("bijed,bjd->bie", found.system.transfer(), found.inputs), mixer(x))


def test_sizes_of_the_states(draw):
    x, sizes = draw(1, n, C), {"lightning": 4 * C, "transnormer": 8 * C, "cosformer": 8 * C, "abc": 16 * C}
    sizes |= {"base_conv": 3 * C, "base_conv_long": n * C}
    assert {name: from_mixer(realised(name), x).system.size for name in sizes} == sizes


@pytest.mark.parametrize(
    "mixer",
    [LinearAttention(C, H, causal=False), CosformerAttention(C, H), ABCAttention(C, H)],
    ids=lambda mixer: type(mixer).__name__,
)
def test_a_mixer_that_sees_later_tokens_is_refused(mixer, draw):
    with pytest.raises(ValueError, match=f"{type(mixer).__name__} must be causal: .* later tokens"):
        from_mixer(mixer.double(), draw(1, n, C))


def test_what_is_not_linear_is_refused(draw):
    with pytest.raises(TypeError, match="the convolution of a BaseConv must be without activation"):
        from_mixer(BaseConv(C, ShortConv(C, 3, activation=torch.relu)).double(), draw(1, n, C))


def test_the_kernel_leaves_out_the_column_of_ones(draw):
    mixer, x = realised("linear"), draw(1, n, C)
    found = from_mixer(mixer, x)
    norms = found.system.transfer()[..., :-1].flatten(-2).norm(dim=-1)
    same(found.memory_kernel()[0, 2], norms[0].diagonal(-2).mean())


def test_the_jacobian_kernel_is_that_of_the_jacobian(draw):
    mixer, x = realised("linear"), draw(1, n, C)
    exact = torch.autograd.functional.jacobian(mixer, x)[0, :, :, 0]  # (i, e, j, d)
    rows = [9, 6]
    squares = exact.square().sum((1, 3))
    expected = torch.stack(
        [torch.stack([squares[i, i - lag] for i in rows if i >= lag]).mean() for lag in range(n)]
    ).sqrt()
    found = jacobian_kernel(mixer, x, rows, probes=1500)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=1e-6)


def test_what_a_window_does_not_see_is_not_remembered():
    row = describe_mixer(MIXERS["window"], 32)
    kernel = torch.tensor(row["jacobian"])
    assert kernel[:16].min() > 0 and not kernel[16:].any()
    assert row["state"]["constant"] and not torch.tensor(row["frozen"])[16:].any()


def test_a_kept_sequence_grows_and_a_state_does_not():
    softmax, linear = (describe_mixer(MIXERS[name], 32)["state"] for name in ("softmax", "linear"))
    assert softmax["lengths"] == [8, 32, 128]
    # Keys and values of every token, width 32 each, in float32.
    assert softmax["bytes"] == [4 * 64 * length for length in (8, 32, 128)] and not softmax["constant"]
    assert linear["numbers"] == [2 * 16 * 17] * 3 and linear["constant"]


@pytest.mark.parametrize("name", KNOWN)
def test_the_described_system_is_exact(name):
    row = describe_mixer(MIXERS[name], 16)
    assert row["error"] < 1e-10 and len(row["frozen"]) == len(row["jacobian"]) == 16


def test_a_mixer_that_runs_both_ways_has_no_system(monkeypatch):
    entry = MIXERS["linear"]
    monkeypatch.setitem(
        MIXERS,
        "sees_all",
        type(entry)("sees_all", entry.make, frozenset({"NS"}), why_not="it mixes all at once"),
    )
    row = inspect_dsf(["sees_all"], length=16)["mixers"][0]
    assert row["absent"] == "it mixes all at once" and row["state"] is None and row["jacobian"] == []


def test_consequences_hold_and_can_be_written():
    checks = consequences()
    assert len(checks) == 5 and all(check.holds for check in checks), checks
    identities = [check.name for check in checks if check.says.startswith("An identity: ")]
    assert identities == ["coupled normalisation", "Mamba's transition is a reversed sigmoid"]
    assert len(json.dumps([vars(check) for check in checks])) > 500


def test_a_decay_would_be_found(monkeypatch):
    """The checks fail for systems that do fade, or that are exact at a finite order."""
    plain = realisations.linear_attention

    def fading(phi, psi, value, **given):
        return plain(phi, psi, value, **({"log_decay": -0.01 * psi.new_ones(psi.shape[:-1])} | given))

    with monkeypatch.context() as patched:
        patched.setattr(realisations, "linear_attention", fading)
        assert not {check.name: check.holds for check in consequences()}["without a normaliser nothing fades"]

    def exact(q, k, value, order):
        weights = (q @ k.mT / q.shape[1] ** 0.5).exp().tril()
        return realisations.held_attention(weights / weights.sum(-1, keepdim=True), value)

    monkeypatch.setattr(realisations, "softmax_truncated", exact)
    assert not {check.name: check.holds for check in consequences()}["softmax needs an infinite state"]


def test_the_result_is_written(tmp_path):
    said: list[str] = []
    result = inspect_dsf(["linear", "window"], length=16, out=tmp_path, command="attlas x", step=said.append)
    assert said == ["linear", "window"]
    assert json.loads((tmp_path / "dsf.json").read_text()) == json.loads(json.dumps(result))
    assert result["schema"] == "attlas.dsf" and result["command"] == "attlas x"


class Mean(torch.nn.Linear):
    def __init__(self, width, heads):
        super().__init__(width, width)

    def forward(self, x):
        return super().forward(x).mean(1, keepdim=True).expand_as(x)


class Narrow(Mean):
    def forward(self, x):
        return x[..., :1]


def test_classes_that_break_the_contract_are_refused():
    with pytest.raises(UsageError, match=r"Mean is not causal: its output \d+ changes with later inputs"):
        describe_mixer(mixer_entry(f"{__name__}:Mean"), 32)
    with pytest.raises(UsageError, match=r"Narrow must keep the shape .*\(64, 32, 32\) became \(64, 32, 1\)"):
        describe_mixer(mixer_entry(f"{__name__}:Narrow"), 32)


class Forgetful(torch.nn.Module):
    """No parameters; its output is a running sum, which is its state."""

    def __init__(self, width, heads):
        super().__init__()

    def forward(self, x):
        return x.cumsum(1)

    def start(self, batch):
        return State({"sum": torch.zeros(batch, 1, 32)}, torch.zeros(batch, dtype=torch.int64))

    def advance(self, x, state):
        y = state["sum"] + x.cumsum(1)
        return y, State({"sum": y[:, -1:]}, state.position + x.shape[1])


class Unmade(Mean):
    def __init__(self, width, heads):
        raise KeyError("size")


class Broken(Mean):
    def forward(self, x):
        return {}["gate"]


class Stateless(Forgetful):
    def advance(self, x, state):
        return x, x


class Constant(Forgetful):
    def forward(self, x):
        return torch.zeros_like(x)


def test_a_mixer_without_parameters_has_a_state():
    row = describe_mixer(mixer_entry(f"{__name__}:Forgetful"), 32)
    assert row["state"]["numbers"] == [32] * 3 and row["parameters"] == 0
    assert row["jacobian"] == pytest.approx([32**0.5] * 32, rel=0.3)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("Unmade", "Unmade: KeyError: 'size'"),
        ("Broken", "Broken: KeyError: 'gate'"),
        ("Stateless", r"Stateless.advance must give \(output, State\), got Tensor"),
        ("Constant", "Constant: .*does not depend on its input"),
    ],
)
def test_a_class_that_fails_is_the_users_error(kind, text):
    with pytest.raises(UsageError, match=text):
        inspect_dsf([f"{__name__}:{kind}"], length=16)


def test_a_module_that_fails_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "fails_at_import.py").write_text("{}['weights']")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="'fails_at_import:A' cannot be imported: KeyError: 'weights'"):
        inspect_dsf(["fails_at_import:A"], length=16)


def test_a_fault_of_the_library_is_not_the_users(monkeypatch):
    def make(setting):
        raise KeyError("weights")

    monkeypatch.setitem(MIXERS, "linear", replace(MIXERS["linear"], make=make))
    with pytest.raises(KeyError, match="weights"):
        inspect_dsf(["linear"], length=16)


def test_errors(draw):
    with pytest.raises(UsageError, match=r"length must lie in 16 .. 256, got 8"):
        inspect_dsf(["linear"], length=8)
    with pytest.raises(UsageError, match="mixer must be one of .*linear.*got 'lineal'"):
        inspect_dsf(["lineal"])
    with pytest.raises(UsageError, match="mixer 'nowhere:Mixer' cannot be imported"):
        inspect_dsf(["nowhere:Mixer"])
    with pytest.raises(TypeError, match="Linear has no start and advance: it keeps no state"):
        state_size(torch.nn.Linear(2, 2), 2, (1, 2))
    with pytest.raises(ValueError, match=r"lengths must be two or more rising numbers above 0, got \[4, 4\]"):
        state_size(realised("linear"), C, (4, 4))
    with pytest.raises(ValueError, match=r"rows must lie in 0 .. 9 and probes be at least 1, got \[10\], 8"):
        jacobian_kernel(realised("linear"), draw(1, n, C), [10])
