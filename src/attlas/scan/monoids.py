"""Monoids for `prefix`: how two neighbouring stretches of a sequence become one.

Legend: B batch, H heads, N tokens, E width. An element is a tuple of tensors that share their leading axes;
a tensor with fewer axes than another counts for all of that one's last axes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Add", "Affine", "Element", "LogSumExp", "Max", "Monoid", "SoftmaxMean", "TopR"]

Element = tuple[Tensor, ...]
INFINITY = float("inf")


class Monoid(ABC):
    """An associative `combine` with an `identity`; elementwise along every axis that is scanned.

    `names`: of an element's tensors. `wants`: why these leaves cannot be scanned along `dim`, or None.
    `within` gives the prefixes of at most `longest` leaves (None: of any number), without a state; its cost
    may be `longest` per leaf.
    """

    names: ClassVar[tuple[str, ...]]
    longest: ClassVar[int | None] = 64

    @abstractmethod
    def combine(self, earlier: Element, later: Element) -> Element:
        """The element of a stretch and the one behind it."""

    @abstractmethod
    def identity(self, like: Element) -> Element:
        """The element of no leaves at all, of the shapes, dtypes and devices of `like`."""

    def wants(self, leaves: Element, dim: int) -> str | None:
        """None unless this monoid puts a condition on its leaves."""
        return None

    def within(self, leaves: Element, dim: int) -> Element:
        """One leaf after the other, all chunks beside each other at once."""
        rows = list(zip(*(leaf.unbind(dim) for leaf in leaves), strict=True))
        found = [rows[0]]
        for row in rows[1:]:
            found.append(self.combine(found[-1], row))
        return tuple(torch.stack(parts, dim) for parts in zip(*found, strict=True))


@dataclass(frozen=True)
class Add(Monoid):
    """(x): sums; identity 0."""

    names = ("x",)
    longest = None

    def combine(self, earlier: Element, later: Element) -> Element:
        return (earlier[0] + later[0],)

    def identity(self, like: Element) -> Element:
        return (torch.zeros_like(like[0]),)

    def within(self, leaves: Element, dim: int) -> Element:
        return (leaves[0].cumsum(dim),)


@dataclass(frozen=True)
class Max(Monoid):
    """(x): the largest so far; identity -inf. Its gradient goes to one leaf, of equal ones the last."""

    names = ("x",)
    longest = None

    def combine(self, earlier: Element, later: Element) -> Element:
        return (torch.where(later[0] >= earlier[0], later[0], earlier[0]),)

    def identity(self, like: Element) -> Element:
        return (torch.full_like(like[0], -INFINITY),)

    def within(self, leaves: Element, dim: int) -> Element:
        return (leaves[0].cummax(dim).values,)


@dataclass(frozen=True)
class Affine(Monoid):
    """(a, b): the maps h -> a h + b, one after the other; identity (1, 0).

    With a state (1, h) the second tensor of the prefixes is the recurrence h_i = a_i h_{i-1} + b_i itself.
    """

    names = ("a", "b")

    def combine(self, earlier: Element, later: Element) -> Element:
        (first, start), (factor, shift) = earlier, later
        return first * factor, torch.addcmul(shift, _fit(factor, shift), start)

    def identity(self, like: Element) -> Element:
        return torch.ones_like(like[0]), torch.zeros_like(like[1])


@dataclass(frozen=True)
class LogSumExp(Monoid):
    """(x): log of the sum of exponentials; identity -inf, which adds nothing and gets gradient 0."""

    names = ("x",)

    def combine(self, earlier: Element, later: Element) -> Element:
        both = torch.stack(torch.broadcast_tensors(earlier[0], later[0]))
        return (_log_sum(both, _finite(both.detach().amax(0)), 0),)

    def identity(self, like: Element) -> Element:
        return (torch.full_like(like[0], -INFINITY),)

    def within(self, leaves: Element, dim: int) -> Element:
        logits = leaves[0].movedim(dim, -1)
        top = _finite(logits.detach().cummax(-1).values)
        seen = _earlier(logits.shape[-1], logits.device)
        rows = logits.unsqueeze(-2).masked_fill(~seen, -INFINITY)  # (..., receiver, sender)
        return (_log_sum(rows, top, -1).movedim(-1, dim),)


@dataclass(frozen=True)
class SoftmaxMean(Monoid):
    """(m, u, w): a softmax average of values as maximum, sum of weights and weighted sum of values.

    m, u (..., N), w (..., N, E); identity (-inf, 0, 0). `leaf` makes elements, `mean` reads them:

        (m1, u1, w1) + (m2, u2, w2) = (M, u1 e^(m1 - M) + u2 e^(m2 - M), w1 e^(m1 - M) + w2 e^(m2 - M)),
        M = max(m1, m2)

    Exact for logits of any size. Source: Feng et al. 2024, arXiv 2405.13956.
    """

    names = ("m", "u", "w")

    @staticmethod
    def leaf(logit: Tensor, value: Tensor) -> Element:
        """The element of one key: logit (..., N), value (..., N, E); a logit of -inf is no key."""
        absent = logit == -INFINITY
        weight = torch.ones_like(logit).masked_fill(absent, 0.0)
        return logit, weight, value.masked_fill(absent.unsqueeze(-1), 0.0)

    @staticmethod
    def mean(element: Element) -> Tensor:
        """The softmax average w / u, 0 where there was no key."""
        _, total, value = element
        some = total > 0
        return value / torch.where(some, total, 1.0).unsqueeze(-1)

    @staticmethod
    def lse(element: Element) -> Tensor:
        """Log of the sum of exponentials, -inf where there was no key."""
        top, total, _ = element
        some = total > 0
        return torch.where(some, torch.where(some, total, 1.0).log() + _finite(top), -INFINITY)

    def combine(self, earlier: Element, later: Element) -> Element:
        top = torch.maximum(earlier[0], later[0])
        base = _finite(top)
        first, second = (earlier[0] - base).exp(), (later[0] - base).exp()
        total = earlier[1] * first + later[1] * second
        value = earlier[2] * first.unsqueeze(-1) + later[2] * second.unsqueeze(-1)
        return top, total, value

    def identity(self, like: Element) -> Element:
        return torch.full_like(like[0], -INFINITY), torch.zeros_like(like[1]), torch.zeros_like(like[2])

    def wants(self, leaves: Element, dim: int) -> str | None:
        if leaves[0].dim() == leaves[1].dim() == dim + 1 and leaves[2].dim() == dim + 2:
            return None
        return "m and u need the axis dim as their last one, w one axis more"

    def within(self, leaves: Element, dim: int) -> Element:
        top, total, value = leaves
        running = top.cummax(-1).values
        seen = _earlier(top.shape[-1], top.device)
        # The mask comes before exp: a later, larger logit would overflow.
        gap = (top.unsqueeze(-2) - _finite(running).unsqueeze(-1)).masked_fill(~seen, -INFINITY)
        weight = gap.exp()
        both = weight @ torch.cat([total.unsqueeze(-1), value], -1)
        return running, both[..., 0], both[..., 1:]


@dataclass(frozen=True)
class TopR(Monoid):
    """(values, index): the r largest so far, in falling order, and where they were; of equals the earlier.

    values (..., r), index (..., r) int64; identity: -inf at index -1. `leaf` makes elements of scores.
    """

    r: int

    names = ("values", "index")

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"TopR: r must be an integer of at least 1, got {self.r!r}")

    def leaf(self, score: Tensor, index: Tensor) -> Element:
        """Elements (..., N, r) of scores (..., N); index broadcasts to them; a score of -inf is absent."""
        index = index.expand(score.shape).masked_fill(score == -INFINITY, -1)
        rest = (*score.shape, self.r - 1)
        values = torch.cat([score.unsqueeze(-1), score.new_full(rest, -INFINITY)], -1)
        return values, torch.cat([index.unsqueeze(-1), index.new_full(rest, -1)], -1)

    def combine(self, earlier: Element, later: Element) -> Element:
        values, index = (
            torch.cat(torch.broadcast_tensors(*pair), -1) for pair in zip(earlier, later, strict=True)
        )
        found = values.sort(dim=-1, descending=True, stable=True)
        return found.values[..., : self.r], index.gather(-1, found.indices[..., : self.r])

    def identity(self, like: Element) -> Element:
        return torch.full_like(like[0], -INFINITY), torch.full_like(like[1], -1)

    def wants(self, leaves: Element, dim: int) -> str | None:
        if all(leaf.dim() > dim + 1 and leaf.shape[-1] == self.r for leaf in leaves):
            return None
        return f"values and index need a last axis of r = {self.r} behind the axis dim; TopR.leaf makes them"


def _fit(x: Tensor, like: Tensor) -> Tensor:
    """x with axes of length 1 behind its own, to broadcast against `like`."""
    return x[(...,) + (None,) * (like.dim() - x.dim())]


def _finite(top: Tensor) -> Tensor:
    """A maximum to subtract: 0 where there is none, so that -inf - -inf never happens."""
    return torch.where(top == -INFINITY, 0.0, top)


def _log_sum(logits: Tensor, top: Tensor, dim: int) -> Tensor:
    """log of the sum of exp over `dim`, shifted by `top`; -inf, gradient 0, where every logit is -inf."""
    total = (logits - top.unsqueeze(dim)).exp().sum(dim)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1.0).log() + top, -INFINITY)


def _earlier(count: int, device: torch.device) -> Tensor:
    """(receiver, sender): true where the sender is not later."""
    return torch.ones(count, count, dtype=torch.bool, device=device).tril()
