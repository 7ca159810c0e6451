"""`attend` over a graph: every backend, equal edges, isolated nodes, and the compiled loops as operators."""

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas.attend import SenderSoftmax, explain
from attlas.graph import Graph, coalesce, keep_edges
from attlas.pattern import Tokens
from graph.test_graph import drawn


def inputs(nodes: int, heads: int = 2, width: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(nodes)
    shape = (1, heads, nodes, width)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def by_edges(graph: Graph, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, edge by edge and without sorting: each edge is a message."""
    logits = (q[0, :, graph.receiver] * k[0, :, graph.sender]).sum(-1) / q.shape[-1] ** 0.5
    rows = []
    for node in range(graph.receivers):
        mine = graph.receiver == node
        weights = logits[:, mine].softmax(-1)
        rows.append((weights[..., None] * v[0, :, graph.sender[mine]]).sum(1))
    return torch.stack(rows, 1)[None]


@pytest.mark.parametrize("backend", ["auto", "rows", "block", "edge", "reference"])
def test_attention_over_a_graph_is_that_of_its_edges(backend: str) -> None:
    graph, _ = coalesce(drawn(12, 60))  # dense enough for tiles, too
    q, k, v = inputs(12)
    out = at.attend(q, k, v, pattern=graph, backend=backend)
    wanted = by_edges(graph, q, k, v)
    assert torch.allclose(out, wanted, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    for one, other in zip(
        torch.autograd.grad((out * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9)


def test_equal_edges_and_loops_are_messages_of_their_own() -> None:
    graph = Graph.from_edge_index([[0, 0, 1, 2, 2, 2], [1, 1, 1, 2, 2, 0]], num_nodes=4)
    q, k, v = inputs(4)
    out = at.attend(q, k, v, pattern=graph)
    assert torch.allclose(out, by_edges(graph, q, k, v), rtol=1e-9, atol=1e-12)
    joined = at.attend(q, k, v, pattern=coalesce(graph)[0])
    assert not torch.allclose(out[0, :, 1], joined[0, :, 1])
    with pytest.raises(ValueError, match=r"the graph has equal edges, each a message of its own, which only"):
        at.attend(q, k, v, pattern=graph, backend="rows")
    spaces = {"q_at": Tokens(3), "k_at": Tokens(4)}
    with pytest.raises(ValueError, match=r"has equal edges.*no backend can run this request"):
        at.attend(q[:, :, :3], k, v, pattern=graph, **spaces)


def test_a_node_without_edges_gets_nothing_and_gives_nothing() -> None:
    graph = Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=3)
    q, k, v = inputs(3)
    out, state = at.attend(q, k, v, pattern=graph, backend="edge", return_state=True)
    assert not out[:, :, 2].any() and bool((state.lse[:, :, 2] == -torch.inf).all())
    for grad in torch.autograd.grad((out * out).sum(), (q, k, v)):
        assert not grad[:, :, 2].any() and not grad.isnan().any()


def test_what_is_no_number_stays_where_its_edges_lead() -> None:
    graph = Graph.from_edge_index([[0, 1, 2], [1, 2, 0]], num_nodes=3)
    q, k, v = (part.detach() for part in inputs(3, dtype=torch.float32))
    k[0, :, 0] = torch.nan
    out = at.attend(q, k, v, pattern=graph, backend="edge")
    assert out[:, :, 1].isnan().all() and not out[:, :, [0, 2]].isnan().any()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width"), [(4, 2, 8, 16), (3, 3, 5, 3), (4, 1, 32, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_widths_and_shared_heads(
    heads: int, kv_heads: int, width: int, value_width: int, dtype: torch.dtype
) -> None:
    graph, _ = coalesce(drawn(40, 300))
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, heads, 40, width), (1, kv_heads, 40, width), (2, kv_heads, 40, value_width))
    exact = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    ]
    given = [part.detach().to(dtype).requires_grad_() for part in exact]
    found, wanted = (
        at.attend(*parts, pattern=graph, backend=backend)
        for parts, backend in ((given, "edge"), (exact, "reference"))
    )
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert torch.allclose(found.double(), wanted, rtol=tolerance, atol=tolerance)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), given),
        torch.autograd.grad(wanted.square().sum(), exact),
        strict=True,
    ):
        assert torch.allclose(one.double(), other, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradients_by_differences() -> None:
    graph, _ = coalesce(drawn(6, 14))
    q, k, v = inputs(6, width=3)

    def outputs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, state = at.attend(*tensors, pattern=graph, backend="edge", return_state=True)
        return out, state.lse[:, :, graph.in_degree > 0]

    assert torch.autograd.gradcheck(outputs, (q, k, v), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        out = at.attend(q, k, v, pattern=graph, backend="edge")
        (first,) = torch.autograd.grad((out * out).sum(), q, create_graph=True)
        torch.autograd.grad(first.sum(), q)


def test_the_result_does_not_depend_on_threads_or_the_order_of_edges() -> None:
    graph, _ = coalesce(drawn(3000, 30000))
    mixed = keep_edges(graph, torch.randperm(graph.edges, generator=torch.Generator().manual_seed(0)))
    q, k, v = inputs(3000, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            out = at.attend(q, k, v, pattern=graph, backend="edge")
            found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert torch.allclose(
        at.attend(q, k, v, pattern=mixed, backend="edge"), found[0][0], rtol=1e-5, atol=1e-6
    )


def test_the_loops_are_operators_that_compile_whole() -> None:
    from attlas.attend.edge_kernel import EdgeScore, edge_attention

    graph = drawn(9, 30)
    q, k, v = (part.detach().requires_grad_() for part in inputs(9, dtype=torch.float32))
    along = (*graph.by_receiver, *graph.by_sender)
    tensors = [part.detach().transpose(1, 2).contiguous().requires_grad_() for part in (q, k, v)]
    bias, edge = torch.randn(30, 2).requires_grad_(), torch.randn(30, 2, 8).requires_grad_()
    for kind, more in ((0, (bias, None)), (2, (None, edge))):
        numbers = (kind, 0.5, 1.0, -1.0, 1.0, kind == 2)
        torch.library.opcheck(torch.ops.attlas.edges, (*tensors, *more, *along, *numbers))
    score = EdgeScore("dot", 0.5)
    whole = torch.compile(
        lambda *parts: edge_attention(*parts, graph, score)[0], fullgraph=True, backend="eager"
    )
    assert torch.equal(whole(q, k, v), edge_attention(q, k, v, graph, score)[0])


def test_sparse_graphs_take_the_edges_and_say_so() -> None:
    graph, _ = coalesce(drawn(400, 2000))
    q, k, v = (part.detach() for part in inputs(400, dtype=torch.float32))
    told = str(explain(q, k, v, pattern=graph))
    assert "edge" in told and "the edges of the graph are too few" in told


def test_what_no_loop_is_compiled_for_is_told_with_the_reason_of_each_form() -> None:
    graph = drawn(9, 30)
    q, k, v = (part.detach() for part in inputs(9))
    product = at.EdgeProduct(torch.ones(30, 2, 8, dtype=q.dtype))
    cases = (
        ({"normaliser": SenderSoftmax()}, "dot products: its normaliser is softmax, not sender_softmax"),
        ({"dropout": 0.5, "seed": 1}, "softmax of dot products: it has no dropout"),
        ({"gate": torch.ones(1, 2, 9, 1, dtype=q.dtype)}, "softmax of dot products: it has no gate"),
        (
            {"score": product + at.GraphBias(torch.ones(30, dtype=q.dtype))},
            "edge features, not edge_product + ",
        ),
    )
    for options, reason in cases:
        told = str(explain(q, k, v, pattern=graph, backend="edge", **options))
        assert "in plain torch" in told and reason in told


def test_attention_from_senders_to_receivers() -> None:
    graph = Graph.from_edge_index([[0, 6, 3], [1, 1, 0]], num_nodes=7, num_receivers=3)
    q, (k, v) = inputs(3)[0], inputs(7)[:2]
    for backend in ("edge", "rows"):
        out = at.attend(q, k, v, pattern=graph, backend=backend)
        assert torch.allclose(out[0, :, 0], v[0, :, 3])
        assert not out[0, :, 2].any()
    with pytest.raises(ValueError, match=r"holds positions 0..2, but queries stand at 0..3"):
        at.attend(inputs(4)[0], k, v, pattern=graph)
