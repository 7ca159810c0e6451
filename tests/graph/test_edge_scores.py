"""Compiled scores with tensors of edges, against sums over the edges of each receiver."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas.attend import explain
from attlas.graph import Graph, coalesce
from graph.test_graph import drawn

NODES, EDGES, HEADS, VALUES = 20, 150, 4, 6
Logits = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor | None]]


def _graph() -> Graph:
    """Equal edges and loops among them; the last two nodes have no edge."""
    graph = Graph.from_edge_index(drawn(NODES - 2, EDGES).edge_index, num_nodes=NODES)
    assert graph.has_equal_edges and bool((graph.sender == graph.receiver).any())
    return graph


def _summed(
    graph: Graph, q: Tensor, k: Tensor, v: Tensor, logits_of: Logits, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """out, lse and state, receiver by receiver, over logits (H, E)."""
    group = q.shape[1] // k.shape[1]
    query, key = q[0, :, graph.receiver], k[0].repeat_interleave(group, 0)[:, graph.sender]
    value = v[0].repeat_interleave(group, 0)[:, graph.sender]
    logits, state = logits_of(query, key, tensors)
    out, lse = [], []
    for node in range(graph.receivers):
        mine = graph.receiver == node
        if not mine.any():
            out.append(value.new_zeros(q.shape[1], v.shape[3]))
            lse.append(value.new_full((q.shape[1],), -torch.inf))
            continue
        out.append((logits[:, mine].softmax(-1)[..., None] * value[:, mine]).sum(1))
        lse.append(logits[:, mine].logsumexp(-1))
    return torch.stack(out, 1)[None], torch.stack(lse, 1)[None], state


def _inputs(width: int, kv_heads: int, extra: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(width + kv_heads)
    shapes: list[tuple[int, ...]] = [(1, HEADS, NODES, width), (1, kv_heads, NODES, width)]
    shapes += [(1, kv_heads, NODES, VALUES), *([extra] if extra else [])]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _dot(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum(-1) / query.shape[-1] ** 0.5


TYPES = torch.arange(EDGES) % 5


def _edge_product(query: Tensor, key: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    state = query * key * tensors[0].transpose(0, 1) / query.shape[-1] ** 0.5
    return state.sum(-1), state


def _leaky(query: Tensor, key: Tensor, slope: float, more: Tensor | float = 0.0) -> Tensor:
    return torch.nn.functional.leaky_relu((query + key)[..., 0] + more, slope)


def _biased(bias: Tensor) -> at.Score:
    return at.score.Dot() + at.GraphBias(bias)


FORMS: dict[str, tuple[int, tuple[int, ...], Callable[..., at.Score], Logits]] = {
    "bias": (5, (EDGES, HEADS), _biased, lambda q, k, t: (_dot(q, k) + t[0].T, None)),
    "one bias": (8, (EDGES,), _biased, lambda q, k, t: (_dot(q, k) + t[0], None)),
    "two biases": (
        8, (EDGES,), lambda b: _biased(b) + at.GraphBias(2 * b[:, None]),
        lambda q, k, t: (_dot(q, k) + 3 * t[0], None),
    ),
    "limited": (
        3, (EDGES, HEADS), lambda b: _biased(b).clamp(-0.7, 0.4),
        lambda q, k, t: ((_dot(q, k) + t[0].T).clamp(-0.7, 0.4), None),
    ),
    "typed": (
        4, (5, HEADS), lambda b: at.score.Dot() + at.TypedBias(TYPES, b),
        lambda q, k, t: (_dot(q, k) + t[0][TYPES].T, None),
    ),
    "additive": (1, (), lambda: at.Additive(), lambda q, k, t: (_leaky(q, k, 0.2), None)),
    "additive, edges": (
        1, (EDGES, HEADS), lambda e: at.Additive(0.1, e), lambda q, k, t: (_leaky(q, k, 0.1, t[0].T), None)
    ),
    "product": (7, (EDGES, HEADS, 7), lambda e: at.EdgeProduct(e), _edge_product),
    "limited product": (
        8, (EDGES, HEADS, 8), lambda e: at.EdgeProduct(e).clamp(-0.5, 0.5),
        lambda q, k, t: (_edge_product(q, k, t)[0].clamp(-0.5, 0.5), _edge_product(q, k, t)[1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMS)
def test_a_compiled_score_is_the_sum_over_its_edges(name: str, dtype: torch.dtype, kv_heads: int) -> None:
    width, extra, make, logits_of = FORMS[name]
    graph = _graph()
    # What bfloat16 cannot hold is no error of the kernel's.
    given = [part.to(dtype).requires_grad_() for part in _inputs(width, kv_heads, extra)]
    exact = [part.detach().double().requires_grad_() for part in given]
    score = make(*given[3:])
    assert "compiled" in str(explain(*given[:3], pattern=graph, score=score))
    asked = {"pattern": graph, "score": score, "return_state": True, "backend": "edge"}
    if "product" in name:
        out, stats, state = at.attend(*given[:3], **asked, return_edge=True)
    else:
        (out, stats), state = at.attend(*given[:3], **asked), None
    wanted = _summed(graph, *exact[:3], logits_of, tuple(exact[3:]))
    held = graph.in_degree > 0
    pairs = [(out, wanted[0]), (stats.lse[:, :, held], wanted[1][:, :, held])]
    pairs += [] if state is None or wanted[2] is None else [(state[0], wanted[2])]
    assert (wanted[2] is None) == (state is None)
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 1.6e-2}[dtype]
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    assert not out[:, :, ~held].any() and bool((stats.lse[:, :, ~held] == -torch.inf).all())
    weights = [torch.linspace(-1, 1, one.numel(), dtype=torch.float64).view(one.shape) for one, _ in pairs]
    found, expected = (
        sum((part[at_].double() * weight).sum() for part, weight in zip(pairs, weights, strict=True))
        for at_ in (0, 1)
    )
    gradients = zip(torch.autograd.grad(found, given), torch.autograd.grad(expected, exact), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one.double(), other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_by_differences(name: str) -> None:
    width, extra, make, _ = FORMS[name]
    graph = _graph()
    tensors = [part.requires_grad_() for part in _inputs(width, 2, extra)]
    held = graph.in_degree > 0

    def outputs(*parts: Tensor) -> tuple[Tensor, ...]:
        asked = {"pattern": graph, "score": make(*parts[3:]), "return_state": True, "backend": "edge"}
        out, state = at.attend(*parts[:3], **asked)
        return out, state.lse[:, :, held]

    assert torch.autograd.gradcheck(outputs, tensors, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


def test_a_bias_may_remove_edges_and_whole_receivers() -> None:
    graph = _graph()
    q, k, v, bias = (part.requires_grad_() for part in _inputs(8, 4, (EDGES, HEADS)))
    with torch.no_grad():
        bias[graph.receiver == 3] = -torch.inf
        bias[7] = -torch.inf
    out, state = at.attend(
        q, k, v, pattern=graph, score=at.score.Dot() + at.GraphBias(bias), return_state=True
    )
    kept = torch.ones(EDGES, dtype=torch.bool)
    kept[7] = False
    kept[graph.receiver == 3] = False
    less = Graph.from_edge_index(graph.edge_index[:, kept], num_nodes=NODES)
    wanted = at.attend(q, k, v, pattern=less, score=at.score.Dot() + at.GraphBias(bias[kept]))
    torch.testing.assert_close(out, wanted)
    assert bool((state.lse[:, :, 3] == -torch.inf).all())
    grads = torch.autograd.grad(out.square().sum(), (q, k, v, bias))
    for one, other in zip(grads, torch.autograd.grad(wanted.square().sum(), (q, k, v, bias)), strict=True):
        torch.testing.assert_close(one, other)
    assert not grads[3][~kept].any()


@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_a_node_of_very_many_edges_is_cut_and_put_together(side: str) -> None:
    """20,000 edges at one node, more than one unit takes: the same bits every time, on any threads."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(0, 50, (2, 24_000), generator=generator)
    ends[1 if side == "receiver" else 0, :20_000] = 7
    graph = Graph.from_edge_index(ends, num_nodes=50)
    q, k, v = (torch.randn(1, 2, 50, 8, generator=generator).requires_grad_() for _ in range(3))
    bias = torch.randn(24_000, generator=generator).requires_grad_()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, *[2] * 8):  # units of one receiver meet by chance
            torch.set_num_threads(count)
            score = at.score.Dot() + at.GraphBias(bias)
            out, state = at.attend(q, k, v, pattern=graph, score=score, return_state=True)
            grads = torch.autograd.grad(out.square().sum() + state.lse.square().sum(), (q, k, v, bias))
            found.append([out, state.lse, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for again in found for pair in zip(found[0], again, strict=True))
    exact = [part.detach().double().requires_grad_() for part in (q, k, v, bias)]
    out, lse, _ = _summed(graph, *exact[:3], lambda a, b, t: (_dot(a, b) + t[0], None), tuple(exact[3:]))
    wanted = [out, lse, *torch.autograd.grad(out.square().sum() + lse.square().sum(), exact)]
    for one, other in zip(found[0], wanted, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", [2, 9000])
@pytest.mark.parametrize("name", ["dot", "additive", "product"])
@pytest.mark.parametrize("size", [1.8e3, 1.8e5, 2e6])
def test_weights_of_the_backward_are_exact_for_logits_of_any_size(size: float, name: str, edges: int) -> None:
    """Weights add up to one, and so does the gradient of values; an lse in float32 would not hold them."""
    ends = torch.stack([torch.arange(edges), torch.full((edges,), edges)])
    graph = Graph.from_edge_index(ends, num_nodes=edges + 1)
    generator = torch.Generator().manual_seed(0)
    width = 1 if name == "additive" else 11
    q, way = torch.randn(2, 1, 1, edges + 1, width, generator=generator)
    k = torch.randn(1, 1, 1, width, generator=generator) + 1e-7 * way
    k = k * (size * width**0.5 / (q[..., -1:, :] * k[..., :1, :]).sum())
    if name == "additive":
        q, k = q + size, 0.5 * way
    v = torch.ones(1, 1, edges + 1, 8).requires_grad_()
    score = {
        "dot": at.score.Dot(),
        "additive": at.Additive(),
        "product": at.EdgeProduct(torch.ones(edges, 1, width)),
    }[name]
    out = at.attend(q, k, v, pattern=graph, score=score, backend="edge")
    (grad,) = torch.autograd.grad(out[..., 0].sum(), v)
    assert abs(float(grad[..., 0].double().sum()) - 1) < 2e-6


def test_what_scores_of_graphs_refuse() -> None:
    with pytest.raises(TypeError, match="GraphBias: values must be a floating-point tensor, got torch.int64"):
        at.GraphBias(torch.arange(3))
    with pytest.raises(
        ValueError, match=r"GraphBias: values must be \(edges,\) or \(edges, heads\), got \(2, 3, 4\)"
    ):
        at.GraphBias(torch.zeros(2, 3, 4))
    with pytest.raises(
        ValueError, match=r"TypedBias: type must lie in 0..1, the rows of the table, got 0..4"
    ):
        at.TypedBias(TYPES, torch.zeros(2, 3))
    with pytest.raises(TypeError, match="TypedBias: type must be int64"):
        at.TypedBias(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"EdgeProduct: edge must be \(edges, heads, width\), got \(3, 4\)"):
        at.EdgeProduct(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="Additive: slope must be a finite number, got nan"):
        at.Additive(float("nan"))
    q, k, v = _inputs(8, 4, ())
    with pytest.raises(ValueError, match="queries and keys must be node scores of width 1"):
        at.attend(q, k, v, pattern=coalesce(_graph())[0], score=at.Additive(), backend="reference")
    with pytest.raises(ValueError, match="queries and keys must be node scores of width 1"):
        at.attend(q, k, v, pattern=_graph(), score=at.Additive(), backend="edge")
    with pytest.raises(ValueError, match=r"EdgeProduct: edge must be \(edges, heads, 8\).*got width 5"):
        at.attend(q, k, v, pattern=_graph(), score=at.EdgeProduct(torch.zeros(EDGES, 4, 5)))
