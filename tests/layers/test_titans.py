"""Titans' layers against their definitions, token by token with gradients from torch.func.grad."""

import pytest
import torch
from torch.nn import functional

from attlas.layers import (
    LiteralMemoryAsContext,
    LongTermMemory,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
)
from attlas.layers.titans_context import Gate
from attlas.layers.titans_memory import at_front, back_in_place

B, N, C, H, P, SIZE = 2, 23, 8, 2, 3, 5
D = C // H
DOUBLE = torch.float64


def memory_of(depth=2, chunk=4):
    memory = LongTermMemory(C, H, depth=depth, chunk=chunk).double()
    with torch.no_grad():
        memory.initial[-1].normal_().div_(2)  # An almost empty memory would hide mistakes.
        memory.factors.weight.normal_()
    return memory


def made(kind, **options):
    return kind(C, H, memory_of(), persistent=P, **options).double()


KINDS = {
    "LMM": memory_of,
    "MAC": lambda: made(MemoryAsContext, segment=SIZE),
    "MAG": lambda: made(MemoryAsGate, size=SIZE),
    "MAL": lambda: made(MemoryAsLayer, size=SIZE),
}


def applied(weights, x):
    for weight in weights[:-1]:
        x = functional.silu(x @ weight)
    return x @ weights[-1]


class Written:
    """One row's memory, one token after the other: the oracle of LMM and of what MAC does with it."""

    def __init__(self, layer):
        self.layer, self.count = layer, 0
        self.now = [[weight[h] for weight in layer.initial] for h in range(H)]
        self.momentum = [[torch.zeros_like(weight) for weight in now] for now in self.now]

    def stream(self, name, x):
        """Projection, causal convolution of the whole stream, silu; (n, H, D)."""
        conv = getattr(self.layer, f"{name}_conv")
        padded = torch.cat([x.new_zeros(conv.taps - 1, C), getattr(self.layer, name)(x)])
        rows = [(padded[t : t + conv.taps] * conv.weight.T).sum(0) + conv.bias for t in range(len(x))]
        return functional.silu(torch.stack(rows)).unflatten(-1, (H, D))

    def unit(self, name, x):
        made = self.stream(name, x)
        return made / made.norm(dim=-1, keepdim=True)

    def finish(self, reads, x):
        """Of one token: reads (H, D)."""
        normal = reads / (reads.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.layer.norm.weight
        return self.layer.out(normal.flatten() * functional.silu(self.layer.gate(x)))

    def read(self, query):
        return torch.stack([applied(now, q) for now, q in zip(self.now, query, strict=True)])

    def write(self, x, key, value):
        factors = self.layer.factors(x).sigmoid().unflatten(0, (3, H))
        for h in range(H):
            alpha, eta, theta = factors[:, h]
            if self.count % self.layer.chunk == 0:
                self.frozen = [*getattr(self, "frozen", [None] * H)]
                self.frozen[h] = self.now[h]
            slopes = torch.func.grad(lambda weights, h=h: ((applied(weights, key[h]) - value[h]) ** 2).sum())(
                self.frozen[h]
            )
            self.momentum[h] = [
                eta * s - self.layer.largest * theta * slope
                for s, slope in zip(self.momentum[h], slopes, strict=True)
            ]
            self.now[h] = [(1 - alpha) * w + s for w, s in zip(self.now[h], self.momentum[h], strict=True)]
        self.count += 1


def long_term(layer, x):
    """LMM of one row."""
    memory, out = Written(layer), []
    query, key, value = memory.unit("query", x), memory.unit("key", x), memory.stream("value", x)
    for t in range(len(x)):
        memory.write(x[t], key[t], value[t])
        out.append(memory.finish(memory.read(query[t]), x[t]))
    return torch.stack(out)


def turned(x, at, base=10000.0):
    """Rotary positions of one token, heads (H, D)."""
    angle = at * base ** (-torch.arange(0, D, 2, dtype=DOUBLE) / D)
    low, high = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)


