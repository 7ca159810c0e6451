"""The selective scan's compiled form on CPU: when it can run, and its calls.

`numba` is imported, and the loops are compiled (some seconds, once for each dtype and machine: kept on disk
in numba's cache), with the first call. Threads are those of torch's own OpenMP team.
"""

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor

from attlas.attend import team
from attlas.attend.team import machine_code, run
from attlas.scan.selective_shape import CHUNK

__all__ = ["backward", "forward", "refusal"]

_NUMBERS = 24  # of selective_loops.CALL, which is imported late
_CALL = struct.Struct(f"{_NUMBERS}q")
_PIECES = 8  # pieces of work of a backward pass, at least about so many
_ALONE = 1 << 18  # updates of a state below which a second thread is not worth its call


@torch.compiler.assume_constant_result
def missing() -> str | None:
    """As `team.missing`, which torch.compile cannot look into; its answer never changes."""
    return team.missing()


def refusal(device: torch.device) -> str | None:
    """None, or why tensors of this device run in plain torch."""
    return missing() if device.type == "cpu" else "it runs on CPU"


def forward(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor, reset: Tensor | None, start: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `selective_chunk.forward`; bitwise the same for any number of threads."""
    u, delta, rate, write, read, start = (t.contiguous() for t in (u, delta, rate, write, read, start))
    reset = None if reset is None else reset.contiguous()
    batch, length = u.shape[:2]
    out, last = torch.empty_like(u), torch.empty_like(start)
    states = u.new_empty(batch, -(-length // CHUNK) if keep else 0, *rate.shape)
    tensors = (u, delta, rate, write, read, reset, start, out, last, states if keep else None)
    _call("forward", tensors, u, rate.shape[0], (), 0)
    return out, last, states


def backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor,
    reset: Tensor | None, states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `selective_chunk.backward`; memory beyond the gradients: up to 8 / B times those of B and C."""
    u, delta, rate, write, read = (t.contiguous() for t in (u, delta, rate, write, read))
    grad_out, grad_last = grad_out.contiguous(), grad_last.contiguous()
    reset = None if reset is None else reset.contiguous()
    batch, _, channels = u.shape
    blocks = -(-channels // 16)  # selective_loops.LANES
    pieces = max(1, min(-(-_PIECES // max(1, batch)), blocks))
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(u)
    grad_rate, grad_start = u.new_zeros(batch, *rate.shape), torch.empty_like(grad_last)
    grad_write, grad_read = u.new_zeros(2, pieces, *write.shape)
    tensors = (u, delta, rate, write, read, reset, None, None, None, states)
    grads = (grad_out, grad_last, grad_u, grad_delta, grad_rate, grad_write, grad_read, grad_start)
    _call("backward", tensors, u, rate.shape[0], grads, pieces)
    return grad_u, grad_delta, grad_rate.sum(0), grad_write.sum(0), grad_read.sum(0), grad_start


def _call(
    what: str,
    tensors: tuple[Tensor | None, ...],
    u: Tensor,
    width: int,
    grads: tuple[Tensor, ...],
    pieces: int,
) -> None:
    batch, length, channels = u.shape
    counter = torch.zeros(1, dtype=torch.int64, device="cpu")
    places = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    places += [batch, length, width, channels, counter.data_ptr()]
    places += [tensor.data_ptr() for tensor in grads] or [0] * 8
    call = ctypes.create_string_buffer(_CALL.size)
    _CALL.pack_into(call, 0, *places, pieces)
    threads = 1 if batch * length * width * channels < _ALONE else torch.get_num_threads()
    run(_loops(what, u.dtype == torch.float64), call, threads)


def _loops(what: str, double: bool) -> tuple[int, Any]:
    def make() -> int:
        from attlas.scan.selective_loops import compiled

        return compiled(what, double)

    return machine_code(("selective", what, double), make)
