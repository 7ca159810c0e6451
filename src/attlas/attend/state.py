"""What a partial attention must remember so that parts merge exactly, and the merges.

Legend: B batch, H query heads, N queries, V value width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Part", "State", "merge", "merge_mean", "merge_softmax", "merge_sum"]

PLAIN = "softmax"
"""Name of the normaliser of a state that holds none."""


@runtime_checkable
class Merges(Protocol):
    """Whatever can merge parts: every normaliser does, or says why it cannot."""

    @property
    def name(self) -> str: ...

    def merge(self, parts: "Sequence[Part]") -> "Part": ...


@dataclass(frozen=True, eq=False)
class State:
    """Row statistics of a (partial) attention.

    lse: log of the sum of exp(logit) over the row's edges, without any sink, float32 or float64; -inf for a
    row without edges. It carries gradient. For normalisers whose parts simply add up it is 0 where the row
    has edges. `total`: the divisor of an L1 or (without eps) a Ratio normalisation. `normaliser`: whose merge
    applies; None means softmax.
    """

    lse: Float[Tensor, "B H N"]
    total: Float[Tensor, "B H N"] | None = None
    normaliser: Merges | None = None


Part = tuple[Tensor, State]


def merge(parts: Sequence[Part]) -> Part:
    """Merge [(out, state), ...] of disjoint edge sets into the (out, state) of their union.

    Exact in value and gradient: grad(merge(parts)) = grad(whole). An empty part (out 0, lse -inf) adds
    nothing, two empty parts stay empty. ValueError: no parts, parts of different normalisers (of another
    kind, or with another number or tensor in them), shapes that differ.
    """
    if not parts:
        raise ValueError("merge: expected at least one (out, state), got none")
    for number, part in enumerate(parts):
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], State)):
            raise TypeError(
                f"merge: part {number} must be (out, state) as attend(..., return_state=True) gives it, got "
                f"{_kinds(part)}"
            )
    shape = parts[0][0].shape
    for number, (out, state) in enumerate(parts):
        if out.shape != shape or state.lse.shape != shape[:-1]:
            raise ValueError(
                f"merge: all parts must have the shape of the first, out {tuple(shape)} and lse "
                f"{tuple(shape[:-1])}; part {number} has out {tuple(out.shape)} and lse "
                f"{tuple(state.lse.shape)}"
            )
    _check_normalisers([state.normaliser for _, state in parts])
    rules = [state.normaliser for _, state in parts if state.normaliser is not None]
    return rules[0].merge(parts) if rules else merge_softmax(parts)


def _check_normalisers(rules: Sequence[Merges | None]) -> None:
    for number, rule in enumerate(rules):
        if not _alike(rule, rules[0]):
            first, other = (PLAIN if one is None else one.name for one in (rules[0], rule))
            told = " with other values in it" if first == other else ""
            raise ValueError(
                f"merge: parts come from different normalisers: part 0 from {first}, part {number} from "
                f"{other}{told}"
            )


def _alike(one: object, other: object) -> bool:
    """Whether two normalisers, or what they hold, are the same in kind and in value."""
    if one is other:
        return True
    if one is None or other is None:
        # A state without a normaliser is that of plain softmax.
        held = other if one is None else one
        return isinstance(held, Merges) and held.name == PLAIN
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, Merges):
        mine, its = vars(one), vars(other)
        return mine.keys() == its.keys() and all(_alike(mine[name], its[name]) for name in mine)
    return bool(one == other)


def _kinds(part: object) -> str:
    if isinstance(part, tuple | list):
        return f"({', '.join(type(one).__name__ for one in part)})"
    return type(part).__name__


def merge_softmax(parts: Sequence[Part], sink: Tensor | None = None) -> Part:
    """out = Σ_p out_p exp(lse_p' - lse'), lse = log Σ_p exp(lse_p); lse' = log(exp(lse) + exp(sink)).

    `sink` (broadcasts to B, H, N) takes weight but carries nothing; each part's out was formed with it.
    """
    lse = torch.stack([state.lse for _, state in parts])
    joined = _log_sum(lse)
    if sink is None:
        top = joined.detach()
        weight = _ratio(lse, joined, top)
    else:
        with_sink = torch.logaddexp(lse, sink.to(lse.dtype)) - torch.logaddexp(joined, sink.to(lse.dtype))
        weight = torch.where(lse > -float("inf"), with_sink.exp(), 0.0)
    outs = torch.stack([out for out, _ in parts])
    out = (weight.unsqueeze(-1) * outs.to(weight.dtype)).sum(0).to(parts[0][0].dtype)
    return out, State(joined, None, parts[0][1].normaliser)


def merge_sum(parts: Sequence[Part]) -> Part:
    """out = Σ_p out_p: for weights of which each depends on its own edge alone."""
    out = torch.stack([out for out, _ in parts]).sum(0)
    lse = torch.stack([state.lse for _, state in parts]).amax(0)
    return out, State(lse, None, parts[0][1].normaliser)


def merge_mean(parts: Sequence[Part], eps: float = 0.0) -> Part:
    """out = Σ_p out_p (eps + total_p) / (eps + Σ_p total_p): for weights divided by their sum plus eps."""
    totals = torch.stack([_total(state) for _, state in parts])
    total = totals.sum(0)
    divisor = total + eps
    weight = (totals + eps) / torch.where(divisor == 0, 1.0, divisor)
    outs = torch.stack([out for out, _ in parts])
    out = (weight.unsqueeze(-1) * outs.to(weight.dtype)).sum(0).to(parts[0][0].dtype)
    lse = torch.stack([state.lse for _, state in parts]).amax(0)
    return out, State(lse, total, parts[0][1].normaliser)


def _total(state: State) -> Tensor:
    if state.total is None:
        raise ValueError(
            "merge: a part of an L1 or Ratio normaliser has no total; ask attend for return_state=True"
        )
    return state.total


def _log_sum(lse: Tensor) -> Tensor:
    """log Σ exp over axis 0; -inf (and gradient 0) where every term is -inf."""
    top = lse.detach().amax(0)
    top = torch.where(torch.isfinite(top), top, 0.0)
    total = (lse - top).exp().sum(0)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1.0).log() + top, -float("inf"))


def _ratio(lse: Tensor, joined: Tensor, top: Tensor) -> Tensor:
    """exp(lse - joined) with 0, not NaN, for rows where both are -inf; gradients flow to both."""
    some = torch.isfinite(top)
    base = torch.where(some, joined, 0.0)
    return (lse - base).exp()
