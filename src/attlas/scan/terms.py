"""The inputs of a scan, checked and brought to one form for all backends.

Legend: B batch, H heads, n tokens, D width, F features, E value width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.scan.kernels import Identity, Kernel
from attlas.scan.state import State, wide

__all__ = ["FLOOR", "Terms", "terms_of"]

FLOOR = -1e30
"""Log-scale of a state that holds no key yet: finite, so that no difference of two of them is NaN."""
LEAST = {torch.float32: -80.0, torch.float64: -700.0}
"""A channel's log-decay below which the past counts as gone; its exponential is still a normal number."""


@dataclass(frozen=True, eq=False)
class Terms:
    """query, key (B, H or 1, n, D), value (B, H, n, E); the rest in float32, or float64 for float64 values.

    decay: None, (B or 1, H, n), or (B, H, n, D) where `channels`; gate: None or (B, H, n); live: whether a
    key counts, bool (B, H or 1, n) or None; fresh: whether the state is emptied before a step, likewise;
    shown: whether a row has an output, bool (B, n) or None; positions (B, n); constant: the decay is the same
    for all tokens.
    sums (B, H, F, E + 1 where `normalise`): the state; scale (B, H): log of the factor that it lacks.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor | None
    gate: Tensor | None
    live: Tensor | None
    fresh: Tensor | None
    shown: Tensor | None
    positions: Tensor
    sums: Tensor
    scale: Tensor
    kernel: Kernel
    normalise: bool
    eps: float
    constant: bool = False

    @property
    def channels(self) -> bool:
        """Whether every key channel decays by itself."""
        return self.decay is not None and self.decay.dim() == 4

    @property
    def length(self) -> int:
        """Tokens."""
        return self.value.shape[2]

    def finish(self, sums: Tensor) -> Tensor:
        """Weighted sums (..., E or E + 1) -> outputs: divided by the last column where normalised."""
        if not self.normalise:
            return sums
        total = sums[..., -1:] + self.eps
        empty = total == 0
        return (sums[..., :-1] / torch.where(empty, 1.0, total)).masked_fill(empty, 0.0)

    def columns(self, value: Tensor) -> Tensor:
        """Values in the type of the state, with a column of ones where their weights are summed too."""
        value = value.to(self.sums.dtype)
        return torch.cat([value, torch.ones_like(value[..., :1])], -1) if self.normalise else value

    def state(self, sums: Tensor, scale: Tensor) -> State:
        """What the caller gets to go on with."""
        parts = {"sum": sums}
        if self.normalise:
            parts = {"sum": sums[..., :-1], "weight": sums[..., -1]}
        if self.normalise and self.gate is not None:
            parts["scale"] = scale
        last = self.positions[:, -1] + 1
        return State(parts, last)


def terms_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None,
    log_gate: Tensor | None,
    kernel: Kernel,
    normalise: bool,
    eps: float,
    segments: Tensor | None,
    valid: Tensor | None,
    reset: Tensor | None,
    state: State | None,
) -> Terms:
    """The checked terms; every error names the argument, what was expected and what came."""
    batch, heads, length = _checked_shapes(query, key, value)
    dtype = wide(value.dtype)
    for name, flags in (("valid", valid), ("reset", reset)):
        if flags is not None and (flags.dtype != torch.bool or flags.shape != (batch, length)):
            raise ValueError(
                f"scan: {name} must be bool {(batch, length)}, got {flags.dtype} {tuple(flags.shape)}"
            )
    fresh = None if reset is None else reset[:, None]
    if segments is not None:
        fresh = _joined(fresh, _changes(segments, batch, length)[:, None])
    if valid is not None:  # what stands in padding, NaN too, is never looked at
        query, key, value = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in (query, key, value))
        log_decay, log_gate = _idle(log_decay, valid), _idle(log_gate, valid)
    decay_by_token = log_decay is not None and log_decay.dim() > 1
    decay, lost = _decay(log_decay, batch, heads, length, query.shape[-1], kernel, dtype)
    if lost is not None and valid is not None:
        lost = lost & valid[:, None]
    fresh = _joined(fresh, lost)
    gate = _gate(log_gate, batch, heads, length, dtype)
    live = None if gate is None else gate > -torch.inf
    if gate is not None:
        gate = gate.masked_fill(gate == -torch.inf, 0.0)
    start = torch.zeros(batch, dtype=torch.int64, device=value.device) if state is None else state.position
    if valid is None:
        positions = start[:, None] + torch.arange(length, device=value.device)
    else:
        positions = start[:, None] + valid.long().cumsum(1) - 1
        shown = valid[:, None]
        live = shown if live is None else live & shown
        if decay is not None and not decay_by_token:
            decay = decay.masked_fill(~shown, 0.0)
    if not kernel.inside:
        query, key = kernel.features(query, positions), kernel.features(key, positions)
        kernel = Identity()
    sums, scale = _state(state, batch, heads, kernel.width(query.shape[-1]), value, normalise, gate)
    constant = decay is not None and not decay_by_token and valid is None
    return Terms(
        query, key, value, decay, gate, live, fresh, valid, positions, sums, scale, kernel, normalise, eps,
        constant,
    )  # fmt: skip


def _checked_shapes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int]:
    for name, tensor in (("q", query), ("k", key), ("v", value)):
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"scan: {name} must be floating point (batch, heads, tokens, width), got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    batch, heads, length, _ = value.shape
    for name, tensor in (("q", query), ("k", key)):
        if tensor.shape[1] not in (1, heads) or (tensor.shape[0], tensor.shape[2]) != (batch, length):
            raise ValueError(
                f"scan: {name} must be ({batch}, {heads} or 1, {length}, width) as v is "
                f"{tuple(value.shape)}, got {tuple(tensor.shape)}"
            )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"scan: q and k must have one width, got {query.shape[-1]} and {key.shape[-1]}")
    if length == 0:
        raise ValueError("scan: expected at least one token, got none")
    return batch, heads, length


def _changes(segments: Tensor, batch: int, length: int) -> Tensor:
    """True where a token's segment differs from that of the token before."""
    if segments.is_floating_point() or segments.shape != (batch, length):
        raise ValueError(
            f"scan: segments must be integers {(batch, length)}, got {segments.dtype} {tuple(segments.shape)}"
        )
    changed = torch.zeros(batch, length, dtype=torch.bool, device=segments.device)
    changed[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return changed


def _idle(logs: Tensor | None, valid: Tensor) -> Tensor | None:
    """Logs (B, H, n, ...) with 0 at steps that change nothing; others as they are."""
    if logs is None or logs.dim() < 3 or logs.shape[0] != len(valid) or logs.shape[2] != valid.shape[1]:
        return logs
    return logs.masked_fill(~(valid[:, None] if logs.dim() == 3 else valid[:, None, :, None]), 0.0)


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _decay(
    log_decay: Tensor | None,
    batch: int,
    heads: int,
    length: int,
    width: int,
    kernel: Kernel,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """The decay in one of two forms, and where it forgets all: -inf is a reset, a channel's is bounded."""
    if log_decay is None:
        return None, None
    shape = tuple(log_decay.shape)
    if shape not in ((heads,), (batch, heads, length), (batch, heads, length, width)):
        raise ValueError(
            f"scan: log_decay must be {(heads,)}, {(batch, heads, length)} or "
            f"{(batch, heads, length, width)}, got {shape}"
        )
    if bool((log_decay > 0).any()) or bool(log_decay.isnan().any()):
        raise ValueError(
            "scan: log_decay must be <= 0 (log of a factor of at most 1); got larger or NaN ones"
        )
    if len(shape) == 1:
        log_decay = log_decay[None, :, None].expand(1, heads, length)
    decay = log_decay.to(dtype)
    if decay.dim() == 4:
        if not isinstance(kernel, Identity):
            raise ValueError(
                f"scan: a log_decay per key channel needs kernel=Identity(), got {kernel}: apply its "
                "features to q and k first"
            )
        return decay.clamp(min=LEAST[dtype]), None
    lost = decay == -torch.inf
    if not bool(lost.any()):
        return decay, None
    return decay.masked_fill(lost, 0.0), lost.expand(batch, heads, length)


def _gate(log_gate: Tensor | None, batch: int, heads: int, length: int, dtype: torch.dtype) -> Tensor | None:
    if log_gate is None:
        return None
    if log_gate.shape != (batch, heads, length):
        raise ValueError(f"scan: log_gate must be {(batch, heads, length)}, got {tuple(log_gate.shape)}")
    return log_gate.to(dtype)


def _state(
    state: State | None,
    batch: int,
    heads: int,
    features: int,
    value: Tensor,
    normalise: bool,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums with their column of weights, and the log-scale."""
    dtype, width = wide(value.dtype), value.shape[-1]
    floor = FLOOR if normalise and gate is not None else 0.0
    if state is None:
        sums = torch.zeros(batch, heads, features, width + normalise, dtype=dtype, device=value.device)
        return sums, torch.full((batch, heads), floor, dtype=dtype, device=value.device)
    wanted = ["sum"] + ["weight"] * normalise + ["scale"] * (normalise and gate is not None)
    if sorted(state.parts) != sorted(wanted):
        raise ValueError(
            f"scan: this state holds {', '.join(state.parts)}; with these arguments it must hold "
            f"{', '.join(wanted)}: continue with the same normalise and log_gate"
        )
    if state["sum"].shape != (batch, heads, features, width):
        raise ValueError(
            f"scan: state sum must be {(batch, heads, features, width)}, got {tuple(state['sum'].shape)}"
        )
    sums = state["sum"].to(dtype)
    if normalise:
        sums = torch.cat([sums, state["weight"].to(dtype)[..., None]], -1)
    scale = (
        state["scale"] if "scale" in wanted else torch.zeros(batch, heads, dtype=dtype, device=value.device)
    )
    return sums, scale.to(dtype)
