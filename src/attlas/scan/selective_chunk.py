"""The selective scan in plain torch on any device: chunks of steps, one after the other.

Inside a chunk, stretches of STRETCH steps run side by side, then the state is carried over their ends: the
products of decays are of factors exp(delta A) alone, so that nothing is divided by what has decayed. States
of all steps exist for one chunk at a time. Legend: B batch, N steps, S states per channel, D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from attlas.scan.selective_shape import CHUNK

__all__ = ["backward", "forward"]

STRETCH = 8  # steps; about the square root of a chunk, so that both loops are short


def forward(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor, reset: Tensor | None, start: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h_t = exp(delta_t rate) h_{t-1} + delta_t u_t write_t, out_t = read_t . h_t.

    u, delta (B, N, D); rate (S, D): the matrix A transposed; write, read (B, N, S): B and C; reset (B, N);
    start (B, S, D). Returns out (B, N, D), the last state, and with `keep` the states (B, chunks, S, D)
    before each chunk (else 0 chunks). Memory: 3 CHUNK S D numbers per sequence.
    """
    out, hidden, kept = u.new_empty(u.shape), start, []
    for begin in range(0, u.shape[1], CHUNK):
        if keep:
            kept.append(hidden)
        here = slice(begin, begin + CHUNK)
        steps = u[:, here].shape[1]
        _, states = _states(u[:, here], delta[:, here], rate, write[:, here], _part(reset, here), hidden)
        hidden = states[:, steps - 1].clone()
        out[:, here] = torch.einsum("bnsd,bns->bnd", states[:, :steps], read[:, here])
    states = torch.stack(kept, 1) if kept else u.new_empty(u.shape[0], 0, *rate.shape)
    last = hidden.clone(memory_format=torch.contiguous_format) if hidden is start else hidden
    return out, last, states


def backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor,
    reset: Tensor | None, states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, delta, rate, write, read and start, chunk by chunk from the last one.

    With G_t = read_t grad_t + exp(delta_{t+1} rate) G_{t+1} the gradient of h_t, that of the exponent
    delta_t rate is G_t h_{t-1} exp(delta_t rate), and that of what is written delta_t u_t is write_t . G_t.
    """
    grad_u, grad_delta = u.new_empty(u.shape), u.new_empty(u.shape)
    grad_write, grad_read = write.new_empty(write.shape), read.new_empty(read.shape)
    grad_rate = rate.new_zeros(rate.shape)
    carried = grad_last.clone(memory_format=torch.contiguous_format)
    for chunk in reversed(range(states.shape[1])):
        here = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        inputs, rates, before = u[:, here], delta[:, here], states[:, chunk]
        steps = inputs.shape[1]
        decay, hidden = _states(inputs, rates, rate, write[:, here], _part(reset, here), before)
        slopes = grad_out[:, here]
        grad_read[:, here] = torch.einsum("bnsd,bnd->bns", hidden[:, :steps], slopes)
        own = read[:, here, :, None] * slopes[:, :, None]
        gradient = _gradients(own, decay, carried)
        grad_write[:, here] = torch.einsum("bnsd,bnd->bns", gradient, inputs * rates)
        of_drive = torch.einsum("bnsd,bns->bnd", gradient, write[:, here])
        gradient *= decay[:, :steps]
        carried = gradient[:, 0].clone()
        gradient[:, 1:] *= hidden[:, : steps - 1]
        gradient[:, 0] *= before
        grad_rate += torch.einsum("bnsd,bnd->sd", gradient, rates)
        grad_delta[:, here] = inputs * of_drive + torch.einsum("bnsd,sd->bnd", gradient, rate)
        grad_u[:, here] = rates * of_drive
    return grad_u, grad_delta, grad_rate, grad_write, grad_read, carried


def _part(reset: Tensor | None, here: slice) -> Tensor | None:
    return None if reset is None else reset[:, here]


def _states(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, reset: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    """(decay, state) of every step of a chunk, (B, n, S, D), with idle steps up to whole stretches."""
    idle = -u.shape[1] % STRETCH
    rates, drive = (functional.pad(one, (0, 0, 0, idle)) for one in (delta, delta * u))
    decay = torch.exp(rates[:, :, None] * rate)
    if reset is not None:
        decay.masked_fill_(functional.pad(reset, (0, idle))[:, :, None, None], 0.0)
    hidden = drive[:, :, None] * functional.pad(write, (0, 0, 0, idle))[..., None]
    _sweep(decay, hidden, start)
    return decay, hidden


def _gradients(own: Tensor, decay: Tensor, carried: Tensor) -> Tensor:
    """G_t = own_t + decay_{t+1} G_{t+1} for all steps; `carried` is the last term of the last step."""
    steps = own.shape[1]
    idle = decay.shape[1] - steps
    ahead = torch.cat([decay[:, 1:steps], torch.ones_like(decay[:, : idle + 1])], 1).flip(1)
    backwards = functional.pad(own, (0, 0, 0, 0, 0, idle)).flip(1)
    _sweep(ahead, backwards, carried)
    return backwards.flip(1)[:, :steps]


def _sweep(decay: Tensor, hidden: Tensor, start: Tensor) -> None:
    """hidden_t += decay_t hidden_{t-1} from the first to the last step, in place; `start` is before them."""
    factors, states = (one.unflatten(1, (-1, STRETCH)) for one in (decay, hidden))
    for t in range(1, STRETCH):
        states[:, :, t].addcmul_(factors[:, :, t], states[:, :, t - 1])
    through = factors.cumprod(2)
    entering = torch.empty_like(states[:, :, 0])
    for stretch in range(states.shape[1]):
        entering[:, stretch] = start
        start = torch.addcmul(states[:, stretch, -1], through[:, stretch, -1], start)
    states.addcmul_(through, entering[:, :, None])
