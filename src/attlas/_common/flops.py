"""Arithmetic of a call, counted while it runs: for budgets of FLOPs that no formula by hand has to follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Flops", "count_flops"]

# Operations that only place numbers, beside those that are views.
_MOVES = """
    _to_copy _unsafe_view as_strided_scatter cat clone constant_pad_nd copy copy_ detach embedding
    embedding_dense_backward empty empty_like empty_permuted empty_strided expand_copy fill fill_ flip full
    full_like gather index index_put index_put_ index_select new_empty new_empty_strided new_full new_ones
    new_zeros ones ones_like repeat roll scalar_tensor select_backward select_scatter slice_backward
    slice_scatter stack t_copy tril triu where zero zero_ zeros zeros_like
"""
MOVES = frozenset(_MOVES.split())


@dataclass(frozen=True)
class Flops:
    """total: arithmetic operations; a product of matrices counts 2 per multiply-add. unknown: operations
    that were seen and cannot be counted, by name."""

    total: int
    unknown: tuple[str, ...] = ()


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _FORMULAS:
            self.total += int(_FORMULAS[packet](*args, **kwargs))
        elif packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif func.namespace not in ("aten", "prim", "prims"):
            self.unknown.add(func.name())
        elif not func.is_view and packet.__name__ not in MOVES:
            self.total += _elements(packet.__name__, out, args)
        return out


def _elements(name: str, out: Any, args: Any) -> int:
    """One operation for each number of the largest floating tensor read or written."""
    results = [leaf for leaf in tree_leaves(out) if _real(leaf)]
    if not results:
        return 0
    largest = max(leaf.numel() for leaf in (*results, *filter(_real, tree_leaves(args))))
    if name.startswith("_fft"):
        length = max(leaf.shape[-1] for leaf in results)
        return int(2.5 * largest * math.log2(max(2, length)))  # radix 2, of real numbers
    return largest


def _real(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _flash(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> int:
    """Two products per pair; of causal attention only the pairs that are seen."""
    causal = named.get("is_causal", rest[1] if len(rest) > 1 else False)
    return 2 * _pairs(query, key, causal) * (query.shape[3] + value.shape[3])


def _flash_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> int:
    """Five products per pair: logits again, and the gradients of weights, value, query and key."""
    causal = named.get("is_causal", rest[3] if len(rest) > 3 else False)
    return 2 * _pairs(query, key, causal) * (3 * query.shape[3] + 2 * value.shape[3])


def _pairs(query: Tensor, key: Tensor, causal: bool) -> int:
    batch, heads, rows, _ = query.shape
    keys = key.shape[2]
    seen = sum(min(row + 1, keys) for row in range(rows)) if causal else rows * keys
    return batch * heads * seen


_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


def count_flops(run: Callable[[], Any]) -> Flops:
    """Run and count, backward passes included.

    Products of matrices, convolutions and attention by torch's own formulas (causal flash attention at the
    pairs that are seen), other floating-point operations at one per element, 2.5 log2 n per element of a
    Fourier transform, nothing for moving. Kernels of other libraries count where they registered a formula
    (`torch.utils.flop_counter.register_flop_formula`), else they are named in `unknown`; a kernel that torch
    does not dispatch is not seen.
    """
    with _Counting() as mode:
        run()
    return Flops(mode.total, tuple(sorted(mode.unknown)))
