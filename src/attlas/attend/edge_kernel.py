"""Softmax attention along the edges of a graph as torch operators, forward and backward, on CPU.

`attlas::edges` and `attlas::edges_backward` take tensors and numbers only, so that torch.compile keeps them
whole. Memory beside the inputs: out and lse; backward: the gradients. Nothing has the size of the edges.
Legend: B batch, H query heads, G KV heads, R receivers, S senders, E edges, D width, V value width.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from attlas.attend.team import machine_code, missing, run
from attlas.graph import Graph

__all__ = ["edge_attention", "refusal"]

PIECES = 64
"""Pieces of work, at most about so many: enough for the threads to end together."""
ALONE = 4096
"""Edges and nodes below which a second thread is not worth its call."""
LANES = 8
"""Rows of a whole number of so many float32 go through vectors."""
_KIND = {torch.float32: False, torch.float64: True}


def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """None, or why tensors of this kind run elsewhere."""
    if device.type != "cpu":
        return "it runs on CPU"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return "it takes float32, float64 and bfloat16"
    return missing()


def edge_attention(
    query: Tensor, key: Tensor, value: Tensor, graph: Graph, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention of query (B, H, R, D), key (B, G, S, D), value (B, G, S, V) along the edges.

    Equal edges are messages of their own. Returns out (B, H, R, V), in memory (B, R, H, V), and lse
    (B, H, R), float32 or float64; a receiver without edges: 0 and -inf. Tensors that are node-major in memory
    are read where they are; bfloat16 is computed in float32. Differentiable once; bitwise the same for any
    number of threads. Cost: 2 E H (D + V) FLOPs, with backward 2 E H (5 D + 4 V) more.
    """
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (query, key, value)):
        raise NotImplementedError(
            "attention along edges has no forward-mode derivative; use backend='reference' for products with "
            "a Jacobian"
        )
    dtype = query.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch = max(part.shape[0] for part in (query, key, value))
    tensors = (
        part.to(wide).transpose(1, 2).expand(batch, -1, -1, -1).contiguous() for part in (query, key, value)
    )
    into, out_of = graph.by_receiver, graph.by_sender
    out, lse = torch.ops.attlas.edges(*tensors, into.pointer, into.other, out_of.pointer, out_of.other, scale)
    return out.to(dtype).transpose(1, 2), lse.transpose(1, 2)


@torch.library.custom_op("attlas::edges", mutates_args=(), device_types="cpu")
def _edges(
    query: Tensor, key: Tensor, value: Tensor,
    receiver: Tensor, senders: Tensor, sender: Tensor, receivers: Tensor, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, nodes, heads, _ = query.shape
    out = query.new_empty(batch, nodes, heads, value.shape[3])
    lse = query.new_empty(batch, nodes, heads)
    _call("forward", receiver, senders, scale, query=query, key=key, value=value, out=out, lse=lse)
    return out, lse


@_edges.register_fake
def _(query, key, value, receiver, senders, sender, receivers, scale):  # type: ignore[no-untyped-def]
    batch, nodes, heads, _ = query.shape
    return query.new_empty(batch, nodes, heads, value.shape[3]), query.new_empty(batch, nodes, heads)


@torch.library.custom_op("attlas::edges_backward", mutates_args=(), device_types="cpu")
def _edges_backward(
    grad: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor,
    receiver: Tensor, senders: Tensor, sender: Tensor, receivers: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    given = {"query": query, "key": key, "value": value, "lse": lse, "delta": delta, "grad_out": grad}
    grads = [torch.empty_like(part) for part in (query, key, value)]
    _call("receivers", receiver, senders, scale, grad_query=grads[0], **given)
    _call("senders", sender, receivers, scale, grad_key=grads[1], grad_value=grads[2], **given)
    return grads[0], grads[1], grads[2]


@_edges_backward.register_fake
def _(grad, delta, query, key, value, lse, receiver, senders, sender, receivers, scale):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(part) for part in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, *edges, out, lse = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 8
    # d logits_ij = w_ij (grad . v_j - grad . out + grad_lse)
    delta = torch.zeros_like(lse) if grad_out is None else (grad_out * out).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    grad = torch.zeros_like(out) if grad_out is None else grad_out.contiguous()
    grads = torch.ops.attlas.edges_backward(grad, delta, query, key, value, lse, *edges, ctx.scale)
    return *grads, *(None,) * 5


_edges.register_autograd(_differentiate, setup_context=_keep)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no second derivative."""


def _once(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "attention along edges is differentiable once: its backward recomputes weights in a kernel without a "
        "derivative of its own; use backend='reference' for second derivatives"
    )


_edges_backward.register_autograd(_once, setup_context=_keep_nothing)


def _call(what: str, pointer: Tensor, other: Tensor, scale: float, **tensors: Tensor) -> None:
    """Run one of the loops over the nodes of `pointer` in all of torch's threads."""
    from attlas.attend.edge_loops import CALL

    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    starts = _starts(pointer)
    double = _KIND[query.dtype]
    counter = ctypes.c_int64(0)
    sizes = {
        "starts": starts.data_ptr(), "pieces": starts.numel() - 1,
        "pointer": pointer.data_ptr(), "other": other.data_ptr(),
        "batch": query.shape[0], "heads": query.shape[2], "kv_heads": key.shape[2],
        "receivers": query.shape[1], "senders": key.shape[1], "edges": other.numel(),
        "width": query.shape[3], "value_width": value.shape[3],
        "most": int(pointer.diff().max()) if pointer.numel() > 1 else 0,
        "counter": ctypes.addressof(counter), "scale": scale,
    }  # fmt: skip
    call = np.zeros(1, CALL)
    for name, number in (sizes | {name: part.data_ptr() for name, part in tensors.items()}).items():
        call[name] = number
    work = (other.numel() + pointer.numel()) * query.shape[0]
    threads = 1 if work < ALONE else torch.get_num_threads()
    run(
        _code(what, double, not (query.shape[3] % LANES or value.shape[3] % LANES)), call.ctypes.data, threads
    )


def _code(what: str, double: bool, vectors: bool) -> tuple[int, Any]:
    """The compiled loops: those in vectors, or those of any width and of float64."""
    from attlas.attend import edge_lines, edge_loops

    if vectors and not double:
        return machine_code(("edges", what), lambda: edge_lines.compiled(what))
    return machine_code(("edges", what, double), lambda: edge_loops.compiled(what, double))


def _starts(pointer: Tensor) -> Tensor:
    """Nodes at which pieces of about equal work begin: edges, and the nodes themselves."""
    nodes = pointer.numel() - 1
    work = pointer + torch.arange(nodes + 1)
    cuts = torch.arange(PIECES + 1) * (int(work[-1]) / PIECES) if nodes else torch.zeros(1)
    starts = torch.searchsorted(work.double(), cuts.double())
    starts[0], starts[-1] = 0, nodes
    return starts
