"""Mixers of the library as `LTV` systems, with the gates that one input gives them.

Legend: B batch, H heads, n tokens, C width, S state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.inspect.ltv import LTV
from attlas.inspect.realisations import (
    coupled,
    held_attention,
    linear_attention,
    normalised_attention,
    qlstm,
    s6,
)
from attlas.layers import (
    QLSTM,
    Aaren,
    LinearAttention,
    Mamba,
    NormalisedLinear,
    SelfAttention,
    TaylorAttention,
    rotary,
)
from attlas.pattern import Tokens
from attlas.scan import Identity, Kernel, Taylor

__all__ = [
    "Realised",
    "behind",
    "from_mixer",
    "from_scan",
    "realisable",
    "realises",
    "refuse_later_tokens",
    "split_heads",
    "with_bias",
]


@dataclass(frozen=True, eq=False)
class Realised:
    """A system whose output for `inputs` (B, n, d) is the mixer's output.

    `inputs` are the mixer's own with a column of ones behind them (`ones`), which carries its biases; or
    what comes out of its short convolution, where the recurrence begins.
    """

    system: LTV
    inputs: Tensor
    ones: bool = False

    def run(self) -> Tensor:
        """The mixer's output (B, n, C)."""
        return self.system.run(self.inputs)

    def memory_kernel(self, rows: Sequence[int] | None = None) -> Tensor:
        """As of `LTV`, without the column of ones."""
        system = self.system
        if self.ones:
            through = None if system.D is None else system.D[..., :-1]
            system = LTV(system.Lam, system.B[..., :-1], system.C, through)
        return system.memory_kernel(rows)


Maker = Callable[[Any, Tensor], Realised]
_MAKERS: dict[type[nn.Module], Maker] = {}


def realises(kind: type[nn.Module]) -> Callable[[Maker], Maker]:
    """Registers `make(module, x) -> Realised` for a class of mixers, yours included."""

    def register(make: Maker) -> Maker:
        _MAKERS[kind] = make
        return make

    return register


def realisable(mixer: nn.Module) -> bool:
    """Whether `from_mixer` knows the mixer's system."""
    return type(mixer) in _MAKERS


def from_mixer(mixer: nn.Module, x: Float[Tensor, "B n C"]) -> Realised:
    """The mixer's system at the input x: its gates stand as x makes them, and `run()` gives mixer(x).

    TypeError: a mixer whose system is not written down; it can be measured from outside, see
    `jacobian_kernel`. ValueError: one that is not causal.
    """
    if not realisable(mixer):
        known = ", ".join(sorted(kind.__name__ for kind in _MAKERS))
        raise TypeError(
            f"the system of {type(mixer).__name__} is not written down; known: {known}. Register one with "
            "realises(...), or measure it from outside with jacobian_kernel"
        )
    return _MAKERS[type(mixer)](mixer, x)


def from_scan(
    q: Float[Tensor, "B _ n D"],
    k: Float[Tensor, "B _ n D"],
    value: int | Float[Tensor, "*V e d"],
    *,
    log_decay: Tensor | None = None,
    log_gate: Tensor | None = None,
    kernel: Kernel | None = None,
    normalise: bool = False,
    eps: float = 0.0,
) -> LTV:
    """`attlas.scan` with these arguments as a system of leading axes (B, H): run(v) is scan(q, k, v, ...).

    `value` is W_V, or the width of v. With gates the state is kept under their running maximum, as there.
    """
    kernel = Identity() if kernel is None else kernel
    heads = max(part.shape[1] for part in (q, k, *(() if log_gate is None else (log_gate,))))
    if log_decay is not None and log_decay.dim() > 1:
        heads = log_decay.shape[1]
    elif log_decay is not None:
        heads = len(log_decay)
        log_decay = log_decay[None, :, None].expand(len(q), heads, q.shape[2])
    places = torch.arange(q.shape[2], device=q.device)[None]
    phi, psi = (kernel.features(part, places).expand(-1, heads, -1, -1) for part in (q, k))
    scale = None
    if normalise and log_gate is not None:
        scale = _running_maximum(log_gate, log_decay)
    given: dict[str, Any] = {"log_decay": log_decay, "log_gate": log_gate, "log_eta": scale}
    system = linear_attention(phi, psi, value, **given)
    if not normalise:
        return system
    ones = psi.new_ones(*psi.shape[:-1], 1)
    return coupled(system, linear_attention(phi, psi, 1, **given).run(ones).squeeze(-1) + eps)


def _running_maximum(log_gate: Tensor, log_decay: Tensor | None) -> Tensor:
    """max_{j <= i} (L_i - L_j + g_j); of decays per channel without them."""
    if log_decay is None or log_decay.dim() > log_gate.dim():
        return log_gate.cummax(-1).values
    fading = log_decay.cumsum(-1)
    return fading + (log_gate - fading).cummax(-1).values


def behind(
    system: LTV, out: nn.Module, x: Tensor, *, between: Tensor | None = None, offset: Tensor | None = None
) -> Realised:
    """Heads (B, H, ...) on [x; 1] as one system, behind the output projection with its bias.

    What stands between them, held: o -> between o + offset, between (B, n, H e, H e), offset (B, n, H e).
    """
    if not isinstance(out, nn.Linear):
        raise TypeError(f"the output projection must be a Linear, got {type(out).__name__}")
    weight = out.weight if between is None else out.weight @ between
    weight = weight.expand(len(x), x.shape[1], -1, -1).unflatten(-1, (system.Lam.shape[1], -1))
    read = torch.einsum("bnche,bhnes->bnchs", weight, system.C).flatten(-2)
    through = read.new_zeros(*read.shape[:-1], system.inputs)
    if out.bias is not None:
        through[..., -1] = out.bias
    if offset is not None:
        through[..., -1] += offset @ out.weight.mT
    into = system.B.transpose(1, 2).flatten(2, 3)
    whole = LTV(system.Lam.transpose(1, 2).flatten(2), into, read, through)
    return Realised(whole, torch.cat([x, torch.ones_like(x[..., :1])], -1), ones=True)


