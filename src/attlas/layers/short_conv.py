"""The short causal convolution over time that linear mixers put before their projections."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.scan import State

__all__ = ["ShortConv"]


class ShortConv(nn.Module):
    """y_t = activation(b + sum_{s < taps} w_s * x_{t - taps + 1 + s}), channel by channel; x before 0 is 0.

    Args:
        width: channels; taps: tokens that an output sees, its own included. bias: b. activation: elementwise.

    Shapes: (B, N, width) -> (B, N, width). Cost: N width taps. State: the last taps - 1 valid inputs.
    """

    def __init__(
        self,
        width: int,
        taps: int,
        *,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if taps < 1:
            raise ValueError(f"a short convolution needs taps of at least 1, got {taps}")
        self.taps, self.activation = taps, activation
        self.weight = nn.Parameter(torch.empty(width, taps))
        nn.init.uniform_(self.weight, -(taps**-0.5), taps**-0.5)
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(
        self, x: Float[Tensor, "B N C"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The whole sequence from an empty past; rows of padding count as zeros."""
        return self.advance(x, self.start(x.shape[0]), valid=valid)[0]

    def start(self, batch: int) -> State:
        """Zeros before the first token."""
        past = torch.zeros(
            batch, self.taps - 1, self.weight.shape[0], dtype=self.weight.dtype, device=self.weight.device
        )
        return State({"past": past}, torch.zeros(batch, dtype=torch.int64, device=past.device))

    def advance(
        self,
        x: Float[Tensor, "B N C"],
        state: State,
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        reset: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N C"], State]:
        """The next N tokens of every row, and the state after them.

        Padding stands at the end or at the start of a row: in between, neighbours would stay apart. reset: a
        sequence of its own begins here, which sees nothing before.
        """
        if not x.numel():
            return x, state
        seen = x.shape[1] if valid is None else valid.sum(1)
        if valid is not None and bool((~valid[:, 0] & (state.position > 0)).any()):
            raise ValueError("padding may not stand between tokens: valid begins with False after a token")
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        joined = torch.cat([state["past"].to(x.dtype), x], 1)
        if reset is None:
            y = functional.conv1d(
                joined.transpose(1, 2), self.weight[:, None], self.bias, groups=self.weight.shape[0]
            )
            y = y.transpose(1, 2)
        else:
            y, joined = self._apart(joined, reset)
        if self.activation is not None:
            y = self.activation(y)
        return y, State({"past": self._last(joined, valid)}, state.position + seen)

    def _apart(self, joined: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution within each sequence, and `joined` without what stands before the last one."""
        count = reset.shape[1]
        at = torch.arange(count, device=reset.device)
        begin = torch.where(reset, at, -self.taps).cummax(1).values
        y = joined.new_zeros(()) if self.bias is None else self.bias
        for lag in range(self.taps):
            shifted = joined[:, self.taps - 1 - lag : self.taps - 1 - lag + count]
            outside = (at - lag < begin)[..., None]
            y = y + self.weight[:, self.taps - 1 - lag] * shifted.masked_fill(outside, 0.0)
        place = torch.arange(joined.shape[1], device=reset.device) - (self.taps - 1)
        return y, joined.masked_fill((place < begin[:, -1:])[..., None], 0.0)

    def _last(self, joined: Tensor, valid: Tensor | None) -> Tensor:
        """The last taps - 1 inputs up to the last valid one of every row."""
        if valid is None:
            return joined[:, joined.shape[1] - self.taps + 1 :].clone()
        count = valid.shape[1]
        last = (valid * torch.arange(1, count + 1, device=valid.device)).amax(1)
        index = last[:, None] + torch.arange(self.taps - 1, device=valid.device)
        return joined.gather(1, index[..., None].expand(-1, -1, joined.shape[2]))
