"""The chunked backend: one sweep forward, one in reverse that recomputes every group from its first state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attlas.attend.once import once
from attlas.scan.chunk import Group, group_step
from attlas.scan.terms import Terms

__all__ = ["CHUNK", "sweep"]

CHUNK, CHANNEL_CHUNK = 64, 16
GROUP = 2**20
"""Numbers of one intermediate tensor of a group: small enough for a cache, large enough for few calls."""
NAMES = ("query", "key", "value", "decay", "gate", "sums")


def sweep(terms: Terms, chunk: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, H, n, V), the sums after the last token, their log-scale."""
    _check_features(terms)
    tensors = [getattr(terms, name) for name in NAMES]
    found: tuple[Tensor, Tensor, Tensor] = _Sweep.apply(terms, _pieces(terms, chunk), *tensors)
    return found


def _check_features(terms: Terms) -> None:
    """Features with gradients of their own would lose them in the sweep."""
    if not torch.is_grad_enabled():
        return
    found = terms.kernel.features(terms.query[:, :, :1].detach(), terms.positions[:, :1])
    if found.requires_grad:
        raise ValueError(
            "scan: the kernel's features hold tensors with gradients, which a sweep by chunks would not give "
            "them: set inside=False (Feature(fn, positive, inside=False)), and they are made before it"
        )


@dataclass(frozen=True)
class _Piece:
    """Tokens [start, stop) in chunks of `chunk`."""

    start: int
    stop: int
    chunk: int

    def of(self, tensor: Tensor, *, constant: bool = False) -> Tensor:
        """The piece of a tensor, (.., C, c, ..); of one that is constant along the tokens, one chunk."""
        if constant:
            return tensor.narrow(2, 0, self.chunk).unflatten(2, (1, self.chunk))
        return tensor.narrow(2, self.start, self.stop - self.start).unflatten(2, (-1, self.chunk))

    def parts(self, terms: Terms, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The pieces of query, key, value, decay and gate."""
        return [
            None if tensor is None else self.of(tensor, constant=name == "decay" and terms.constant)
            for name, tensor in zip(NAMES, tensors, strict=False)
        ]

    def add(self, target: Tensor, part: Tensor) -> None:
        """Add a gradient of what `of` gave to the gradient of the whole, whatever its memory."""
        flat = part.flatten(2, 3)
        start = 0 if flat.shape[2] < self.stop - self.start else self.start
        target.narrow(2, start, flat.shape[2]).add_(flat)


def _pieces(terms: Terms, chunk: int | None) -> list[_Piece]:
    """Groups of whole chunks, then the rest as one short chunk: nothing is padded."""
    length = terms.length
    chunk = min(length, chunk or (CHANNEL_CHUNK if terms.channels else CHUNK))
    batch, heads, features, columns = terms.sums.shape
    numbers = batch * heads * max(chunk * (terms.query.shape[-1] if terms.channels else 1), features, columns)
    size = max(1, min(64, GROUP // max(1, numbers * chunk))) * chunk
    whole = length - length % chunk
    pieces = [_Piece(start, min(start + size, whole), chunk) for start in range(0, whole, size)]
    if whole < length:
        pieces.append(_Piece(whole, length, length - whole))
    return pieces


def _step(terms: Terms, piece: _Piece, parts: Sequence[Tensor | None], scale: Tensor) -> tuple[Tensor, ...]:
    """Outputs of a piece (B, H, tokens, V), sums and scale after it."""
    query, key, value, decay, gate, sums = parts
    assert query is not None and key is not None and value is not None and sums is not None
    group = Group(
        query, key, terms.columns(value), decay, gate,
        None if terms.live is None else piece.of(terms.live),
        None if terms.fresh is None else piece.of(terms.fresh),
        terms.positions[:, piece.start : piece.stop],
        sums, scale, terms.kernel, terms.normalise and terms.gate is not None,
    )  # fmt: skip
    found, sums, scale = group_step(group)
    out = terms.finish(found).flatten(2, 3).to(value.dtype)
    if terms.shown is not None:
        out = out.masked_fill(~terms.shown[:, None, piece.start : piece.stop, None], 0.0)
    return out, sums, scale


class _Sweep(torch.autograd.Function):
    """Saves its inputs and the state before every group."""

    @staticmethod
    def forward(ctx: Any, terms: Terms, pieces: list[_Piece], *tensors: Tensor | None) -> Any:
        *moving, sums = tensors
        assert sums is not None
        out = torch.empty_like(terms.value)
        states, scales, scale = [], [], terms.scale
        for piece in pieces:
            states.append(sums)
            scales.append(scale)
            part, sums, scale = _step(terms, piece, [*piece.parts(terms, moving), sums], scale)
            out[:, :, piece.start : piece.stop] = part
        ctx.save_for_backward(*moving, *states)
        ctx.terms, ctx.pieces, ctx.scales, ctx.count = terms, pieces, scales, len(moving)
        scale = scale.clone()
        ctx.mark_non_differentiable(scale)
        return out, sums.clone() if sums is terms.sums else sums, scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_out, grad_sums, _ = grads
        moving, states = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        wanted = ctx.needs_input_grad[2:]
        totals = [
            torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            if want and tensor is not None
            else None
            for tensor, want in zip(moving, wanted, strict=False)
        ]
        again = torch.is_grad_enabled()
        for piece, sums, scale in zip(
            reversed(ctx.pieces), reversed(states), reversed(ctx.scales), strict=True
        ):
            grad = grad_out[:, :, piece.start : piece.stop]
            grad_sums = _step_back(ctx.terms, piece, moving, sums, scale, totals, grad, grad_sums)
        found = [*totals, grad_sums if wanted[-1] else None]
        if again:
            found = once(
                found,
                (*(t for t in moving if t is not None), states[0], grad_out, grad_sums),
                "scan: the backend 'chunk'",
            )
        return None, None, *found


def _step_back(
    terms: Terms,
    piece: _Piece,
    moving: Sequence[Tensor | None],
    sums: Tensor,
    scale: Tensor,
    totals: Sequence[Tensor | None],
    grad_out: Tensor,
    grad_sums: Tensor,
) -> Tensor:
    """Add a piece's gradients to `totals`; the gradient of the sums before it."""
    leaves: list[Tensor | None] = [
        None if part is None else part.detach().requires_grad_(total is not None)
        for part, total in zip(piece.parts(terms, moving), totals, strict=True)
    ]
    before = sums.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(sums.device.type, enabled=False):
        out, after, _ = _step(terms, piece, [*leaves, before], scale)
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = torch.autograd.grad((out, after), (*asked, before), (grad_out, grad_sums), allow_unused=True)
    parts = iter(found[:-1])
    for leaf, total in zip(leaves, totals, strict=True):
        if leaf is not None and leaf.requires_grad and total is not None:
            part = next(parts)
            if part is not None:
                piece.add(total, part)
    return torch.zeros_like(sums) if found[-1] is None else found[-1]