def softmax_row(layer, x, at, seen):
    """Attention of token x at position `at` over [(source, position)]."""
    query = turned(layer.query(x).unflatten(-1, (H, D)), at)
    keys = torch.stack([turned(layer.key(source).unflatten(-1, (H, D)), place) for source, place in seen])
    values = torch.stack([layer.value(source).unflatten(-1, (H, D)) for source, _ in seen])
    weights = (torch.einsum("hd,nhd->nh", query, keys) / D**0.5).softmax(0)
    return layer.out(torch.einsum("nh,nhd->hd", weights, values).flatten())


def gated(gate, a, b):
    def normal(x, norm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    return functional.silu(normal(a, gate.first)) * functional.silu(normal(b, gate.second))


def as_context(layer, x, literal):
    """MAC of one row: segment after segment."""
    memory, out, ys = Written(layer.memory), [], []
    first = [(token, at) for at, token in enumerate(layer.persistent)]
    asked = memory.unit("query", x)
    for begin in range(0, len(x), SIZE):
        some = range(begin, min(begin + SIZE, len(x)))
        reads = [memory.finish(memory.read(asked[t]), x[t]) for t in some]
        count = len(reads)
        for t in some:
            i = t - begin
            if literal:
                seen = [(read, P + j) for j, read in enumerate(reads)]
                seen += [(x[begin + j], P + count + j) for j in range(i + 1)]
                ys.append(softmax_row(layer, x[t], P + count + i, first + seen))
            else:
                seen = [(source[j], P + j) for source in (reads, x[begin:]) for j in range(i + 1)]
                ys.append(softmax_row(layer, x[t], P + i, first + seen))
        y = torch.stack(ys)
        query, key, value = memory.unit("query", y), memory.unit("key", y), memory.stream("value", y)
        found = []
        for t in some:
            memory.write(y[t], key[t], value[t])
            found.append(memory.finish(memory.read(query[t]), y[t]))
        if literal:
            found = [memory.finish(memory.read(query[t]), y[t]) for t in some]
        out += [gated(layer.gate, y[t], read) for t, read in zip(some, found, strict=True)]
    return torch.stack(out)


def windowed(layer, z, sinks):
    def seen(t):
        return [(z[j], j) for j in range(t + 1) if t - j < SIZE or j < sinks]

    return torch.stack([softmax_row(layer, z[t], t, seen(t)) for t in range(len(z))])


@pytest.mark.parametrize(("depth", "chunk"), [(1, 1), (2, 4)])
def test_long_term_memory_is_its_definition(depth, chunk):
    layer, x = memory_of(depth, chunk), torch.randn(B, 9, C, dtype=DOUBLE)
    expected = torch.stack([long_term(layer, row) for row in x])
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [MemoryAsContext, LiteralMemoryAsContext])
def test_memory_as_context_is_its_definition(kind):
    layer, x = made(kind, segment=SIZE), torch.randn(B, 12, C, dtype=DOUBLE)
    expected = torch.stack([as_context(layer, row, kind is LiteralMemoryAsContext) for row in x])
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


def test_memory_as_gate_and_as_layer_are_their_definitions():
    x = torch.randn(1, 9, C, dtype=DOUBLE)
    gate, layer = KINDS["MAG"](), KINDS["MAL"]()
    z = torch.cat([gate.persistent, x[0]])
    expected = gated(gate.gate, windowed(gate.attention, z, P), long_term(gate.memory, z))[P:]
    torch.testing.assert_close(gate(x)[0], expected, rtol=1e-9, atol=1e-9)
    z = torch.cat([layer.persistent, x[0]])
    expected = windowed(layer.attention, z + long_term(layer.memory, z), 0)[P:]
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_never_changes_the_past(kind):
    layer, x = KINDS[kind](), torch.randn(B, N, C, dtype=DOUBLE)
    whole = layer(x)
    for at in (1, 7, SIZE * 2, N - 1):
        other = torch.cat([x[:, :at], torch.randn(B, N - at, C, dtype=DOUBLE)], 1)
        torch.testing.assert_close(layer(other)[:, :at], whole[:, :at], rtol=0, atol=1e-12)
        assert (layer(other)[:, at] - whole[:, at]).abs().max() > 1e-3


