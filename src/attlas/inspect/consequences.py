"""What follows from writing mixers as systems in time, as checks that are computed, in float64."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from attlas.inspect import realisations as real

__all__ = ["Check", "consequences"]

LENGTH, FEATURES, WIDTH, PAIRS = 24, 4, 3, 16
ORDERS, EXPANSIONS = (2, 4, 6), (8, 32, 128)
EXACT = 1e-10


@dataclass(frozen=True)
class Check:
    """A consequence, the numbers that were computed for it, and whether they agree with it.

    An identity says so: its two sides are computed apart and can only differ by an error in either.
    """

    name: str
    says: str
    values: dict[str, float]
    holds: bool


def consequences(seed: int = 0) -> tuple[Check, ...]:
    """Four statements of arXiv 2405.15731 and the identity of two gates, on random tensors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        _coupled(draw(LENGTH, FEATURES), draw(LENGTH, FEATURES)),
        _undivided(draw(LENGTH, FEATURES), draw(LENGTH, FEATURES)),
        _infinite(draw(LENGTH, FEATURES) / 2, draw(LENGTH, FEATURES), draw(LENGTH, WIDTH)),
        _reversed_gate(draw(1000)),
        _expansion({size: draw(200, PAIRS, size) for size in EXPANSIONS}),
    )


def _coupled(q: Tensor, k: Tensor) -> Check:
    phi, psi = functional.elu(q) + 1, functional.elu(k) + 1
    eta = (phi @ psi.mT).tril().sum(-1)
    divided = real.coupled(real.linear_attention(phi, psi, WIDTH), eta).transfer()
    # As a state space model: the ratio of normalisers is its decay, 1/eta its input gate.
    decay = torch.cat([eta.new_zeros(1), eta[:-1].log() - eta[1:].log()])
    gated = real.linear_attention(phi, psi, WIDTH, log_decay=decay, log_gate=-eta.log()).transfer()
    error = (divided - gated).abs().max().item()
    return Check(
        "coupled normalisation",
        "An identity: linear attention is a state space model whose decay eta_{i-1}/eta_i and input gate "
        "1/eta_i come from one sequence.",
        {"largest difference of the transfer matrices": error},
        error < EXACT,
    )


def _undivided(q: Tensor, k: Tensor) -> Check:
    # One query at all times, so that only the state can change what is read of the first token.
    phi = (functional.elu(q[:1]) + 1).expand(len(q), -1)
    psi = functional.elu(k) + 1
    impulse = torch.zeros(len(k), 1, dtype=k.dtype)
    impulse[0] = 1
    system = real.linear_attention(phi, psi, 1)
    read = system.run(impulse)[:, 0]
    divided = real.coupled(system, (phi @ psi.mT).tril().sum(-1)).run(impulse)[:, 0]
    change = ((read - read[0]) / read[0]).abs().max().item()
    left = (divided[-1] / divided[0]).item()
    return Check(
        "without a normaliser nothing fades",
        "With eta = 1 one query reads the first token alike at all later times; divided by the sum of "
        "weights, less and less of it.",
        {"largest relative change": change, "share left at the last token, divided": left},
        change < EXACT and bool((divided.diff() < 0).all()),
    )


def _infinite(q: Tensor, k: Tensor, v: Tensor) -> Check:
    weights = (q @ k.mT / math.sqrt(q.shape[1])).exp().tril()
    exact = weights / weights.sum(-1, keepdim=True) @ v
    values = {}
    for order in ORDERS:
        system = real.softmax_truncated(q, k, WIDTH, order)
        error = (system.run(v) - exact).abs().max().item()
        values[f"error at order {order}, state of {system.size}"] = error
    errors = list(values.values())
    kept = real.held_attention(weights / weights.sum(-1, keepdim=True), WIDTH)
    whole = (kept.run(v) - exact).abs().max().item()
    values[f"error with all values kept, state of {kept.size}"] = whole
    return Check(
        "softmax needs an infinite state",
        "The state of softmax attention cut at an order of its exponential grows as a power, and its error "
        "falls without reaching 0; exact is the state that keeps every value.",
        values,
        all(a > b for a, b in pairwise(errors)) and errors[-1] > EXACT > whole,
    )


def _reversed_gate(z: Tensor) -> Check:
    error = (z.neg().sigmoid() ** 1.7 - (-1.7 * functional.softplus(z)).exp()).abs().max().item()
    return Check(
        "Mamba's transition is a reversed sigmoid",
        "An identity: exp(-a softplus(z)) = sigmoid(-z)^a: a gate of an LSTM raised to a learned power.",
        {"largest difference, a = 1.7": error},
        error < EXACT,
    )


def _expansion(keys: dict[int, Tensor]) -> Check:
    values = {}
    for size, drawn in keys.items():
        unit = drawn / drawn.norm(dim=-1, keepdim=True)
        overlap = unit @ unit.mT - torch.eye(PAIRS, dtype=unit.dtype)
        values[f"noise of a reading, {size} features"] = overlap.square().sum(-1).mean().sqrt().item()
    noise = list(values.values())
    return Check(
        "state expansion",
        f"Reading one of {PAIRS} values back from a sum of key-value products with random unit keys, the "
        "others add noise that falls with the features of a key.",
        values,
        all(a > b for a, b in pairwise(noise)),
    )
