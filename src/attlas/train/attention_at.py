"""Attention AT and iAT: training against the worst small change of the attention scores.

Source: Kitada & Iyatomi 2020, arXiv 2009.12064; official code shunk031/attention-meets-perturbation.
Legend: scores (..., N), every row (the last axis) is one sentence, or one query of one head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AT",
    "IAT",
    "AttentionTraining",
    "DirectionNorm",
    "Perturbation",
    "RandomDirection",
    "adversarial_loss",
    "answer_loss",
    "at_perturbation",
    "iat_perturbation",
    "random_perturbation",
]

DirectionNorm = Literal["row", "global", "none"]
TINY = 1e-12  # norms below it count as this, as in torch's normalize


def at_perturbation(
    gradient: Float[Tensor, "*B N"], eps: float, valid: Bool[Tensor, "*B N"] | None = None
) -> Float[Tensor, "*B N"]:
    """r = eps g / ||g||_2, the norm over a row; 0 on padding, and where the whole gradient is 0.

    ValueError: eps is negative or not finite.
    """
    _check_size(eps)
    wide = _kept(gradient, valid)
    return (eps * wide / wide.norm(dim=-1, keepdim=True).clamp_min(TINY)).to(gradient.dtype)


def iat_perturbation(
    gradient: Float[Tensor, "*B N"],
    scores: Float[Tensor, "*B N"],
    eps: float,
    valid: Bool[Tensor, "*B N"] | None = None,
    *,
    direction_norm: DirectionNorm = "row",
) -> Float[Tensor, "*B N"]:
    """r_t = sum_k w_tk d_tk along differences of scores d_tk = a_t - a_k, w = eps G / ||G||, G_tk = g_t d_tk.

    direction_norm: d_t as it is ("none"), divided by its norm over k ("row"), or by the norm over all pairs
    ("global"). ||G|| is over all pairs of a row. With D_t = sum_k d_tk^2 this is

        r_t = eps g_t D_t / sqrt(sum_s g_s^2 D_s),

    and no pair is ever formed. With "row", D_t = 1: the result is exactly `at_perturbation`, except where all
    scores of a sentence are equal (r = 0). "none" and "global" have another norm than eps.

    ValueError: eps as in `at_perturbation`, another direction_norm, no token.
    """
    _check_size(eps)
    _check_direction(direction_norm)
    if not scores.shape[-1]:
        raise ValueError(
            f"iat_perturbation: scores must have at least one token in a row, got shape {tuple(scores.shape)}"
        )
    wide, squares = _kept(gradient, valid), _squared_differences(scores, valid)
    if direction_norm == "row":
        squares = _differ(scores, valid).to(squares.dtype)
    elif direction_norm == "global":
        squares = squares / squares.sum(-1, keepdim=True).clamp_min(TINY**2)
    norm = (wide.square() * squares).sum(-1, keepdim=True).sqrt()
    return (eps * wide * squares / norm.clamp_min(TINY)).to(gradient.dtype)


def random_perturbation(
    scores: Float[Tensor, "*B N"],
    eps: float,
    valid: Bool[Tensor, "*B N"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*B N"]:
    """A random direction of norm eps on the valid tokens of every row: the control."""
    drawn = torch.randn(scores.shape, generator=generator, dtype=torch.float32).to(scores.device)
    return at_perturbation(drawn, eps, valid).to(scores.dtype)


Perturbation: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From the loss's gradient in the scores, the scores, and the valid tokens to the change of the scores."""


@dataclass(frozen=True)
class AT:
    """`at_perturbation` of norm `eps`."""

    eps: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.eps)

    def __call__(self, gradient: Tensor, scores: Tensor, valid: Tensor | None) -> Tensor:
        return at_perturbation(gradient, self.eps, valid)


@dataclass(frozen=True)
class IAT:
    """`iat_perturbation`; official: what the released file computes, `at_perturbation` with the sign turned.

    There differences are taken between the sentences of the batch and come with weights of zero, so that they
    drop out, and the step is along -g: towards a smaller loss.
    """

    eps: float = 1.0
    direction_norm: DirectionNorm = "row"
    official: bool = False

    def __post_init__(self) -> None:
        _check_size(self.eps)
        _check_direction(self.direction_norm)

    def __call__(self, gradient: Tensor, scores: Tensor, valid: Tensor | None) -> Tensor:
        if self.official:
            return at_perturbation(-gradient, self.eps, valid)
        return iat_perturbation(gradient, scores, self.eps, valid, direction_norm=self.direction_norm)