def test_the_literal_context_leaks_inside_a_segment_and_only_there():
    layer, x = made(LiteralMemoryAsContext, segment=SIZE), torch.randn(B, N, C, dtype=DOUBLE)
    other = x.clone()
    other[:, 2 * SIZE + 3] += 1.0
    change = (layer(other) - layer(x)).abs().amax((0, 2))
    assert change[: 2 * SIZE].max() < 1e-12
    assert change[2 * SIZE : 2 * SIZE + 3].min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, SIZE + 2])
def test_pieces_give_what_the_whole_gives(kind, size):
    layer, x = KINDS[kind](), torch.randn(B, N, C, dtype=DOUBLE)
    state, parts = layer.start(B), []
    for piece in x.split(size, 1):
        part, state = layer.advance(piece, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=1e-9, atol=1e-9)
    assert state.position.tolist() == [N] * B


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_as_if_it_were_not_there(kind):
    layer, x = KINDS[kind](), torch.randn(B, N, C, dtype=DOUBLE)
    valid = torch.rand(B, N) > 0.3
    x[~valid] = torch.nan
    found = layer(x, valid=valid)
    assert not found[~valid].any()
    for b in range(B):
        torch.testing.assert_close(found[b, valid[b]], layer(x[b : b + 1, valid[b]])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind):
    layer = KINDS[kind]()
    layer(torch.randn(B, N, C, dtype=DOUBLE)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_in_eval_mode_and_without_autograd(kind):
    layer, x = KINDS[kind](), torch.randn(B, N, C, dtype=DOUBLE)
    trained = layer(x).detach()
    layer.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(layer(x), trained, rtol=0, atol=0)


def test_the_state_does_not_grow():
    for kind in ("LMM", "MAG", "MAL", "MAC"):
        layer, state, sizes = KINDS[kind](), KINDS[kind]().start(1), []
        state = layer.start(1)
        for _ in range(4):
            _, state = layer.advance(torch.randn(1, 2 * SIZE, C, dtype=DOUBLE), state)
            sizes.append(state.nbytes)
        assert sizes[1] == sizes[2] == sizes[3], kind


def test_a_chunk_of_equal_tokens_does_not_diverge_at_the_start():
    for depth, chunk in ((1, 1), (1, 16), (2, 16), (3, 16)):
        layer = LongTermMemory(64, 2, depth=depth, chunk=chunk)
        state = layer.advance(torch.randn(1, 1, 64).expand(-1, 512, -1), layer.start(1))[1].nested("memory")
        assert all(part.abs().max() < 10 for part in state.parts.values()), (depth, chunk)


def test_tokens_to_the_front_and_back():
    x, valid = torch.randn(2, 4, 1), torch.tensor([[False, True, False, True], [True] * 4])
    packed = at_front(x, valid)
    assert packed[0, :, 0].tolist() == [x[0, 1, 0], x[0, 3, 0], 0.0, 0.0]
    torch.testing.assert_close(back_in_place(packed, valid), x * valid[..., None])


def test_a_gate_of_nothing_is_nothing():
    a = torch.randn(1, 2, C)
    assert not Gate(C)(a, torch.zeros_like(a)).any()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        LongTermMemory(8, 3)
    with pytest.raises(ValueError, match="depth of at least 1 layer, got 0"):
        LongTermMemory(8, 2, depth=0)
    with pytest.raises(ValueError, match="segment must be at least 1 token, got 0"):
        made(MemoryAsContext, segment=0)
    with pytest.raises(ValueError, match="persistent must be .* 0 or more, got -1"):
        MemoryAsGate(C, H, memory_of(), persistent=-1)
    layer = made(LiteralMemoryAsContext, segment=SIZE)
    x = torch.randn(1, 2, C, dtype=DOUBLE)
    state = layer.advance(x, layer.start(1))[1]
    with pytest.raises(ValueError, match="whole segments of 5 tokens, and this state ends after 2 of one"):
        layer.advance(x, state)
