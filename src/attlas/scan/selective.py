"""The selective scan: a linear recurrence with a decay per channel and state (Mamba, arXiv 2312.00752)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from attlas.attend.backends import record_fallback
from attlas.scan import selective_kernel
from attlas.scan.selective_operator import selective
from attlas.scan.state import State

__all__ = ["SELECTIVE_BACKENDS", "selective_scan"]

SELECTIVE_BACKENDS = ("auto", "reference", "recurrent", "chunk", "fused")
_FEW = 4  # steps that the loop takes sooner than an operator is called


def selective_scan(
    u: Float[Tensor, "_ _ _"],
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    softplus: bool = True,
    valid: Tensor | None = None,
    reset: Tensor | None = None,
    state: State | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, State]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = (C_t . h_t + D u_t) silu(z_t).

    u, delta, z (B, N, D channels); A (D, S), negative where a state shall decay; B, C (B, N, S) for all
    channels; D (D,). delta is softplus(delta + delta_bias), or delta + delta_bias with softplus=False.

    valid: a step that is False leaves the state as it is, its output is 0, and nothing of it is read. reset:
    the state is 0 before a step that is True. state: of an earlier call, `state["hidden"]` (B, D, S); with
    return_state also the one after the last step. A is discretised exactly, B by Euler's rule, as in all of
    Mamba's code (the paper's zero-order hold of B is not used there either).

    backend: "fused" (compiled, CPU), "chunk" (plain torch, any device), "recurrent" or "reference" (a loop
    over the steps, for second derivatives and comparison), "auto" (fused where it runs, else chunk; a few
    steps: recurrent). A fused scan that cannot run is taken over by chunk and counted as a fallback
    (`attend.counting`). Sums and states are float32, float64 where an input is; y has the dtype of u.

    Cost: 9 N D S FLOPs forward; memory linear in N: a state every 64 steps with gradients, none without.
    fused and chunk are differentiable once. ValueError: shapes that do not fit, an unknown backend;
    TypeError: marks that are not bool.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, valid, reset, state, backend)
    given = (u, delta, A, B, C, D, z, delta_bias, None if state is None else state["hidden"])
    wide = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in given) else torch.float32
    # What is not a number in padding must not come through, in gradients neither: it goes before all else.
    inputs, rates, write, read = (_shown(one.to(wide), valid) for one in (u, delta, B, C))
    if delta_bias is not None:
        rates = rates + delta_bias.to(wide)
    rates = _shown(functional.softplus(rates) if softplus else rates, valid)
    rate = A.to(wide).mT
    start = inputs.new_zeros(u.shape[0], *rate.shape) if state is None else state["hidden"].to(wide).mT
    form = _form(backend, u)
    run = _loop if form == "recurrent" else selective
    if form != "recurrent" and any(
        forward_ad.unpack_dual(one).tangent is not None for one in (inputs, rates, rate, write, read, start)
    ):
        raise NotImplementedError(
            f"selective_scan with backend={form!r} has no forward-mode derivative; use backend='recurrent' "
            "for products with a Jacobian"
        )
    with torch.autocast(u.device.type, enabled=False):  # the state stays float32
        out, last = run(inputs, rates, rate, write, read, reset, start, form)
    if D is not None:
        out = torch.addcmul(out, inputs, D.to(wide))
    if z is not None:
        out = out * functional.silu(_shown(z.to(wide), valid))
    out = out.to(u.dtype)
    return (out, State({"hidden": last.mT}, _position(u, valid, state))) if return_state else out


def _shown(tensor: Tensor, valid: Tensor | None) -> Tensor:
    """0 at steps that are not valid."""
    return tensor if valid is None else tensor.masked_fill(~valid[..., None], 0.0)


def _position(u: Tensor, valid: Tensor | None, state: State | None) -> Tensor:
    """Valid steps seen so far, (B,)."""
    seen = (
        torch.full((u.shape[0],), u.shape[1], dtype=torch.int64, device=u.device)
        if valid is None
        else valid.sum(1)
    )
    return seen if state is None else seen + state.position


def _form(backend: str, u: Tensor) -> str:
    """What runs: "recurrent", "chunk" or "fused"."""
    if backend == "reference" or (backend == "auto" and u.shape[1] <= _FEW):
        return "recurrent"
    if backend in ("recurrent", "chunk"):
        return backend
    refused = selective_kernel.refusal(u.device)
    if refused is None:
        return "fused"
    if backend == "fused" or u.device.type == "cpu":
        record_fallback("selective_scan: fused", refused)
    return "chunk"


def _loop(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor, reset: Tensor | None, start: Tensor,
    form: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence step by step; shapes of `selective_chunk.forward`."""
    hidden, found = start, []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, None] * rate)
        if reset is not None:
            decay = decay.masked_fill(reset[:, t, None, None], 0.0)
        hidden = decay * hidden + write[:, t, :, None] * (delta[:, t] * u[:, t])[:, None]
        found.append(torch.einsum("bsd,bs->bd", hidden, read[:, t]))
    return (torch.stack(found, 1) if found else torch.zeros_like(u)), hidden


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, valid: Tensor | None, reset: Tensor | None, state: State | None, backend: str,
) -> None:  # fmt: skip
    """ValueError for shapes that do not fit together, and for an unknown backend."""
    if backend not in SELECTIVE_BACKENDS:
        raise ValueError(
            f"selective_scan: backend must be one of {', '.join(SELECTIVE_BACKENDS)}, got {backend!r}"
        )
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(
            f"selective_scan: u must be (batch, steps, channels) and A (channels, states), got "
            f"{tuple(u.shape)} and {tuple(A.shape)}"
        )
    for name, mark in (("valid", valid), ("reset", reset)):
        if mark is not None and mark.dtype != torch.bool:
            raise TypeError(f"selective_scan: {name} must be bool (batch, steps), got {mark.dtype}")
    (batch, steps, channels), states = u.shape, A.shape[1]
    hidden = None if state is None else state["hidden"]
    wanted = {
        "delta": (delta, (batch, steps, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, steps, states)),
        "C": (C, (batch, steps, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, steps, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "valid": (valid, (batch, steps)),
        "reset": (reset, (batch, steps)),
        "state": (hidden, (batch, channels, states)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"selective_scan: {name} must be {shape} for u {tuple(u.shape)} and {states} states, got "
                f"{tuple(tensor.shape)}"
            )