@dataclass(frozen=True)
class RandomDirection:
    """`random_perturbation` of norm `eps`, drawn from `generator`."""

    eps: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        _check_size(self.eps)

    def __call__(self, gradient: Tensor, scores: Tensor, valid: Tensor | None) -> Tensor:
        return random_perturbation(scores, self.eps, valid, generator=self.generator)


def adversarial_loss(
    loss_at: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "*B N"],
    perturbation: Perturbation,
    *,
    valid: Bool[Tensor, "*B N"] | None = None,
    weight: float = 1.0,
    official: bool = False,
) -> Float[Tensor, ""]:
    """L = loss_at(0) + weight loss_at(r), r from the gradient of loss_at at 0, and detached.

    loss_at: r -> scalar loss with r added to the scores, for instance of a model that attends with
    `Dot() + Given(r)`. What does not depend on r (an encoder) is best computed before and only used in it.
    Cost: one more forward of loss_at and one backward from the loss to r.

    official: the released training leaves the gradients of its first backward in the parameters and adds the
    others, so that the clean loss counts twice in the gradient (not in the value). ValueError: loss_at does
    not depend on its argument.
    """
    start = torch.zeros_like(scores).requires_grad_()
    clean = loss_at(start)
    gradient = torch.autograd.grad(clean, start, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        raise ValueError("loss_at does not depend on its argument; it must add it to the attention scores")
    changed = loss_at(perturbation(gradient, scores.detach(), valid).detach())
    total = clean + weight * changed
    return total + (clean - clean.detach()) if official else total


def answer_loss(logits: Float[Tensor, "B C"], labels: Tensor) -> Float[Tensor, ""]:
    """Mean binary cross-entropy for one logit (labels 0 and 1), else cross-entropy, in nats."""
    wide = _wide(logits)
    if wide.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(wide[:, 0], labels.to(wide.dtype))
    return functional.cross_entropy(wide, labels)


@dataclass(frozen=True)
class AttentionTraining:
    """The objective for `fit`: `adversarial_loss` of an `AttentionClassifier` on (inputs, labels).

    Any model with `encode(inputs)` (with a field `valid`), `scores(encoded)` and `answer(encoded, scores)`
    will do. The encoder runs once. In evaluation mode it is the clean loss.
    """

    perturbation: Perturbation
    weight: float = 1.0
    official: bool = False

    def __call__(self, model: nn.Module, batch: tuple[Any, Tensor]) -> Float[Tensor, ""]:
        inputs, labels = batch
        part: Any = model
        encoded = part.encode(inputs)
        scores = part.scores(encoded)

        def loss_at(step: Tensor) -> Tensor:
            return answer_loss(part.answer(encoded, scores + step), labels)

        if not model.training or not torch.is_grad_enabled():
            return loss_at(torch.zeros_like(scores))
        return adversarial_loss(
            loss_at,
            scores,
            self.perturbation,
            valid=encoded.valid,
            weight=self.weight,
            official=self.official,
        )


def _check_size(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(
            f"eps must be a finite number of at least 0, got {eps}: against the gradient the loss falls"
        )


def _check_direction(direction_norm: str) -> None:
    if direction_norm not in get_args(DirectionNorm):
        raise ValueError(
            f"direction_norm must be one of {', '.join(get_args(DirectionNorm))}, got {direction_norm!r}"
        )


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _kept(values: Tensor, valid: Tensor | None) -> Tensor:
    """float32 or wider, 0 on padding."""
    wide = _wide(values)
    return wide if valid is None else wide.masked_fill(~valid, 0.0)


def _differ(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Where d_t is not 0: at the valid tokens of rows whose scores are not all equal."""
    there = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    most = scores.masked_fill(~there, -float("inf")).amax(-1, keepdim=True)
    least = scores.masked_fill(~there, float("inf")).amin(-1, keepdim=True)
    return there & (most > least)


def _squared_differences(scores: Tensor, valid: Tensor | None) -> Tensor:
    """D_t = sum_k (a_t - a_k)^2 over the valid k: n (a_t - mean)^2 + sum_k (a_k - mean)^2; 0 on padding."""
    wide = _kept(scores, valid)
    there = torch.ones_like(wide) if valid is None else valid.to(wide.dtype)
    count = there.sum(-1, keepdim=True)
    centred = (wide - wide.sum(-1, keepdim=True) / count.clamp_min(1)) * there
    square = centred.square()
    return (count * square + square.sum(-1, keepdim=True)) * there
