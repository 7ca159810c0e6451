"""What a mixer remembers, measured on the module itself: its state in bytes, its Jacobian by lag."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.scan import State

__all__ = ["StateSize", "jacobian_kernel", "state_size"]

LEAK = 1e-8  # share of the squared Jacobian at later inputs above which a mixer is not causal


@dataclass(frozen=True)
class StateSize:
    """Of one sequence: `numbers` and `nbytes` of the state after each of `lengths` tokens."""

    lengths: tuple[int, ...]
    numbers: tuple[int, ...]
    nbytes: tuple[int, ...]

    @property
    def constant(self) -> bool:
        """Whether the two longest lengths leave a state of the same size."""
        return self.nbytes[-1] == self.nbytes[-2]


def state_size(mixer: nn.Module, width: int, lengths: Sequence[int]) -> StateSize:
    """The state of a mixer with `start` and `advance` after so many random tokens of `width` channels.

    Lengths rise; two at least. ValueError otherwise; TypeError: the mixer has no state.
    """
    if not (hasattr(mixer, "start") and hasattr(mixer, "advance")):
        raise TypeError(f"{type(mixer).__name__} has no start and advance: it keeps no state of its own")
    if len(lengths) < 2 or any(b <= a for a, b in pairwise((0, *lengths))):
        raise ValueError(f"lengths must be two or more rising numbers above 0, got {list(lengths)}")
    like = next(mixer.parameters(), torch.zeros(()))
    numbers, sizes = [], []
    with torch.no_grad():
        for length in lengths:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(1, length, width, generator=generator).to(like)
            _, state = mixer.advance(x, mixer.start(1))  # type: ignore[operator]
            if not isinstance(state, State):
                raise TypeError(
                    f"{type(mixer).__name__}.advance must give (output, State), got {type(state).__name__}"
                )
            numbers.append(_numbers(state))
            sizes.append(state.nbytes)
    return StateSize(tuple(lengths), tuple(numbers), tuple(sizes))


def _numbers(state: State) -> int:
    return sum(_numbers(part) if isinstance(part, State) else part.numel() for part in state.parts.values())


def jacobian_kernel(
    mixer: nn.Module,
    x: Float[Tensor, "1 n C"],
    rows: Sequence[int],
    *,
    probes: int = 8,
    seed: int = 0,
) -> Float[Tensor, " lags"]:
    """Root mean square over `rows` of |d y_i / d x_{i - lag}| (Frobenius), lag = 0 .. the largest row.

    Estimated without forming the Jacobian: |J|^2 is the mean of |g^T J|^2 over Gaussian g, `probes` for every
    row; all of them are one batch of rows x probes copies of x. Unlike the transfer matrix it lets the gates
    move with x. A row counts at those lags that it has. Relative spread: about (2 rows probes)^-1/2.
    ValueError: rows out of range, outputs of another shape than x, an output that sees later inputs.
    """
    if probes < 1 or not rows or any(not 0 <= row < x.shape[1] for row in rows):
        raise ValueError(
            f"rows must lie in 0 .. {x.shape[1] - 1} and probes be at least 1, got {list(rows)}, {probes}"
        )
    given = x.detach().expand(len(rows) * probes, -1, -1).clone().requires_grad_()
    with torch.enable_grad():
        y = mixer(given)
        if y.shape != given.shape:
            raise ValueError(
                f"{type(mixer).__name__} must keep the shape (batch, tokens, width): {tuple(given.shape)} "
                f"became {tuple(y.shape)}"
            )
        if not y.requires_grad:
            raise ValueError(
                f"{type(mixer).__name__} gives no gradients: its output does not depend on its input"
            )
        asked = torch.zeros_like(y).unflatten(0, (len(rows), probes))
        generator = torch.Generator().manual_seed(seed)
        for index, row in enumerate(rows):
            drawn = torch.randn(probes, y.shape[-1], generator=generator)
            asked[index, :, row] = drawn.to(asked)
        (moved,) = torch.autograd.grad(y, given, asked.flatten(0, 1))
    squares = moved.unflatten(0, (len(rows), probes)).square().sum(-1).mean(1)
    most = max(rows) + 1
    total, count = squares.new_zeros(most), squares.new_zeros(most)
    for index, row in enumerate(rows):
        # Through a Fourier transform later inputs leave rounding errors behind.
        if squares[index, row + 1 :].sum() > LEAK * squares[index].sum():
            raise ValueError(
                f"{type(mixer).__name__} is not causal: its output {row} changes with later inputs"
            )
        total[: row + 1] += squares[index, : row + 1].flip(0)
        count[: row + 1] += 1
    return (total / count).sqrt()
