"""The selective scan: every form against the recurrence in float64 and against transformers' own."""

import pytest
import torch
from torch import Tensor

from attend.memory import allocations
from attlas.attend import counting
from attlas.scan import State, selective_chunk, selective_kernel, selective_scan

FORMS = ("recurrent", "chunk", "fused")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def inputs(
    length: int, channels: int = 5, states: int = 3, batch: int = 2, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    shapes = {
        "u": (batch, length, channels), "delta": (batch, length, channels), "A": (channels, states),
        "B": (batch, length, states), "C": (batch, length, states), "D": (channels,),
        "z": (batch, length, channels), "delta_bias": (channels,),
    }  # fmt: skip
    made = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    made["A"] = -made["A"].exp()
    return {name: one.to(dtype).requires_grad_() for name, one in made.items()}


def by_hand(given: dict[str, Tensor], valid: Tensor, reset: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, number by number of the batch and of time, in float64."""
    one = {name: tensor.double() for name, tensor in given.items()}
    delta = torch.nn.functional.softplus(one["delta"] + one["delta_bias"])
    batch, length, channels = delta.shape
    rows, last = [], []
    for b in range(batch):
        h, row = hidden[b].double(), []
        for t in range(length):
            if reset[b, t]:
                h = torch.zeros_like(h)
            if not valid[b, t]:
                row.append(torch.zeros(channels, dtype=torch.float64))
                continue
            grown = torch.exp(delta[b, t][:, None] * one["A"])
            h = grown * h + (delta[b, t] * one["u"][b, t])[:, None] * one["B"][b, t]
            y = h @ one["C"][b, t] + one["D"] * one["u"][b, t]
            row.append(y * one["z"][b, t] * torch.sigmoid(one["z"][b, t]))
        rows.append(torch.stack(row))
        last.append(h)
    return torch.stack(rows), torch.stack(last)


def marks(length: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    valid, reset = torch.rand(batch, length) < 0.8, torch.rand(batch, length) < 0.1
    return valid, reset


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 63, 130])
def test_it_is_the_recurrence_in_value_and_gradient(form, length):
    given, (valid, reset) = inputs(length), marks(length)
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    leaves = [*given.values(), hidden]

    def both(y: Tensor, last: Tensor) -> list[Tensor]:
        return [y, last, *torch.autograd.grad(y.sin().sum() + (last * last).sum(), leaves)]

    state = State({"hidden": hidden}, torch.tensor([2, 4]))
    y, after = selective_scan(**given, valid=valid, reset=reset, state=state, return_state=True, backend=form)
    assert after.position.tolist() == (valid.sum(1) + torch.tensor([2, 4])).tolist()
    for one, other in zip(both(y, after["hidden"]), both(*by_hand(given, valid, reset, hidden)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    given = inputs(11, channels=2, states=2, batch=1)
    hidden = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    position = torch.zeros(1, dtype=torch.int64)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(NAMES, tensors[:-1], strict=True))
        y, state = selective_scan(
            **named, state=State({"hidden": tensors[-1]}, position), return_state=True, backend=form
        )
        return y, state["hidden"]

    assert torch.autograd.gradcheck(run, (*given.values(), hidden), eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "states"), [(1, 1), (19, 16)])
def test_float32_and_bfloat16_keep_a_float32_state(form, channels, states):
    given = {name: one.detach() for name, one in inputs(200, channels, states).items()}
    everything = torch.ones(2, 200, dtype=torch.bool)
    nothing = torch.zeros(2, channels, states)
    for dtype, rtol, atol in ((torch.float32, 1e-4, 1e-4), (torch.bfloat16, 1.6e-2, 2e-2)):
        narrow = {name: one.to(dtype) for name, one in given.items()}
        y, state = selective_scan(**narrow, return_state=True, backend=form)
        wanted, last = by_hand(narrow, everything, ~everything, nothing)
        assert y.dtype == dtype and state["hidden"].dtype == torch.float32
        torch.testing.assert_close(y.double(), wanted, rtol=rtol, atol=atol * float(wanted.abs().max()))
        torch.testing.assert_close(state["hidden"].double(), last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["chunk", "fused"])
def test_gradients_in_float32(form):
    exact = inputs(150, 19, 4)
    narrow = {name: one.detach().float().requires_grad_() for name, one in exact.items()}

    def gradients(given: dict[str, Tensor], form: str) -> list[Tensor]:
        y, state = selective_scan(**given, return_state=True, backend=form)
        return list(torch.autograd.grad(y.sin().sum() + state["hidden"].sum(), list(given.values())))

    for one, other in zip(gradients(narrow, form), gradients(exact, "recurrent"), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_it_is_the_selective_scan_of_transformers():
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    given = {name: one.detach().float() for name, one in inputs(37, 8, 16).items()}

    def turned(name: str) -> Tensor:
        return given[name].transpose(1, 2)

    wanted, last = mamba.mamba_selective_scan(
        turned("u"), turned("delta"), given["A"], turned("B"), turned("C"), given["D"], turned("z"),
        given["delta_bias"], delta_softplus=True, return_last_state=True,
    )  # fmt: skip
    for form in FORMS:
        y, state = selective_scan(**given, return_state=True, backend=form)
        torch.testing.assert_close(y, wanted.transpose(1, 2), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state["hidden"], last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_give_what_the_whole_gives(form):
    given = {name: one.detach() for name, one in inputs(131).items()}
    whole, last = selective_scan(**given, return_state=True, backend=form)
    state, found, begin = None, [], 0
    for size in (1, 64, 3, 63):
        part = {name: one[:, begin : begin + size] if one.dim() == 3 else one for name, one in given.items()}
        y, state = selective_scan(**part, state=state, return_state=True, backend=form)
        found.append(y)
        begin += size
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["hidden"], last["hidden"], rtol=1e-12, atol=1e-12)
    assert state.position.tolist() == [131, 131]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_read_at_a_step_that_is_not_valid(form):
    given, (valid, _) = inputs(70), marks(70)
    broken = {
        name: one.detach().masked_fill(~valid[..., None], float("nan")) if one.dim() == 3 else one.detach()
        for name, one in given.items()
    }
    for one in broken.values():
        one.requires_grad_()
    y = selective_scan(**broken, valid=valid, backend=form)
    torch.testing.assert_close(y, selective_scan(**given, valid=valid, backend=form))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(broken.values())))
    assert bool((y[~valid] == 0).all())


def test_the_compiled_form_does_not_depend_on_threads():
    given = {
        name: one.detach().float().requires_grad_() for name, one in inputs(700, 40, 16, batch=1).items()
    }
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = selective_scan(**given, backend="fused")
            found.append([y, *torch.autograd.grad(y.square().sum(), list(given.values()))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["chunk", "fused"])
def test_memory_is_linear_in_the_steps(form):
    """No tensor of steps x channels x states: the states of every 64th step are the largest."""
    given = {name: one.float().detach().requires_grad_() for name, one in inputs(1024, 8, 32).items()}

    def run() -> None:
        torch.autograd.grad(selective_scan(**given, backend=form).sum(), list(given.values()))

    most = 2 * 1024 * 32  # numbers of B
    assert allocations(run).largest <= most
    # The operators hide what they allocate inside.
    how = {"chunk": selective_chunk, "fused": selective_kernel}[form]
    u, delta, rate, write, read, *_ = (one.detach() for one in given.values())
    tensors = (u, delta.abs(), rate.mT, write, read, None)
    start = torch.zeros(2, 32, 8)

    def inside() -> None:
        states = how.forward(*tensors, start, True)[2]
        how.backward(u, start, *tensors, states)

    assert allocations(inside).largest <= 2 * most  # gradients of B and C
    assert how.forward(*tensors, start, False)[2].numel() == 0


@pytest.mark.parametrize("form", ["chunk", "fused"])
def test_a_second_derivative_is_refused(form):
    given = inputs(9)
    first = torch.autograd.grad(
        selective_scan(**given, backend=form).square().sum(), given["u"], create_graph=True
    )[0]
    with pytest.raises(RuntimeError, match="selective_scan is differentiable once.*'recurrent'"):
        first.sum().backward()
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="no forward-mode derivative; use backend='recurrent'"),
    ):
        dual = torch.autograd.forward_ad.make_dual(given["u"].detach(), torch.ones_like(given["u"]))
        selective_scan(**(given | {"u": dual}), backend=form)


@pytest.mark.parametrize("form", ["chunk", "fused"])
@pytest.mark.parametrize("length", [0, 9])
def test_operators_say_what_they_do(form, length):
    given = inputs(length)
    tensors = (*list(given.values())[:2], given["A"].mT, given["B"], given["C"], None)
    start = torch.zeros(2, 5, 3, dtype=torch.float64).mT.requires_grad_()
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.attlas.selective.default, (*tensors, start, form, True), test_utils=utilities
    )
    states = torch.zeros(2, -(-length // 64), 3, 5, dtype=torch.float64)
    backward = (
        given["u"].detach(),
        start.detach(),
        *(one if one is None else one.detach() for one in tensors),
    )
    torch.library.opcheck(
        torch.ops.attlas.selective_backward.default, (*backward, states, form), test_utils=utilities
    )


def test_the_loop_has_second_derivatives():
    given = inputs(5, channels=1, states=2, batch=1)
    assert torch.autograd.gradgradcheck(
        lambda u, delta: selective_scan(**(given | {"u": u, "delta": delta}), backend="reference"),
        (given["u"], given["delta"]),
    )


def test_no_steps_and_no_options():
    given = {name: one.detach() for name, one in inputs(0).items()}
    hidden = torch.randn(2, 5, 3, dtype=torch.float64)
    state = State({"hidden": hidden}, torch.zeros(2, dtype=torch.int64))
    for form in FORMS:
        y, after = selective_scan(**given, state=state, return_state=True, backend=form)
        assert y.shape == (2, 0, 5) and torch.equal(after["hidden"], hidden)
    one = {name: inputs(70)[name].detach() for name in NAMES[:5]}
    one["delta"] = one["delta"].abs()
    wanted = selective_scan(**one, softplus=False, backend="recurrent")
    for form in ("chunk", "fused", "auto"):
        torch.testing.assert_close(selective_scan(**one, softplus=False, backend=form), wanted)


def test_without_numba_chunks_take_over_and_it_is_told(monkeypatch):
    monkeypatch.setattr(selective_kernel, "missing", lambda: "numba is not installed")
    given = inputs(20)
    with counting() as heard:
        y = selective_scan(**given)
    assert heard.records() == [{"what": "selective_scan: fused", "why": "numba is not installed", "count": 1}]
    torch.testing.assert_close(y, selective_scan(**given, backend="chunk"))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"backend": "fast"}, "backend must be one of auto, reference, recurrent, chunk, fused, got 'fast'"),
        (
            {"B": torch.zeros(2, 7, 4)},
            r"B must be \(2, 7, 3\) for u \(2, 7, 5\) and 3 states, got \(2, 7, 4\)",
        ),
        ({"D": torch.zeros(4)}, r"D must be \(5,\) for u"),
        ({"valid": torch.ones(2, 6, dtype=torch.bool)}, r"valid must be \(2, 7\)"),
        (
            {"state": State({"hidden": torch.zeros(2, 3, 5)}, torch.zeros(2, dtype=torch.int64))},
            r"state must be \(2, 5, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(changed, text):
    given: dict = {name: one.detach() for name, one in inputs(7).items()}
    with pytest.raises(ValueError, match=text):
        selective_scan(**(given | changed))
    with pytest.raises(TypeError, match=r"reset must be bool \(batch, steps\), got torch.float32"):
        selective_scan(**given, reset=torch.zeros(2, 7))


def test_a_compiled_function_keeps_the_operators_whole(isolated_python):
    printed = isolated_python(
        "import torch",
        "from attlas.scan import selective_scan",
        "u, delta, read, write = torch.rand(4, 1, 40, 4)",
        "rate = -torch.rand(4, 4)",
        "def run(u, delta): return selective_scan(u, delta, rate, write, read)",
        "compiled = torch.compile(run, fullgraph=True, backend='aot_eager')",
        "print(torch.allclose(compiled(u, delta), run(u, delta)))",
    )
    assert printed == "True"