def refuse_later_tokens(mixer: nn.Module, causal: bool) -> None:
    """ValueError unless the mixer is causal: sums over later tokens are no state."""
    if not causal:
        raise ValueError(
            f"{type(mixer).__name__} must be causal: its rows have weight on later tokens, which no state "
            "holds; make it with causal=True"
        )


def with_bias(layer: nn.Linear, heads: int) -> Tensor:
    """[W, b] per head, (H, e, C + 1)."""
    bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
    return torch.cat([layer.weight, bias[:, None]], 1).unflatten(0, (heads, -1))


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@realises(SelfAttention)
def _attention(mixer: SelfAttention, x: Tensor) -> Realised:
    at = Tokens(x.shape[1], total=x.shape[1])
    query, key = mixer.part("query", x), mixer.part("key", x)
    if mixer.base is not None:
        places = at.positions(x.device)
        query, key = (rotary(part, places, base=mixer.base, factor=mixer.factor) for part in (query, key))
    # What the heads make of one-hot values are their weights.
    slots = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(*key.shape[:2], -1, -1)
    weights = attend(
        query,
        key,
        slots,
        pattern=mixer.pattern,
        score=mixer.score,
        normaliser=mixer.normaliser,
        q_at=at,
        k_at=at,
    )
    value = with_bias(mixer.value, mixer.kv_heads).repeat_interleave(mixer.heads // mixer.kv_heads, 0)
    return behind(held_attention(torch.as_tensor(weights), value), mixer.out, x)


@realises(LinearAttention)
def _linear(mixer: LinearAttention, x: Tensor) -> Realised:
    refuse_later_tokens(mixer, mixer.causal)
    query, key = (split_heads(make(x), mixer.heads) for make in (mixer.query, mixer.key))
    value = with_bias(mixer.value, mixer.heads)
    return behind(from_scan(query, key, value, kernel=mixer.kernel, normalise=True), mixer.out, x)


@realises(TaylorAttention)
def _taylor(mixer: TaylorAttention, x: Tensor) -> Realised:
    query, key = (split_heads(make(x), mixer.heads) for make in (mixer.query, mixer.key))
    value = with_bias(mixer.value, mixer.heads)
    system = from_scan(query, key, value, kernel=Taylor(), normalise=True, eps=mixer.eps)
    return behind(system, mixer.out, x)


@realises(NormalisedLinear)
def _normalised(mixer: NormalisedLinear, x: Tensor) -> Realised:
    query, key = (split_heads(make(x), mixer.heads) for make in (mixer.query, mixer.key))
    value = with_bias(mixer.value, mixer.heads)
    return behind(normalised_attention(query, key, mixer.log_eta(x).mT, value), mixer.out, x)


@realises(Aaren)
def _aaren(mixer: Aaren, x: Tensor) -> Realised:
    query = mixer.query(mixer.asks).unflatten(-1, (mixer.heads, -1))
    key = split_heads(mixer.key(x), mixer.heads)
    logit = torch.einsum("hd,bhnd->bhn", query, key) * query.shape[-1] ** -0.5
    one = torch.ones_like(key[..., :1])
    value = with_bias(mixer.value, mixer.heads)
    return behind(from_scan(one, one, value, log_gate=logit, normalise=True), mixer.out, x)


@realises(QLSTM)
def _qlstm(mixer: QLSTM, x: Tensor) -> Realised:
    gate, u = mixer.enter(x).chunk(2, -1)
    u = mixer.conv(u)
    one = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    alpha = None if mixer.alpha is None else functional.relu(mixer.alpha)
    forget, inward, outward = mixer.gates(u).chunk(3, -1)
    system = qlstm(forget, inward, outward, one, alpha=alpha)
    read = (mixer.out.weight * functional.gelu(gate).unsqueeze(-2)) @ system.C
    return Realised(LTV(system.Lam, system.B, read), u)


@realises(Mamba)
def _mamba(mixer: Mamba, x: Tensor) -> Realised:
    u, z = mixer.into(x).chunk(2, -1)
    u, inner = mixer.conv(u), mixer.scan
    steps, write, read = inner.steer(u).split((inner.rank, inner.states, inner.states), -1)
    system = s6(functional.softplus(inner.step(steps)), -inner.log_rate.exp(), write, read, inner.skip)
    one = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    out = mixer.out.weight if isinstance(mixer.out, nn.Linear) else one
    gated = out * functional.silu(z).unsqueeze(-2)
    # Every channel is a system of its own until the projection: (B, E, n, S) becomes (B, n, E S).
    into = torch.einsum("bens,ef->bnesf", system.B.squeeze(-1), one).flatten(2, 3)
    seen = torch.einsum("bnce,bens->bnces", gated, system.C.squeeze(-2)).flatten(3)
    return Realised(LTV(system.Lam.transpose(1, 2).flatten(2), into, seen, gated * inner.skip), u)
