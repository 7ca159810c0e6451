"""Published mixers as `LTV` systems: each by its own matrices, or composed from the linear-attention one.

Queries, keys and gates are given, as they stand for one input; u is the input of the value projection W_V.
Leading axes (batch, heads) are independent systems. The state of linear attention is the matrix H (f, e) of
features and value channels, value channels first: S = e f.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from attlas.inspect.ltv import LTV

__all__ = [
    "convolution",
    "coupled",
    "held_attention",
    "linear_attention",
    "normalised_attention",
    "qlstm",
    "s6",
    "softmax_features",
    "softmax_truncated",
    "ssd",
]


def linear_attention(
    phi: Float[Tensor, "*L n f"],
    psi: Float[Tensor, "*L n f"],
    value: int | Float[Tensor, "*V e d"],
    *,
    log_decay: Float[Tensor, "*_"] | None = None,
    log_gate: Float[Tensor, "*_"] | None = None,
    log_eta: Float[Tensor, "*L n"] | None = None,
) -> LTV:
    """H_i = (eta_{i-1}/eta_i) exp(decay_i) H_{i-1} + exp(gate_i)/eta_i psi(k_i) (W_V u_i)^T, y = phi(q)^T H.

    Args:
        phi, psi: features of queries and keys.
        value: W_V, with leading axes that broadcast; or its width e for the identity, u = v.
        log_decay: (*L, n), or (*L, n, f) per key channel. log_gate: (*L, n). None: 0.
        log_eta: logarithm of a positive normaliser; None: eta = 1. For the usual denominator see `coupled`.

    Lam_i = (eta_{i-1}/eta_i) exp(decay_i) I, the first one 0; B_i = exp(gate_i)/eta_i (I ⊗ psi_i) W_V;
    C_i = I ⊗ phi_i^T. Only differences of log_eta are exponentiated together with the decay and the gate.
    """
    width = value if isinstance(value, int) else value.shape[-2]
    steps = psi.shape[:-1]
    decay = psi.new_zeros(*steps, 1) if log_decay is None else _with_channels(log_decay, psi)
    gate = psi.new_zeros(steps) if log_gate is None else log_gate
    if log_eta is not None:
        decay = decay - log_eta.diff(dim=-1, prepend=log_eta[..., :1]).unsqueeze(-1)
        gate = gate - log_eta
    carried = decay.exp().expand(psi.shape).clone()
    carried[..., 0, :] = 0
    one = torch.eye(width, dtype=psi.dtype, device=psi.device)
    into = torch.einsum("...f,ac->...afc", psi * gate.exp().unsqueeze(-1), one).flatten(-3, -2)
    out = torch.einsum("...f,ac->...acf", phi, one).flatten(-2)
    if not isinstance(value, int):
        into = into @ value.unsqueeze(-3)
    return LTV(carried.repeat(*[1] * len(steps), width), into, out)


def coupled(system: LTV, eta: Float[Tensor, "*L n"]) -> LTV:
    """The same system with its state divided by eta_i: Lam_i eta_{i-1}/eta_i, B_i / eta_i, the first Lam 0.

    Dividing y by a normaliser couples the forget and the input gate: one sequence eta sets both. eta may have
    either sign but not 0 (ValueError). With the usual denominator eta_i depends on the query i, so that the
    state cannot be kept for decoding: keep the undivided one. Source: arXiv 2405.15731.
    """
    if not (eta.isfinite() & (eta != 0)).all():
        raise ValueError("eta must be finite and nowhere 0: a row without weight has no normalised state")
    before = torch.cat([torch.zeros_like(eta[..., :1]), eta[..., :-1]], -1)
    return replace(
        system,
        Lam=system.Lam * (before / eta)[..., None],
        B=system.B / eta[..., None, None],
    )


def softmax_features(x: Float[Tensor, "*L n d"], order: int) -> Float[Tensor, "*L n f"]:
    """x^{⊗p} d^(-p/4) / sqrt(p!) for p = 0 .. order: phi(q).phi(k) = sum_p z^p / p!, z = q.k / sqrt(d).

    f = sum_p d^p; the exponential, hence softmax, needs all p: no finite state. Order 2 is that of BASED.
    Raises ValueError: an order below 0.
    """
    if order < 0:
        raise ValueError(f"order must be 0 or more, got {order}")
    x = x / x.shape[-1] ** 0.25
    power = x.new_ones(*x.shape[:-1], 1)
    parts = [power]
    for degree in range(1, order + 1):
        power = (power.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        parts.append(power / math.sqrt(math.factorial(degree)))
    return torch.cat(parts, -1)


def softmax_truncated(
    q: Float[Tensor, "*L n d"], k: Float[Tensor, "*L n d"], value: int | Float[Tensor, "*V e c"], order: int
) -> LTV:
    """Causal softmax attention whose exponential stops at z^order / order!, divided by its own sum.

    Even orders: their sums are positive (odd ones may vanish, ValueError of `coupled`).
    """
    phi, psi = softmax_features(q, order), softmax_features(k, order)
    ones = psi.new_ones(*psi.shape[:-1], 1)
    return coupled(linear_attention(phi, psi, value), linear_attention(phi, psi, 1).run(ones).squeeze(-1))


def held_attention(weights: Float[Tensor, "*L n n"], value: int | Float[Tensor, "*V e d"]) -> LTV:
    """y_i = sum_{j <= i} weights_ij W_V u_j: any causal attention, its weights held.

    The state is every value so far, S = n e: exact, and as long as the sequence. Lam = I, B_j puts a value
    into slot j, C_i weighs the slots. It is the key-value cache as a system; `value` as above. ValueError:
    weights of later tokens.
    """
    if weights.triu(1).any():
        raise ValueError("weights must be causal: a row has weight on a later token, which no state holds")
    width = value if isinstance(value, int) else value.shape[-2]
    length = weights.shape[-1]
    slot = torch.eye(length, dtype=weights.dtype, device=weights.device)
    one = torch.eye(width, dtype=weights.dtype, device=weights.device)
    into = torch.einsum("ns,ac->nsac", slot, one).flatten(1, 2)
    into = into.expand(*weights.shape[:-2], *into.shape)
    if not isinstance(value, int):
        into = into @ value.unsqueeze(-3)
    out = torch.einsum("...ns,ac->...nasc", weights, one).flatten(-2)
    return LTV(torch.ones_like(into[..., 0]), into, out)


def convolution(taps: Float[Tensor, "K C"], length: int) -> LTV:
    """y_i = sum_{s < K} taps_s * u_{i - s}, channel by channel, for `length` steps.

    Its shift register is no diagonal matrix; a ring is: slot i mod K takes u_i and forgets what it held, so
    that Lam_i is 0 there and 1 elsewhere, and C_i reads slot r with tap (i - r) mod K. S = K C.
    """
    count, channels = taps.shape
    step, slot = torch.arange(length, device=taps.device), torch.arange(count, device=taps.device)
    age = (step[:, None] - slot) % count
    one = torch.eye(channels, dtype=taps.dtype, device=taps.device)
    new = (age == 0).to(taps.dtype)
    into = torch.einsum("nr,cd->nrcd", new, one).flatten(1, 2)
    read = torch.einsum("nrc,cd->ncrd", taps[age], one).flatten(2)
    return LTV((1 - new).repeat_interleave(channels, 1), into, read)


def normalised_attention(
    q: Float[Tensor, "*L n d"],
    k: Float[Tensor, "*L n d"],
    log_eta: Float[Tensor, "*L n"],
    value: int | Float[Tensor, "*V e c"],
) -> LTV:
    """Raw q and k, eta_i = exp(W_eta u_i) in place of a sum of weights: the source's normalised attention."""
    return linear_attention(q, k, value, log_eta=log_eta)


