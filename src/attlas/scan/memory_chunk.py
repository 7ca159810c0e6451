"""One chunk of a test-time memory in its dual form: every token's read without any token's own weights.

Legend: B batch, H heads, b tokens of the chunk, D key width, V value width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attlas.scan.memory_rule import MemoryRule, Rank1

__all__ = ["Fast", "Steps", "advance_chunk"]


class Fast(NamedTuple):
    """What a memory carries: its weights and their momentum, and the weights that gradients are taken at."""

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    frozen: tuple[Tensor, ...]


class Steps(NamedTuple):
    """The factors of each token's step, (B, H, N) each."""

    alpha: Tensor
    eta: Tensor
    theta: Tensor
    commit: Tensor


@dataclass(frozen=True)
class Factors:
    """Both recurrences of a chunk, solved: with u_j the gradient of token j, W' and S' at the chunk's start,

    W_i = keep_i W' + push_i S' - sum_j write_ij u_j,     S_i = roll_i S' - sum_j slide_ij u_j   (j <= i).
    """

    keep: Float[Tensor, "B H b"]
    push: Float[Tensor, "B H b"]
    write: Float[Tensor, "B H b b"]
    roll: Float[Tensor, "B H b"]
    slide: Float[Tensor, "B H b b"]

    @classmethod
    def of(cls, steps: Steps) -> "Factors":
        """From S_i = eta_i S_(i-1) - theta_i u_i and W_i = (1 - alpha_i) W_(i-1) + commit_i S_i."""
        stay = 1 - steps.alpha
        decays, rolls = _products(stay), _products(steps.eta)
        roll = rolls[..., 0] * steps.eta[..., :1]
        slide = rolls * steps.theta[..., None, :]
        committed = decays * steps.commit[..., None, :]
        return cls(
            keep=decays[..., 0] * stay[..., :1],
            push=(committed @ roll[..., None])[..., 0],
            write=committed @ slide,
            roll=roll,
            slide=slide,
        )

    def before(self) -> tuple[Tensor, Tensor, Tensor]:
        """keep, push and write of the weights one token earlier, M_(i-1)."""
        keep = torch.cat([torch.ones_like(self.keep[..., :1]), self.keep[..., :-1]], -1)
        push = torch.cat([torch.zeros_like(self.push[..., :1]), self.push[..., :-1]], -1)
        write = torch.cat([torch.zeros_like(self.write[..., :1, :]), self.write[..., :-1, :]], -2)
        return keep, push, write


def advance_chunk(
    rule: MemoryRule,
    fast: Fast,
    query: Float[Tensor, "B H b D"],
    key: Float[Tensor, "B H b D"],
    value: Float[Tensor, "B H b V"],
    steps: Steps,
    *,
    exact: bool,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Reads (B, H, b, V) at every token's own weights, and weights and momentum after the last token.

    All gradients are taken at `fast.frozen`; exact: each at the weights before its own token, which a linear
    memory with squared error solves for at once. Cost: O(b) products with the weights, b² (D + V) and b³ for
    the factors.
    """
    factors = Factors.of(steps)
    if exact:
        gradients = [_sequential_errors(fast, key, value, factors)]
    else:
        gradients = rule.errors(fast.frozen, key, value)
    read, weights, momentum = query, [], []
    for layer, (inputs, errors) in enumerate(gradients):
        if layer:
            read = rule.activation.value(read)
        now, slide = fast.weights[layer], fast.momentum[layer]
        read = (
            factors.keep[..., None] * (read @ now)
            + factors.push[..., None] * (read @ slide)
            - (factors.write * (read @ inputs.mT)) @ errors
        )
        weights.append(
            factors.keep[..., -1, None, None] * now
            + factors.push[..., -1, None, None] * slide
            - (factors.write[..., -1, :, None] * inputs).mT @ errors
        )
        momentum.append(
            factors.roll[..., -1, None, None] * slide - (factors.slide[..., -1, :, None] * inputs).mT @ errors
        )
    return read, tuple(weights), tuple(momentum)


def _sequential_errors(fast: Fast, key: Tensor, value: Tensor, factors: Factors) -> Rank1:
    """Errors d_t = 2 (k_t M_(t-1) - v_t) of a linear memory: M_(t-1) is linear in the d before, a triangular
    system with ones on the diagonal."""
    keep, push, write = factors.before()
    known = keep[..., None] * (key @ fast.weights[0]) + push[..., None] * (key @ fast.momentum[0]) - value
    system = 2 * write * (key @ key.mT)
    errors = torch.linalg.solve_triangular(system, 2 * known, upper=False, unitriangular=True)
    return key, errors


def _products(x: Float[Tensor, "B H b"]) -> Float[Tensor, "B H b b"]:
    """Row i, column r <= i: the product of x over r < l <= i, never by division: x = 0 is legal; else 0."""
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril(-1)
    return torch.where(later, x[..., None], 1.0).cumprod(-2).tril()
