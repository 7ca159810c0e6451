"""Softmax attention along the edges of a graph as torch operators, forward and backward, on CPU.

`attlas::edges` and `attlas::edges_backward` take tensors and numbers only, so that torch.compile keeps them
whole. Memory beside the inputs: out, lse and two numbers more a receiver; backward: the gradients, and three
numbers a receiver. Nothing else has the size of the edges but what is made before the loops: the (E, H) bias
of a `TypedBias`, the sum of several biases, and float32 copies of bfloat16 tensors of edges. Values of widths
that are no multiple of 8 are copied and padded.
Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from attlas.attend.edge_call import LANES, run_loop
from attlas.attend.edge_units import add_parts, merge_parts, units_of
from attlas.attend.team import missing
from attlas.graph import Graph

__all__ = ["EdgeScore", "edge_attention", "refusal"]


@dataclass(frozen=True)
class EdgeScore:
    """What the loops know as a score, limited to low .. high, with s = scale and b the bias.

    "dot": s q . k + b; "additive": leaky_relu(q + k + b), widths 1; "product": the sum of s q k e, whose
    terms are the state. bias: (E, 1) or (E, H), edge: (E, H, D), in the graph's order.
    """

    kind: str = "dot"
    scale: float = 1.0
    slope: float = 1.0
    low: float = -float("inf")
    high: float = float("inf")
    bias: Tensor | None = None
    edge: Tensor | None = None


_KINDS = ("dot", "additive", "product")  # in the order of edge_scores


def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """None, or why tensors of this kind run elsewhere."""
    if device.type != "cpu":
        return "it runs on CPU"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return "it takes float32, float64 and bfloat16"
    return missing()


def edge_attention(
    query: Tensor, key: Tensor, value: Tensor, graph: Graph, score: EdgeScore, *, state: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Softmax attention of query (B, H, R, D), key (B, G, S, D), value (B, G, S, V) along the edges.

    Equal edges are messages of their own. Returns out (B, H, R, V), in memory (B, R, H, V), lse (B, H, R),
    float32 or float64, and the states (B, H, E, D) of products, in memory (B, E, H, D), where asked for; a
    receiver without edges: 0 and -inf. Tensors that are node-major in memory are read where they are;
    bfloat16 is computed in float32. Scores with tensors of edges: B = 1. Differentiable once; bitwise the
    same for any number of threads. Cost: 2 E H (D + V) FLOPs, with backward 2 E H (5 D + 4 V) more.
    """
    given = [part for part in (query, key, value, score.bias, score.edge) if part is not None]
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in given):
        raise NotImplementedError(
            "attention along edges has no forward-mode derivative; use backend='reference' for products with "
            "a Jacobian"
        )
    dtype, values = query.dtype, value.shape[3]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch = max(part.shape[0] for part in (query, key, value))
    tensors = [
        _together(_padded(part.to(wide), padded).transpose(1, 2).expand(batch, -1, -1, -1))
        for part, padded in ((query, score.kind == "dot"), (key, score.kind == "dot"), (value, True))
    ]
    along = [None if part is None else part.to(wide).contiguous() for part in (score.bias, score.edge)]
    numbers = (_KINDS.index(score.kind), score.scale, score.slope, score.low, score.high)
    out, lse, states, _ = torch.ops.attlas.edges(
        *tensors, *along, *graph.by_receiver, *graph.by_sender, *numbers, state
    )
    out = out[..., :values].to(dtype).transpose(1, 2)
    return out, lse.transpose(1, 2), states.to(dtype).transpose(0, 1)[None] if state else None


def _padded(tensor: Tensor, wanted: bool) -> Tensor:
    """Heads of whole vectors: zeros change no product."""
    more = -tensor.shape[-1] % LANES if wanted else 0
    return F.pad(tensor, (0, more)) if more else tensor


def _together(tensor: Tensor) -> Tensor:
    """(B, nodes, heads, width) with the heads of a node in one row: the tensor itself if they are."""
    heads, width = tensor.shape[2:]
    apart = tensor.stride(3) != 1 and width > 1
    return tensor.contiguous() if apart or (tensor.stride(2) != width and heads > 1) else tensor


