"""Reductions over the edges of every node, the same for any order of the edges.

Legend: E edges, n nodes, C channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph.graph import Sorted

__all__ = ["segment_reduce", "segment_softmax"]


def segment_reduce(x: Float[Tensor, "E *C"], edges: Sorted, reduce: str = "sum") -> Float[Tensor, "n *C"]:
    """x of the edges (in the graph's order) reduced at every node of `edges`; 0 at a node without edges.

    reduce: "sum", "mean", "max" or "min". edges: `graph.by_receiver` (messages that arrive) or
    `graph.by_sender`. Sums run in one order for each node, without atomics: bitwise the same every time.
    Gradients: those of torch.segment_reduce; equal maxima share theirs. Cost: E C reads and a sorted copy.
    """
    if reduce not in ("sum", "mean", "max", "min"):
        raise ValueError(f"reduce must be 'sum', 'mean', 'max' or 'min', got {reduce!r}")
    if x.shape[0] != edges.order.numel():
        raise ValueError(f"x must have one row for each of {edges.order.numel()} edges, got {tuple(x.shape)}")
    nodes = edges.pointer.numel() - 1
    if not x.numel() or not nodes:
        return x.new_zeros(nodes, *x.shape[1:])
    initial = 0.0 if reduce == "sum" else None
    found = torch.segment_reduce(
        x[edges.order], reduce, offsets=edges.pointer, axis=0, unsafe=True, initial=initial
    )
    empty = (edges.pointer.diff() == 0).view(-1, *[1] * (x.dim() - 1))
    return found.masked_fill(empty, 0.0)


def segment_softmax(logits: Float[Tensor, "E *C"], edges: Sorted) -> Float[Tensor, "E *C"]:
    """Softmax of the logits over the edges of each node, in the graph's order; -inf is an absent edge.

    A node whose edges are all absent gets weights 0. Cost: O(E C) time and memory; `attend` over the graph
    does the same without weights in memory.
    """
    if logits.shape[0] != edges.order.numel():
        raise ValueError(
            f"logits must have one row for each of {edges.order.numel()} edges, got {tuple(logits.shape)}"
        )
    counts = edges.pointer.diff()
    node = torch.repeat_interleave(torch.arange(counts.numel(), device=logits.device), counts)
    sorted_logits = logits[edges.order]
    top = segment_reduce(logits.detach(), edges, "max")[node]
    power = (sorted_logits - torch.where(top.isfinite(), top, 0.0)).exp()
    total = logits.new_zeros(counts.numel(), *logits.shape[1:]).index_add(0, node, power)
    weights = power / torch.where(total > 0, total, 1.0)[node]
    back = torch.empty_like(edges.order)
    back[edges.order] = torch.arange(edges.order.numel(), device=logits.device)
    return weights[back]
