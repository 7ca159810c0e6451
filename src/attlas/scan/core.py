"""`scan`: attention whose weights factorise, carried as a state."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attlas.scan.kernels import Identity, Kernel
from attlas.scan.recurrent import recurrent
from attlas.scan.reference import everywhere, reference
from attlas.scan.state import State
from attlas.scan.sweep import sweep
from attlas.scan.terms import FLOOR, Terms, terms_of

__all__ = ["BACKENDS", "scan"]

BACKENDS = ("reference", "recurrent", "chunk")
FEW = 8  # tokens below which the loop over tokens costs less than a chunk
PIECE = 4096  # tokens whose features are held at once in a sum over all keys

Answer = Tensor | tuple[Any, ...]


def scan(
    q: Float[Tensor, "_ Hq _ D"],
    k: Float[Tensor, "_ Hk _ _"],
    v: Float[Tensor, "B H N V"],
    *,
    log_decay: Tensor | None = None,
    log_gate: Tensor | None = None,
    kernel: Kernel | None = None,
    normalise: bool = False,
    eps: float = 0.0,
    causal: bool = True,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    reset: Tensor | None = None,
    state: State | None = None,
    return_state: bool = False,
    return_weights: bool = False,
    chunk: int | None = None,
    backend: str = "auto",
) -> Answer:
    """out_i = sum_{j <= i} exp(L_i - L_j + g_j) kappa(q_i, k_j) v_j, with L the running sum of `log_decay`.

    Args:
        q, k: (B, H, N, D), or one head for all; v: (B, H, N, V). No scale: put 1/sqrt(D) into q.
        log_decay: <= 0; (H,) constant, (B, H, N) per token, or (B, H, N, D) per token and key channel (with
            the kernel Identity). -inf forgets everything before.
        log_gate: g, a log-weight per key; -inf: no such key.
        kernel: kappa, `Identity()` unless given. normalise: divided by the same sum without v, plus `eps`,
            under a running maximum where there are gates (then without eps); 0 where no key is seen.
        causal: False sums over all keys of the row (no decay, no state).
        segments: packed sequences: the state is emptied wherever the number changes. reset: before which
            steps it is emptied. valid: False: the step changes nothing, its output is 0, positions wait.
        state: what `return_state` gave for the tokens before.
        return_weights: also (B, H, N, N), from the backend "reference" only.
        chunk: tokens of the quadratic part (64; 16 per channel); for tuning.
        backend: "chunk", linear in N, saves its inputs and a state per group of chunks, gradients to q, k, v,
            log_decay, log_gate and states; "recurrent", a loop; "reference", n x n; "auto".

    Returns out (B, H, N, V) in v's type, then the state if asked, then the weights if asked. States, decays
    and sums are float32, float64 for float64 values. Raises ValueError naming the argument.

    Cost of "chunk": N (c (D + V) + 2 F V) multiplications a head with c = chunk and F features. Sources: the
    chunked form of arXiv 2401.04658, with gates (2405.13956), kernels and decays of arXiv 2402.18668,
    2405.21060.
    """
    kernel = Identity() if kernel is None else kernel
    _check(log_decay, log_gate, normalise, eps, causal, state, return_state, return_weights, chunk, backend)
    if not causal and not (segments is None and reset is None) and backend != "reference":
        raise ValueError(
            "scan: causal=False with segments or reset is only in backend='reference'; give every segment a "
            "row of its own and mark its padding with valid"
        )
    with torch.autocast(v.device.type, enabled=False):  # sums and states stay float32
        terms = terms_of(
            q, k, v, log_decay=log_decay, log_gate=log_gate, kernel=kernel, normalise=normalise, eps=eps,
            segments=segments, valid=valid, reset=reset, state=state,
        )  # fmt: skip
        return _answered(terms, causal, backend, chunk, return_state, return_weights)


def _answered(
    terms: Terms, causal: bool, backend: str, chunk: int | None, return_state: bool, return_weights: bool
) -> Answer:
    if not causal:
        out, weights = _over_all(terms, dense=backend == "reference")
        return (out, weights) if return_weights and weights is not None else out
    if backend == "auto":
        backend = "recurrent" if terms.length <= FEW else "chunk"
    if backend == "reference":
        out, sums, scale, weights = reference(terms)
        extra = (weights,) if return_weights else ()
    else:
        out, sums, scale = recurrent(terms) if backend == "recurrent" else sweep(terms, chunk)
        extra = ()
    after = (terms.state(sums, scale),) if return_state else ()
    return (out, *after, *extra) if after or extra else out


def _check(
    log_decay: Tensor | None,
    log_gate: Tensor | None,
    normalise: bool,
    eps: float,
    causal: bool,
    state: State | None,
    return_state: bool,
    return_weights: bool,
    chunk: int | None,
    backend: str,
) -> None:
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"scan: backend must be auto, {', '.join(BACKENDS)}, got {backend!r}")
    if return_weights and backend != "reference":
        raise ValueError(f"scan: return_weights needs backend='reference' (n x n), got backend={backend!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"scan: chunk must be at least 1, got {chunk}")
    if eps < 0 or (eps > 0 and (not normalise or log_gate is not None)):
        raise ValueError(
            "scan: eps must be >= 0, and belongs to normalise=True without log_gate (a running maximum "
            f"scales the sum that it is added to), got {eps}"
        )
    if not causal and (log_decay is not None or state is not None or return_state):
        raise ValueError("scan: causal=False sums over all keys: it takes no log_decay and no state")


def _over_all(terms: Terms, *, dense: bool) -> tuple[Tensor, Tensor | None]:
    """Every row sees every key; the weights too where `dense`."""
    if dense:
        return everywhere(terms)
    gate = None
    if terms.gate is not None:
        gate = terms.gate
        if terms.normalise:
            counted = gate if terms.live is None else gate.masked_fill(~terms.live, FLOOR)
            gate = gate - counted.detach().amax(-1, keepdim=True).clamp(min=FLOOR)
    sums = terms.sums
    for start in range(0, terms.length, PIECE):
        sums = sums + checkpoint(_summed, terms, gate, terms.key, terms.value, start, use_reentrant=False)
    found = [
        checkpoint(_read, terms, terms.query, sums, start, use_reentrant=False)
        for start in range(0, terms.length, PIECE)
    ]
    out = torch.cat(found, 2).to(terms.value.dtype)
    return out if terms.shown is None else out.masked_fill(~terms.shown[:, None, :, None], 0.0), None


def _summed(terms: Terms, gate: Tensor | None, key: Tensor, value: Tensor, start: int) -> Tensor:
    part = slice(start, start + PIECE)
    features = terms.kernel.features(key[:, :, part].to(terms.sums.dtype), terms.positions[:, part])
    columns = terms.columns(value[:, :, part])
    live = None if terms.live is None else terms.live[:, :, part, None]
    if gate is not None:
        weight = gate[:, :, part, None]
        columns = columns * (weight if live is None else weight.masked_fill(~live, -torch.inf)).exp()
    elif live is not None:
        columns = columns.masked_fill(~live, 0.0)
    return features.transpose(-1, -2) @ columns


def _read(terms: Terms, query: Tensor, sums: Tensor, start: int) -> Tensor:
    part = slice(start, start + PIECE)
    features = terms.kernel.features(query[:, :, part].to(sums.dtype), terms.positions[:, part])
    return terms.finish(features @ sums)