@torch.library.custom_op("attlas::edges", mutates_args=(), device_types="cpu")
def _edges(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, edge: Tensor | None,
    receiver: Tensor, senders: Tensor, into: Tensor, sender: Tensor, receivers: Tensor, out_of: Tensor,
    kind: int, scale: float, slope: float, low: float, high: float, state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, nodes, heads, _ = query.shape
    units = units_of(receiver)
    given = {"query": _together(query), "key": _together(key), "value": _together(value)}
    found = {
        "out": query.new_empty(batch, nodes, heads, value.shape[3]),
        "tops": query.new_empty(batch, nodes, 2, heads),
        "lse": query.new_empty(batch, nodes, heads),
        "part_out": query.new_empty(batch, units.slots, heads, value.shape[3]),
        "part_tops": query.new_empty(batch, units.slots, 2, heads),
    }
    states = query.new_empty(_state_shape(query, senders, state))
    along = {"bias": bias, "edge": edge, "state": states if state else None}
    numbers = (kind, scale, slope, low, high)
    run_loop("forward", units, (receiver, senders, into), numbers, **given, **along, **found)
    merge_parts(units, **found)
    return found["out"], found["lse"], states, found["tops"]


def _state_shape(query: Tensor, senders: Tensor, state: bool) -> tuple[Any, ...]:
    return (senders.numel(), *query.shape[2:]) if state else (0,)


@_edges.register_fake
def _(query, key, value, bias, edge, receiver, senders, *rest):  # type: ignore[no-untyped-def]
    batch, nodes, heads, _ = query.shape
    return (
        query.new_empty(batch, nodes, heads, value.shape[3]),
        query.new_empty(batch, nodes, heads),
        query.new_empty(_state_shape(query, senders, rest[-1])),
        query.new_empty(batch, nodes, 2, heads),
    )


@torch.library.custom_op("attlas::edges_backward", mutates_args=(), device_types="cpu")
def _edges_backward(
    grad_out: Tensor, grad_lse: Tensor | None, grad_state: Tensor | None, out: Tensor, tops: Tensor,
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, edge: Tensor | None,
    receiver: Tensor, senders: Tensor, into: Tensor, sender: Tensor, receivers: Tensor, out_of: Tensor,
    kind: int, scale: float, slope: float, low: float, high: float, to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    numbers = (kind, scale, slope, low, high)
    given: dict[str, Tensor | None] = {
        "query": _together(query), "key": _together(key), "value": _together(value),
        "bias": bias, "edge": edge,
        "tops": tops, "out": out, "grad_out": grad_out, "grad_lse": grad_lse, "grad_state": grad_state,
        "ends": tops.new_empty(*tops.shape[:2], 3, tops.shape[3]),
    }  # fmt: skip
    grads = _fake_gradients(query, key, value, bias, edge, to_bias)
    units = units_of(receiver)
    parts = [query.new_empty(query.shape[0], units.slots, *query.shape[2:])]
    run_loop(
        "receivers", units, (receiver, senders, into), numbers, **given, grad_query=grads[0],
        part_query=parts[0], grad_bias=grads[3] if to_bias else None,
        grad_edge=None if edge is None else grads[4],
    )  # fmt: skip
    add_parts(units, grads[0], parts[0])
    units = units_of(sender)
    parts = [part.new_empty(part.shape[0], units.slots, *part.shape[2:]) for part in (key, value)]
    run_loop(
        "senders", units, (sender, receivers, out_of), numbers, **given, grad_key=grads[1],
        grad_value=grads[2], part_key=parts[0], part_value=parts[1],
    )  # fmt: skip
    for total, part in zip(grads[1:3], parts, strict=True):
        add_parts(units, total, part)
    return grads


def _fake_gradients(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, edge: Tensor | None, to_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients; empty where there is none to give."""
    return (
        *(part.new_empty(part.shape) for part in (query, key, value)),
        query.new_empty(0) if bias is None or not to_bias else bias.new_empty(bias.shape),
        query.new_empty(0) if edge is None else edge.new_empty(edge.shape),
    )  # type: ignore[return-value]


@_edges_backward.register_fake
def _(grad_out, grad_lse, grad_state, out, tops, query, key, value, bias, edge, *rest):  # type: ignore[no-untyped-def]
    return _fake_gradients(query, key, value, bias, edge, rest[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:11], output[0], output[3])
    ctx.numbers = inputs[11:16]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Any, grad_lse: Any, grad_state: Any, _: Any) -> tuple[Any, ...]:
    *inputs, out, tops = ctx.saved_tensors
    if grad_out is None and grad_lse is None and grad_state is None:
        return (None,) * 17
    grad = torch.zeros_like(out) if grad_out is None else grad_out.contiguous()
    others = (part if part is None else part.contiguous() for part in (grad_lse, grad_state))
    to_bias = bool(inputs[3] is not None and ctx.needs_input_grad[3])
    grads = torch.ops.attlas.edges_backward(grad, *others, out, tops, *inputs, *ctx.numbers, to_bias)
    to_edges = (grads[3] if to_bias else None, None if inputs[4] is None else grads[4])
    return *grads[:3], *to_edges, *(None,) * 12


_edges.register_autograd(_differentiate, setup_context=_keep)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no second derivative."""


def _once(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "attention along edges is differentiable once: its backward recomputes weights in a kernel without a "
        "derivative of its own; use backend='reference' for second derivatives"
    )


_edges_backward.register_autograd(_once, setup_context=_keep_nothing)
