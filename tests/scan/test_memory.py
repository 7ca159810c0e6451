"""`memory` against the rule written token by token, with gradients from torch.func.grad."""

from importlib import import_module
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from attlas.scan import MemoryRule, State, additive, memory, recall, scan, start_memory

B, H, N, D, V, HIDDEN = 2, 2, 11, 3, 4, 5
DOUBLE = torch.float64


def weights_of(depth, dtype=DOUBLE):
    widths = {1: [D, V], 2: [D, HIDDEN, V], 3: [D, HIDDEN, HIDDEN, V]}[depth]
    return tuple(torch.randn(H, *pair, dtype=dtype) / 2 for pair in pairwise(widths))


def inputs(dtype=DOUBLE, length=N):
    """q, k, v, alpha, eta, theta: unit keys, factors in the range where no memory diverges."""
    q, k = functional.normalize(torch.randn(2, B, H, length, D, dtype=dtype), dim=-1)
    v = torch.randn(B, H, length, V, dtype=dtype)
    alpha, eta, theta = torch.rand(3, B, H, length, dtype=dtype)
    return q, k, v, 0.4 * alpha, 0.8 * eta, 0.2 * theta


def applied(weights, x):
    for weight in weights[:-1]:
        x = functional.silu(x @ weight)
    return x @ weights[-1]


def inner_loss(weights, key, value):
    return ((applied(weights, key) - value) ** 2).sum()


