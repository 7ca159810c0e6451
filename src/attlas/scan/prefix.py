"""`prefix`: all prefixes of a sequence under a monoid, at linear cost."""

from math import isqrt

import torch
from torch import Tensor

from attlas.scan.monoids import Element, Monoid

__all__ = ["prefix"]


def prefix(
    monoid: Monoid,
    leaves: Element,
    *,
    dim: int = 2,
    state: Element | None = None,
    reverse: bool = False,
    chunk: int = 64,
) -> tuple[Element, Element]:
    """prefixes_i = state + leaf_0 + ... + leaf_i under the monoid's `combine`; returns (prefixes, last).

    leaves: the monoid's tensors, equal in their axes up to `dim`, which is scanned. state: an element without
    that axis (default: the identity); last: the same, to go on with. reverse: leaves are read from the end,
    prefixes_i = state + leaf_{n-1} + ... + leaf_i in this order, last = prefixes_0. Tensors of half precision
    are carried and returned in float32.

    Two levels: prefixes inside chunks of at most `chunk` leaves, all chunks beside each other, then those of
    the chunks' totals, in the same way. Cost: 2 n combinations in O(chunk log n / log chunk) steps, memory
    O(n), of LogSumExp and SoftmaxMean O(n chunk) weights; never n x n. TypeError and ValueError name the
    tensor that does not fit.
    """
    leaves = _checked(monoid, leaves, dim, chunk)
    axis = dim % leaves[0].dim()
    if state is not None:
        state = _checked_state(monoid, leaves, axis, state)
    if leaves[0].shape[axis] == 0:
        one = tuple(leaf.sum(axis) for leaf in leaves)
        return leaves, monoid.identity(one) if state is None else state
    if reverse:
        leaves = tuple(leaf.flip(axis) for leaf in leaves)
    found = _sweep(monoid, leaves, axis, state, chunk)
    last = tuple(part.select(axis, -1) for part in found)
    if reverse:
        found = tuple(part.flip(axis) for part in found)
    return found, last


def _sweep(monoid: Monoid, leaves: Element, dim: int, state: Element | None, chunk: int) -> Element:
    count = leaves[0].shape[dim]
    longest = chunk if monoid.longest is None else min(chunk, monoid.longest)
    # Equal work on both levels while one level of chunks is enough.
    size = min(longest, max(2, isqrt(count - 1) + 1))
    if monoid.longest is None or count <= 2:
        inside = monoid.within(leaves, dim)
        return inside if state is None else _after(monoid, state, inside, dim)
    missing = -count % size
    if missing:
        first = tuple(leaf.narrow(dim, 0, missing) for leaf in leaves)
        nothing = monoid.identity(first)
        leaves = tuple(torch.cat(pair, dim) for pair in zip(leaves, nothing, strict=True))
    inside = monoid.within(tuple(leaf.unflatten(dim, (-1, size)) for leaf in leaves), dim + 1)
    totals = tuple(part.select(dim + 1, -1) for part in inside)
    start = monoid.identity(tuple(part.select(dim, 0) for part in totals)) if state is None else state
    # The last chunk's total is not needed: nothing comes behind it.
    before: Element = tuple(part.unsqueeze(dim) for part in start)
    if totals[0].shape[dim] > 1:
        earlier = tuple(part.narrow(dim, 0, part.shape[dim] - 1) for part in totals)
        carried = _sweep(monoid, earlier, dim, state, chunk)
        before = tuple(torch.cat(pair, dim) for pair in zip(before, carried, strict=True))
    found = monoid.combine(tuple(part.unsqueeze(dim + 1) for part in before), inside)
    return tuple(part.flatten(dim, dim + 1).narrow(dim, 0, count) for part in found)


def _after(monoid: Monoid, state: Element, found: Element, dim: int) -> Element:
    return monoid.combine(tuple(part.unsqueeze(dim) for part in state), found)


def _wide(part: Tensor) -> Tensor:
    return part.float() if part.dtype in (torch.float16, torch.bfloat16) else part


def _checked(monoid: Monoid, leaves: Element, dim: int, chunk: int) -> Element:
    if not isinstance(monoid, Monoid):
        raise TypeError(f"prefix: monoid must be a Monoid such as Add(), got {monoid!r}")
    if chunk < 2:
        raise ValueError(f"prefix: chunk must be at least 2 leaves, got {chunk}")
    names = ", ".join(monoid.names)
    if not isinstance(leaves, tuple) or len(leaves) != len(monoid.names):
        what = f"{len(leaves)} of them" if isinstance(leaves, tuple) else type(leaves).__name__
        raise TypeError(
            f"prefix: leaves of {type(monoid).__name__} must be a tuple of tensors ({names}), got {what}"
        )
    fewest = min(leaf.dim() for leaf in leaves)
    if not -fewest <= dim < fewest or (dim < 0 and len({leaf.dim() for leaf in leaves}) > 1):
        raise ValueError(
            f"prefix: dim {dim} must be an axis that all leaves ({names}) have at the same place from the "
            f"front, got shapes {_shapes(leaves)}"
        )
    axis = dim % fewest
    if len({leaf.shape[: axis + 1] for leaf in leaves}) > 1:
        raise ValueError(
            f"prefix: leaves ({names}) must agree in their axes up to dim {dim}, got shapes {_shapes(leaves)}"
        )
    said = monoid.wants(leaves, axis)
    if said is not None:
        raise ValueError(f"prefix: {said}; got dim {dim} and shapes {_shapes(leaves)}")
    return tuple(_wide(leaf) for leaf in leaves)


def _checked_state(monoid: Monoid, leaves: Element, dim: int, state: Element) -> Element:
    wanted = [leaf.shape[:dim] + leaf.shape[dim + 1 :] for leaf in leaves]
    if not isinstance(state, tuple) or [part.shape for part in state] != wanted:
        got = _shapes(state) if isinstance(state, tuple) else type(state).__name__
        raise ValueError(
            f"prefix: state must be ({', '.join(monoid.names)}) as `last` of an earlier call, shapes "
            f"{', '.join(str(tuple(shape)) for shape in wanted)}, got {got}"
        )
    return tuple(_wide(part) for part in state)


def _shapes(parts: Element) -> str:
    return ", ".join(str(tuple(part.shape)) for part in parts)
