"""`scan`: all backends against the dense form, in value and gradient, and what padding and packing mean."""

import itertools

import pytest
import torch

from attlas.scan import LRPE, Feature, Identity, State, Taylor, elu1, scan

BATCH, HEADS, WIDTH, VALUE = 2, 2, 4, 3
KERNELS = {"identity": Identity(), "elu1": elu1(), "taylor": Taylor()}
DECAYS = ("none", "head", "token", "forgetting", "channel")
CASES = [
    case
    for case in itertools.product(KERNELS, DECAYS, (False, True), (False, True))
    if case[1] != "channel" or case[0] == "identity"
]


def _inputs(kernel, decay, gated, normalise, length, *, flags=True, carried=True, seed=0):
    """Leaves by name, and the arguments of a scan that uses them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = draw(BATCH, 1 if length == 5 else HEADS, length, WIDTH), draw(BATCH, HEADS, length, WIDTH)
    if normalise:
        query, key = query.abs() + 0.1, key.abs() + 0.1
    leaves = {"q": query, "k": key, "v": draw(BATCH, HEADS, length, VALUE)}
    if decay == "head":
        leaves["log_decay"] = -draw(HEADS).abs()
    elif decay == "channel":
        leaves["log_decay"] = -draw(BATCH, HEADS, length, WIDTH).abs()
    elif decay != "none":
        leaves["log_decay"] = -draw(BATCH, HEADS, length).abs()
        if decay == "forgetting":
            leaves["log_decay"][0, 0, length // 2] = -torch.inf
    if gated:
        leaves["log_gate"] = 5 * draw(BATCH, HEADS, length)
        leaves["log_gate"][0, 1, 0] = -torch.inf
    given = {"kernel": KERNELS[kernel], "normalise": normalise}
    if flags:
        given["valid"] = torch.rand(BATCH, length, generator=generator) > 0.3
        given["reset"] = torch.rand(BATCH, length, generator=generator) > 0.8
    if carried:
        features = KERNELS[kernel].width(WIDTH)
        parts = {"sum": draw(BATCH, HEADS, features, VALUE)}
        if normalise:
            parts["weight"] = draw(BATCH, HEADS, features).abs() + 0.1
        if normalise and gated:
            parts["scale"] = draw(BATCH, HEADS)
        leaves |= {f"state {name}": part for name, part in parts.items() if name != "scale"}
        given["state"] = State(parts, torch.zeros(BATCH, dtype=torch.int64))
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves, given | {name: leaf for name, leaf in leaves.items() if "state" not in name}


def _measured(leaves, given, **how):
    """Outputs, the true sums of the state, and the gradients of a function of both."""
    out, state = scan(**given, return_state=True, **how)
    found = {"out": out}
    factor = state["scale"].detach().exp() if "scale" in state.parts else torch.ones(BATCH, HEADS)
    for name in ("sum", "weight"):
        if name in state.parts:
            part = state[name]
            found[name] = part * factor.reshape(*factor.shape, *[1] * (part.dim() - 2))
    generator = torch.Generator().manual_seed(1)
    total = (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
    total = total + sum(part.cos().sum() for name, part in found.items() if name != "out")
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"grad {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


@pytest.mark.parametrize(("kernel", "decay", "gated", "normalise"), CASES)
@pytest.mark.parametrize("length", [1, 5, 37])
def test_backends_agree_in_value_and_gradient(kernel, decay, gated, normalise, length):
    # Exponentials of gates up to e^15 stand in one sum: errors are relative to the largest term.
    leaves, given = _inputs(kernel, decay, gated, normalise, length)
    wanted = _measured(leaves, given, backend="reference")
    for how in ({"backend": "recurrent"}, {"backend": "chunk", "chunk": 8}):
        found = _measured(leaves, given, **how)
        for name, value in wanted.items():
            worst = (found[name] - value).abs().max() / (1 + value.abs().max())
            assert worst < 1e-8, f"{how}: {name} off by {worst:.1e}"


@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
def test_gradcheck(backend):
    leaves, given = _inputs("identity", "token", True, True, 7)
    given["log_gate"] = given["log_gate"].detach() * 0.2
    del leaves["log_gate"]
    names = [name for name in leaves if "state" not in name]

    def call(*tensors):
        out, state = scan(
            **given | dict(zip(names, tensors, strict=True)), return_state=True, backend=backend
        )
        return out, state["sum"]

    given["log_gate"] = given["log_gate"].masked_fill(given["log_gate"] == -torch.inf, 0.0)
    assert torch.autograd.gradcheck(call, tuple(leaves[name] for name in names), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("pieces", [1, 3, 16])
@pytest.mark.parametrize(("gated", "normalise", "decay"), [(False, False, "head"), (True, True, "token")])
def test_pieces_are_the_whole(pieces, gated, normalise, decay):
    _, given = _inputs("taylor", decay, gated, normalise, 45, flags=False, carried=False)
    whole = scan(**given)
    state, outs = None, []
    for start in range(0, 45, pieces):
        part = dict(given)
        for name in ("q", "k", "v", "log_gate", "log_decay"):
            if name in part and part[name].dim() > 2:
                part[name] = part[name][:, :, start : start + pieces]
        out, state = scan(**part, state=state, return_state=True, chunk=7)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole, atol=1e-10, rtol=1e-8)
    assert state.position.tolist() == [45, 45]


@pytest.mark.parametrize("backend", ["reference", "recurrent", "chunk"])
def test_padding_changes_nothing(backend):
    _, given = _inputs("identity", "token", True, True, 9, flags=False, carried=False)
    names = ("q", "k", "v", "log_decay", "log_gate")
    whole, state = scan(**given, return_state=True, backend=backend)
    places = torch.tensor([0, 2, 3, 6, 7, 8, 10, 12, 13])
    padded = {
        name: torch.full((*given[name].shape[:2], 15, *given[name].shape[3:]), -3.0, dtype=torch.float64)
        for name in names
    }
    for name in names:
        padded[name][:, :, places] = given[name].detach()
    valid = torch.zeros(BATCH, 15, dtype=torch.bool)
    valid[:, places] = True
    out, after = scan(**given | padded, valid=valid, return_state=True, backend=backend)
    torch.testing.assert_close(out[:, :, places], whole, atol=1e-10, rtol=1e-8)
    assert not out[:, :, [1, 4, 5, 9, 11, 14]].any()
    torch.testing.assert_close(after["sum"], state["sum"], atol=1e-10, rtol=1e-8)
    assert after.position.tolist() == [9, 9]


@pytest.mark.parametrize("backend", ["reference", "recurrent", "chunk"])
@pytest.mark.parametrize("how", ["segments", "reset"])
def test_a_sequence_that_begins_with_padding_is_alone(backend, how):
    _, given = _inputs("elu1", "token", True, True, 12, flags=False, carried=False)
    segments = torch.tensor([[0] * 5 + [1] * 7] * 2)
    valid = torch.ones(BATCH, 12, dtype=torch.bool)
    valid[:, 5] = False
    begins = (
        {"segments": segments} if how == "segments" else {"reset": segments.diff(prepend=segments[:, :1]) > 0}
    )
    packed = scan(**given, **begins, valid=valid, backend=backend)
    second = {
        name: value[:, :, 6:] if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    torch.testing.assert_close(packed[:, :, 6:], scan(**second, backend=backend), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("backend", ["reference", "recurrent", "chunk", "over all"])
def test_what_stands_in_padding_is_never_looked_at(backend):
    decay = "none" if backend == "over all" else "token"
    leaves, given = _inputs("elu1", decay, True, True, 12, flags=False, carried=False)
    valid = torch.ones(BATCH, 12, dtype=torch.bool)
    valid[0, 4:7] = False
    valid[1] = False
    spoilt = dict(given)
    for name in leaves:
        spoilt[name] = given[name].detach().clone()
        spoilt[name][:, :, 4:7][0] = torch.nan
        spoilt[name].requires_grad_()
    how = {"causal": False} if backend == "over all" else {"backend": backend}
    out = scan(**spoilt, valid=valid, **how)
    torch.testing.assert_close(out, scan(**given, valid=valid, **how))
    for grad in torch.autograd.grad(out.sin().sum(), [spoilt[name] for name in leaves]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", ["q", "k", "v", "log_decay"])
def test_expanded_tensors_are_as_any_other(name):
    _, given = _inputs("elu1", "token", False, True, 40, flags=False, carried=False)
    leaf = given[name].detach()[:, :, :1].expand_as(given[name])
    found = []
    for tensor in (leaf, leaf.clone()):
        tensor.requires_grad_()
        out = scan(**given | {name: tensor}, backend="chunk", chunk=8)
        found.append((out, *torch.autograd.grad(out.sin().sum(), tensor)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_features_that_learn_must_be_made_outside():
    _, given = _inputs("identity", "none", False, True, 20, flags=False, carried=False)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def learned(x):
        return (x * weight).exp()

    with pytest.raises(ValueError, match=r"hold tensors with gradients.*set inside=False"):
        scan(**given | {"kernel": Feature(learned, positive=True)}, backend="chunk")
    kernel = Feature(learned, positive=True, inside=False)
    grads = [
        torch.autograd.grad(scan(**given | {"kernel": kernel}, backend=backend).sin().sum(), weight)[0]
        for backend in ("reference", "chunk")
    ]
    torch.testing.assert_close(*grads)


def test_autocast_keeps_states_and_sums_in_float32():
    q, k, v = torch.randn(3, 1, 2, 100, 8)
    q.requires_grad_()
    wanted = scan(q, k, v, backend="chunk")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = scan(q, k, v, backend="chunk", return_state=True)
        out.sum().backward()
    assert state["sum"].dtype == torch.float32 and torch.equal(out, wanted)


def test_states_hold_no_more_memory_than_they_say():
    q, k, v = torch.randn(3, 1, 2, 1000, 16)
    _, state = scan(q, k, v, return_state=True, backend="chunk")
    assert state["sum"].untyped_storage().nbytes() == state.nbytes


def test_packed_sequences_do_not_mix():
    _, given = _inputs("elu1", "token", False, True, 20, flags=False, carried=False)
    segments = torch.tensor([[0] * 7 + [1] * 13, [4] * 20])
    packed = scan(**given, segments=segments, backend="chunk", chunk=8)
    first = {
        name: value[:1, :, :7] if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    second = {
        name: value[:1, :, 7:] if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    alone = torch.cat([scan(**first), scan(**second)], 2)
    torch.testing.assert_close(packed[:1], alone, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(packed[1:], scan(**given)[1:], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_over_all_keys(gated, normalise):
    leaves, given = _inputs("elu1", "none", gated, normalise, 21, carried=False)
    del given["reset"]
    wanted, weights = scan(**given, causal=False, backend="reference", return_weights=True)
    torch.testing.assert_close(weights @ given["v"], wanted)
    found = scan(**given, causal=False)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-8)
    used = [leaf for leaf in leaves.values()]
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), used),
        torch.autograd.grad(wanted.sin().sum(), used),
        strict=True,
    ):
        assert (one - other).abs().max() <= 1e-8 * (1 + other.abs().max())  # gates up to e^15 in one sum


def test_weights_are_the_definition():
    _, given = _inputs("taylor", "head", False, False, 6, flags=False, carried=False)
    out, weights = scan(**given, backend="reference", return_weights=True)
    query, key, decay = given["q"], given["k"], given["log_decay"]
    for i, j in itertools.product(range(6), range(6)):
        z = (query[:, :, i] * key[:, :, j]).sum(-1) / WIDTH**0.5
        wanted = (1 + z + z * z / 2) * (decay * (i - j)).exp() if j <= i else torch.zeros_like(z)
        torch.testing.assert_close(weights[:, :, i, j], wanted)
    torch.testing.assert_close(out, weights @ given["v"])


def test_features_are_the_pair():
    x, y = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    taylor = Taylor()
    at = torch.zeros(2, 1, dtype=torch.int64)
    wanted = taylor.features(x, at) @ taylor.features(y, at).transpose(-1, -2)
    torch.testing.assert_close(taylor.pair(x, y), wanted)
    assert taylor.features(x, at).shape[-1] == taylor.width(6) == 28


def test_positions_of_lrpe_are_relative_and_its_angles_learn():
    generator = torch.Generator().manual_seed(3)
    theta = torch.rand(HEADS, 1, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    q, k, v = torch.randn(3, 1, HEADS, 6, WIDTH, generator=generator, dtype=torch.float64)
    out, weights = scan(q, k, v, kernel=LRPE(theta), backend="reference", return_weights=True)
    distance = torch.arange(6)[:, None] - torch.arange(6)
    cosine = (distance[..., None] * theta[:, :, None]).cos()
    wanted = torch.einsum("bhid,bhjd,hijd->bhij", q, k, cosine[:, 0] if cosine.dim() == 5 else cosine).tril()
    torch.testing.assert_close(weights, wanted)
    (grad,) = torch.autograd.grad(out.sin().sum(), theta)
    chunked = scan(q, k, v, kernel=LRPE(theta), backend="chunk", chunk=4)
    (again,) = torch.autograd.grad(chunked.sin().sum(), theta)
    torch.testing.assert_close(again, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_decays_in_low_precision_stay_at_the_reference(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 3000, 8, generator=generator)
    decay = -torch.rand(1, 1, 3000, generator=generator) * torch.tensor([20.0])
    decay[:, :, ::3] = -1e-4
    exact = scan(q.double(), k.double(), v.double(), log_decay=decay.double(), backend="recurrent")
    rounded = scan(q.to(dtype), k.to(dtype), v.to(dtype), log_decay=decay, return_state=True, backend="chunk")
    out, state = rounded
    assert out.dtype == dtype and state["sum"].dtype == torch.float32
    limit = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}[dtype]
    assert (out - exact).abs().max() <= limit * exact.abs().max()


def test_a_huge_gate_neither_overflows_nor_hides_what_came_before():
    generator = torch.Generator().manual_seed(0)
    gate = torch.cat([torch.full((40,), -900.0), torch.full((40,), 900.0), torch.full((40,), -900.0)])
    v = torch.randn(1, 1, 120, 2, generator=generator)
    ones = torch.ones(1, 1, 120, 1)
    out = scan(ones, ones, v, log_gate=gate[None, None], normalise=True, chunk=16)
    for token in (0, 39, 60, 119):
        weights = gate[: token + 1].softmax(0)
        torch.testing.assert_close(out[0, 0, token], weights @ v[0, 0, : token + 1], atol=1e-5, rtol=1e-5)


def test_a_row_without_keys_is_zero():
    _, given = _inputs("elu1", "none", True, True, 6, flags=False, carried=False)
    given["log_gate"] = torch.full_like(given["log_gate"], -torch.inf)
    for backend in ("reference", "recurrent", "chunk"):
        assert not scan(**given, backend=backend).any()
    given["log_gate"][:, :, 3:] = 0.0
    assert scan(**given)[:, :, :3].abs().max() == 0 < scan(**given)[:, :, 3:].abs().min()


def test_a_gradient_of_a_gradient_is_refused():
    _, given = _inputs("identity", "none", False, False, 12, flags=False, carried=False)
    (grad,) = torch.autograd.grad(scan(**given, backend="chunk").sum(), given["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="scan: the backend 'chunk' is differentiable once"):
        grad.sum().backward()
    state = State(
        {"sum": torch.randn(BATCH, HEADS, WIDTH, VALUE).double().requires_grad_()}, torch.zeros(2).long()
    )
    _, after = scan(**given, state=state, return_state=True, backend="chunk")
    (grad,) = torch.autograd.grad(after["sum"].square().sum(), state["sum"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.square().sum().backward()


def test_states_can_be_chosen_and_counted():
    _, given = _inputs("taylor", "none", False, True, 5, flags=False, carried=False)
    _, state = scan(**given, return_state=True)
    assert state.nbytes == 8 * BATCH * HEADS * 15 * (VALUE + 1)
    twice = state.index_select(torch.tensor([1, 1, 0]))
    assert twice.batch == 3 and torch.equal(twice["sum"][0], state["sum"][1])
    assert state["sum"].requires_grad and not state.detach()["sum"].requires_grad
    with pytest.raises(KeyError, match="state part 'scale': no such part; it has sum, weight"):
        state["scale"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"log_decay": torch.ones(HEADS)}, "log_decay must be <= 0"),
        (
            {"log_decay": torch.zeros(3)},
            r"log_decay must be \(2,\), \(2, 2, 6\) or \(2, 2, 6, 4\), got \(3,\)",
        ),
        ({"log_decay": torch.zeros(2, 2, 6, 4), "kernel": elu1()}, "per key channel needs kernel=Identity"),
        ({"log_gate": torch.zeros(2, 2, 5)}, r"log_gate must be \(2, 2, 6\), got \(2, 2, 5\)"),
        ({"valid": torch.ones(2, 6)}, r"valid must be bool \(2, 6\), got torch.float32"),
        ({"segments": torch.zeros(2, 6)}, "segments must be integers"),
        ({"k": torch.zeros(2, 2, 6, 3)}, "q and k must have one width, got 4 and 3"),
        ({"k": torch.zeros(2, 3, 6, 4)}, r"k must be \(2, 2 or 1, 6, width\)"),
        ({"backend": "fast"}, "backend must be auto, reference, recurrent, chunk, got 'fast'"),
        ({"return_weights": True}, "return_weights needs backend='reference'"),
        ({"eps": 1e-6}, "eps must be >= 0, and belongs to normalise=True without log_gate"),
        ({"causal": False, "log_decay": torch.zeros(2)}, "causal=False sums over all keys"),
        ({"causal": False, "segments": torch.zeros(2, 6, dtype=torch.int64)}, "only in backend='reference'"),
        ({"causal": False, "reset": torch.zeros(2, 6, dtype=torch.bool)}, "only in backend='reference'"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_errors(change, text):
    q, k, v = torch.zeros(3, 2, 2, 6, 4)
    given = {"q": q, "k": k, "v": v} | change
    with pytest.raises(ValueError, match=text):
        scan(**given)


def test_a_state_of_another_kind_is_refused():
    q, k, v = torch.rand(3, 2, 2, 6, 4)
    _, state = scan(q, k, v, return_state=True)
    with pytest.raises(
        ValueError, match="this state holds sum; with these arguments it must hold sum, weight"
    ):
        scan(q, k, v, normalise=True, state=state)
    _, state = scan(q[:, :, :, :3], k[:, :, :, :3], v, return_state=True)
    with pytest.raises(ValueError, match=r"state sum must be \(2, 2, 4, 4\), got \(2, 2, 3, 4\)"):
        scan(q, k, v, state=state)