def token_by_token(weights, q, k, v, alpha, eta, theta, chunk):
    """Titans' rule with frozen gradients, one row and head and token after the other."""
    rows = []
    for b in range(q.shape[0]):
        heads = []
        for h in range(H):
            now = [weight[h] for weight in weights]
            momentum, out = [torch.zeros_like(weight) for weight in now], []
            for t in range(q.shape[2]):
                if t % chunk == 0:
                    frozen = now
                slopes = torch.func.grad(inner_loss)(frozen, k[b, h, t], v[b, h, t])
                momentum = [
                    eta[b, h, t] * s - theta[b, h, t] * slope
                    for s, slope in zip(momentum, slopes, strict=True)
                ]
                now = [(1 - alpha[b, h, t]) * w + s for w, s in zip(now, momentum, strict=True)]
                out.append(applied(now, q[b, h, t]))
            heads.append(torch.stack(out))
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_rule_token_by_token_and_its_gradients(depth, chunk):
    weights = [x.requires_grad_() for x in weights_of(depth)]
    given = [x.requires_grad_() for x in inputs()]
    found = memory(MemoryRule(tuple(weights)), *given, chunk=chunk)
    expected = token_by_token(weights, *given, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    outer = torch.randn_like(found)
    everything = [*weights, *given]
    gradients = torch.autograd.grad(found, everything, outer)
    for mine, true in zip(gradients, torch.autograd.grad(expected, everything, outer), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-9)


def test_a_linear_memory_solves_many_blocks_of_the_sequential_rule(monkeypatch):
    module = import_module("attlas.scan.memory")
    monkeypatch.setattr(module, "EXACT_BLOCK", 4)
    weights, given = weights_of(1), inputs()
    expected = token_by_token(weights, *given, 1)
    found = memory(MemoryRule(weights), *given, chunk=1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_forgetting_all_is_legal():
    """alpha = 1 and eta = 0: products, never quotients."""
    weights, (q, k, v, alpha, eta, theta) = weights_of(2), inputs()
    alpha, eta = alpha.clone(), eta.clone()
    alpha[:, :, 4], eta[:, :, 6] = 1.0, 0.0
    found = memory(MemoryRule(weights), q, k, v, alpha, eta, theta, chunk=8)
    torch.testing.assert_close(found, token_by_token(weights, q, k, v, alpha, eta, theta, 8))


def test_delta_rule_and_test_time_training_are_settings():
    weights, (q, k, v, _, _, theta) = weights_of(1), inputs()
    zero = torch.zeros_like(theta)
    now, expected = weights[0].expand(B, -1, -1, -1), []
    for t in range(N):
        key, value, beta = k[:, :, t, :, None], v[:, :, t, None], 2 * theta[:, :, t, None, None]
        now = now - beta * key @ (key.mT @ now) + beta * key @ value
        expected.append((q[:, :, t, None] @ now)[:, :, 0])
    delta = memory(MemoryRule(weights), q, k, v, 0.0, 0.0, theta, chunk=1)
    torch.testing.assert_close(delta, torch.stack(expected, 2))
    learnt = memory(MemoryRule(weights), q, k, v, 0.0, 0.0, theta, chunk=5)
    torch.testing.assert_close(learnt, token_by_token(weights, q, k, v, zero, zero, theta, 5))


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_additive_memory_is_linear_attention(chunk):
    q, k, v, *_ = inputs()
    rule = MemoryRule((torch.zeros(H, D, V, dtype=DOUBLE),), error=additive)
    torch.testing.assert_close(memory(rule, q, k, v, 0.0, 0.0, 1.0, chunk=chunk), scan(q, k, v))


def test_one_update_per_chunk_by_the_summed_gradient():
    weights, (q, k, v, *_) = weights_of(2), inputs()
    first, last = torch.arange(N) % 4 == 0, torch.arange(N) % 4 == 3
    eta = torch.where(first, 0.9, 1.0).to(DOUBLE).expand(B, H, N)
    commit = last.to(DOUBLE).expand(B, H, N)
    _, state = memory(MemoryRule(weights), q, k, v, 0.0, eta, 0.05, chunk=4, commit=commit, return_state=True)
    for b, h in ((0, 0), (1, 1)):
        now = [weight[h] for weight in weights]
        momentum = [torch.zeros_like(weight) for weight in now]
        for some in (slice(0, 4), slice(4, 8)):
            slopes = torch.func.grad(inner_loss)(now, k[b, h, some], v[b, h, some])
            momentum = [0.9 * s - 0.05 * slope for s, slope in zip(momentum, slopes, strict=True)]
            now = [w + s for w, s in zip(now, momentum, strict=True)]
        for layer, weight in enumerate(now):
            torch.testing.assert_close(state[f"weight{layer}"][b, h], weight)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
@pytest.mark.parametrize("depth", [1, 2])
def test_pieces_give_what_the_whole_gives_and_so_do_their_gradients(depth, chunk):
    weights = [x.requires_grad_() for x in weights_of(depth)]
    given = [x.requires_grad_() for x in inputs()]
    rule = MemoryRule(tuple(weights))
    whole, last = memory(rule, *given, chunk=chunk, return_state=True)
    state, parts = None, []
    for some in (slice(0, 1), slice(1, 6), slice(6, 6), slice(6, N)):
        part, state = memory(
            rule, *(x[:, :, some] for x in given), chunk=chunk, state=state, return_state=True
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    assert state.position.tolist() == last.position.tolist() == [N] * B
    outer, everything = torch.randn_like(whole), [*weights, *given]

    def gradients(out, state):
        loss = (out * outer).sum() + sum(part.square().sum() for part in state.parts.values())
        return torch.autograd.grad(loss, everything)

    pairs = zip(gradients(torch.cat(parts, 2), state), gradients(whole, last), strict=True)
    for mine, true in pairs:
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("chunk", [1, 3, 20])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("trailing", [True, False])
def test_an_invalid_step_is_the_identity(depth, chunk, trailing):
    rule, given = MemoryRule(weights_of(depth)), inputs()
    valid = torch.arange(N) < torch.tensor([[5], [8]]) if trailing else torch.rand(B, N) > 0.4
    for x in given[:3]:
        x[(~valid)[:, None].expand(B, H, N)] = torch.nan
    out, state = memory(rule, *given, chunk=chunk, valid=valid, return_state=True)
    later = inputs(length=3)
    next_out = memory(rule, *later, chunk=chunk, state=state)
    for b in range(B):
        seen = valid[b]
        alone, own = memory(rule, *(x[b : b + 1, :, seen] for x in given), chunk=chunk, return_state=True)
        torch.testing.assert_close(out[b : b + 1, :, seen], alone)
        assert not out[b][:, ~seen].any()
        assert own.position.item() == state.position[b] == seen.sum()
        after = memory(rule, *(x[b : b + 1] for x in later), chunk=chunk, state=own)
        torch.testing.assert_close(next_out[b : b + 1], after)


def test_nothing_valid_changes_nothing():
    rule, given = MemoryRule(weights_of(2)), inputs()
    _, begun = memory(rule, *given, chunk=4, return_state=True)
    out, state = memory(
        rule, *given, chunk=4, valid=torch.zeros(B, N, dtype=torch.bool), state=begun, return_state=True
    )
    assert not out.any() and state.position.tolist() == [N] * B
    for name, part in begun.parts.items():
        torch.testing.assert_close(state[name], part)


@pytest.mark.parametrize("depth", [1, 2])
def test_bf16_inputs_keep_float32_states(depth):
    weights, given = weights_of(depth, torch.float32), inputs(torch.float32, 50)
    halves = [x.bfloat16() for x in given]
    out, state = memory(MemoryRule(weights), *halves, chunk=8, return_state=True)
    assert out.dtype == torch.bfloat16
    assert {part.dtype for part in state.parts.values()} == {torch.float32}
    exact = [weight.double() for weight in weights], *(x.double() for x in halves)
    expected = memory(MemoryRule(tuple(exact[0])), *exact[1:], chunk=8)
    torch.testing.assert_close(out.double(), expected, rtol=1.6e-2, atol=1e-3)


def test_it_learns_without_autograd():
    rule, given = MemoryRule(weights_of(2)), inputs()
    expected = token_by_token(rule.weights, *given, 3)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(memory(rule, *given, chunk=3), expected)


def test_derivatives_by_finite_differences():
    given = [x[:1, :, :3].clone().requires_grad_() for x in inputs()]
    weights = [x.requires_grad_() for x in weights_of(2)]

    def run(*tensors):
        return memory(MemoryRule(tensors[:2]), *tensors[2:], chunk=2)

    assert torch.autograd.gradcheck(run, (*weights, *given), fast_mode=True)


def test_recall_reads_what_the_last_token_left():
    rule, given = MemoryRule(weights_of(2)), inputs()
    out, state = memory(rule, *given, chunk=4, return_state=True)
    torch.testing.assert_close(recall(rule, given[0][:, :, -1:], state), out[:, :, -1:])
    fresh = start_memory(rule, B, chunk=4, dtype=DOUBLE)
    torch.testing.assert_close(recall(rule, given[0], fresh), applied(rule.weights, given[0]))


def test_a_state_has_the_bytes_of_weights_momentum_and_frozen_weights():
    rule = MemoryRule(weights_of(2, torch.float32))
    size = B * H * (D * HIDDEN + HIDDEN * V) * 4
    assert start_memory(rule, B, chunk=1).nbytes == 2 * size
    assert start_memory(rule, B, chunk=4).nbytes == 3 * size


def test_errors_say_what_to_do():
    rule, given = MemoryRule(weights_of(2)), inputs()
    with pytest.raises(ValueError, match=r"weights must be one or more tensors \(heads, width in, width"):
        MemoryRule(())
    with pytest.raises(ValueError, match=r"each the width that the one before it gives, got \(2, 3, 5\)"):
        MemoryRule((weights_of(2)[0], weights_of(2)[0]))
    with pytest.raises(ValueError, match="chunk must be an integer >= 1 .*, got 0"):
        memory(rule, *given, chunk=0)
    with pytest.raises(ValueError, match=r"v must be \(batch, 2 heads, tokens, width 4\) for these weights"):
        memory(rule, given[0], given[1], given[0], *given[3:], chunk=2)
    with pytest.raises(ValueError, match="parts .*'frozen0': .*start_memory"):
        memory(rule, *given, chunk=2, state=start_memory(rule, B, chunk=1))
    with pytest.raises(ValueError, match="parts .* got {'sum': "):
        memory(
            rule, *given, chunk=1, state=State({"sum": torch.zeros(B, 1)}, torch.zeros(B, dtype=torch.int64))
        )