def s6(
    delta: Float[Tensor, "*L n D"],
    A: Float[Tensor, "D S"],
    b: Float[Tensor, "*L n S"],
    c: Float[Tensor, "*L n S"],
    skip: Float[Tensor, " D"] | None = None,
) -> LTV:
    """Mamba's selective scan; every channel is a system of its own: leading axes (*L, D), d = e = 1.

    Lam_i = exp(delta_i A), A < 0, B_i = delta_i b_i, C_i = c_i^T, D_i = skip; delta after its softplus.
    """
    delta = delta.mT
    state = delta.unsqueeze(-1) * A.unsqueeze(-2)
    shape = state.shape
    out = c.unsqueeze(-3).expand(shape).unsqueeze(-2)
    into = (delta.unsqueeze(-1) * b.unsqueeze(-3)).unsqueeze(-1)
    through = None if skip is None else skip[:, None, None, None].expand(*shape[:-1], 1, 1)
    return LTV(state.exp(), into, out, through)


def ssd(
    delta: Float[Tensor, "*L n"],
    A: Float[Tensor, "*A"],
    b: Float[Tensor, "*L n S"],
    c: Float[Tensor, "*L n S"],
    width: int,
) -> LTV:
    """Mamba-2: one scalar A < 0 per head, so that it is decayed linear attention with q = c, k = delta b.

    `A` broadcasts to the leading axes *L; `width` channels of a head share the gates.
    """
    return linear_attention(c, delta.unsqueeze(-1) * b, width, log_decay=delta * A.unsqueeze(-1))


def qlstm(
    forget: Float[Tensor, "*L n S"],
    inward: Float[Tensor, "*L n S"],
    outward: Float[Tensor, "*L n S"],
    value: Float[Tensor, "S d"] | None = None,
    *,
    alpha: float | Float[Tensor, ""] | None = None,
) -> LTV:
    """An LSTM whose gates see the input alone; Lam, B / W_u and C are the sigmoids of the three logits.

    Nothing couples the forget and the input gate. `value` None: W_u = I, every channel a system of its own,
    leading axes (*L, S). `alpha` >= 0: the reversed gate sigmoid(-forget)^alpha in place of sigmoid(forget);
    it is exp(-alpha softplus(forget)), the form of S6's transition.
    """
    carried = forget.sigmoid() if alpha is None else (-alpha * functional.softplus(forget)).exp()
    into, out = inward.sigmoid(), outward.sigmoid()
    if value is None:
        return LTV(carried.mT.unsqueeze(-1), into.mT[..., None, None], out.mT[..., None, None])
    return LTV(carried, into.unsqueeze(-1) * value, torch.diag_embed(out))


def _with_channels(log_decay: Tensor, psi: Tensor) -> Tensor:
    """(*L, n, 1) or (*L, n, f)."""
    return log_decay if log_decay.dim() == psi.dim() else log_decay.unsqueeze(-1)
