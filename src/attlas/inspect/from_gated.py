"""More mixers as `LTV` systems: decayed, gated and normalised ones, a convolution, two rounds of pooling.

What the input sets is held: activations of values, gates and the scale of a norm behind the heads.

Legend: B batch, H heads, n tokens, C width, D width of a query, e of a value, R slots.
"""

import torch
from torch import Tensor
from torch.nn import functional

from attlas.inspect.from_mixer import (
    Realised,
    behind,
    from_scan,
    realises,
    refuse_later_tokens,
    split_heads,
    with_bias,
)
from attlas.inspect.ltv import LTV
from attlas.inspect.realisations import convolution, coupled
from attlas.layers import (
    ABCAttention,
    BaseConv,
    CosformerAttention,
    ImplicitConv,
    LightningAttention,
    TransNormerMixer,
)
from attlas.layers.cosformer import LEAST, cosine_features
from attlas.layers.lightning import log_decay_of
from attlas.layers.transnormer import SRMSNorm
from attlas.scan import LRPE, Identity, Kernel

__all__: list[str] = []


def _entered(system: LTV, value: Tensor) -> LTV:
    """`system` on v as one on u, v_i = value_i u_i with value (B, H, n, e, d)."""
    return LTV(system.Lam, system.B @ value, system.C)


@realises(LightningAttention)
def _lightning(mixer: LightningAttention, x: Tensor) -> Realised:
    query, key = (split_heads(functional.silu(make(x)), mixer.heads) for make in (mixer.query, mixer.key))
    # SiLU(z) = sigmoid(z) z: a held gate in front of the linear map.
    gate = split_heads(mixer.value(x).sigmoid(), mixer.heads).unsqueeze(-1)
    held = gate * with_bias(mixer.value, mixer.heads).unsqueeze(1)
    decay = log_decay_of(mixer.slopes, x)
    system = _entered(from_scan(query, key, held.shape[-2], log_decay=decay), held)
    ones = torch.cat([x, torch.ones_like(x[..., :1])], -1)[:, None].expand(-1, mixer.heads, -1, -1)
    mixed = system.run(ones).transpose(1, 2).flatten(2)
    norm, outer = mixer.norm, mixer.gate(x).sigmoid()
    scale = outer * (mixed.var(-1, correction=0, keepdim=True) + norm.eps).rsqrt() * norm.weight
    centred = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) - 1 / x.shape[-1]
    return behind(system, mixer.out, x, between=scale.unsqueeze(-1) * centred, offset=outer * norm.bias)


@realises(TransNormerMixer)
def _transnormer(mixer: TransNormerMixer, x: Tensor) -> Realised:
    if not isinstance(mixer.norm, SRMSNorm):
        raise TypeError(f"the norm must be an SRMSNorm, got {type(mixer.norm).__name__}")
    query, key, _ = (split_heads(part, mixer.heads) for part in mixer.project(x).chunk(3, -1))
    weight = mixer.project.weight.chunk(3)[2].unflatten(0, (mixer.heads, -1))
    value = functional.pad(weight, (0, 1))  # no bias: nothing of the column of ones
    kernel: Kernel = Identity() if mixer.theta is None else LRPE(mixer.theta)
    system = from_scan(
        functional.silu(query),
        functional.silu(key),
        value,
        log_decay=log_decay_of(mixer.slopes, x),
        kernel=kernel,
    )
    ones = torch.cat([x, torch.ones_like(x[..., :1])], -1)[:, None].expand(-1, mixer.heads, -1, -1)
    mixed = system.run(ones).transpose(1, 2).flatten(2)
    scale = mixer.gate(x) * (mixed.square().mean(-1, keepdim=True) + mixer.norm.eps).rsqrt()
    return behind(system, mixer.out, x, between=torch.diag_embed(scale))


@realises(CosformerAttention)
def _cosformer(mixer: CosformerAttention, x: Tensor) -> Realised:
    refuse_later_tokens(mixer, mixer.causal)
    longest = mixer.longest
    if longest is None:
        raise ValueError("a causal cosFormer has a longest length, got None")
    places = torch.arange(1, x.shape[1] + 1, device=x.device)[None]
    asked, given = (
        cosine_features(split_heads(make(x), mixer.heads), places, longest)
        for make in (mixer.query, mixer.key)
    )
    system = from_scan(asked, given, with_bias(mixer.value, mixer.heads))
    total = from_scan(asked, given, 1).run(torch.ones_like(given[..., :1])).squeeze(-1)
    return behind(coupled(system, total.clamp_min(LEAST)), mixer.out, x)


@realises(ABCAttention)
def _abc(mixer: ABCAttention, x: Tensor) -> Realised:
    refuse_later_tokens(mixer, mixer.causal)
    query, key, value = (split_heads(make(x), mixer.heads) for make in (mixer.query, mixer.key, mixer.value))
    slots = mixer.pool_key.shape[1]

    def pooled(pool: Tensor, part: Tensor, into: int | Tensor) -> LTV:
        """Running means of every slot, which stands beside the heads: (B, H R, ...)."""
        logit = (part @ pool).mT.flatten(1, 2)
        one = torch.ones_like(logit[..., None])
        return from_scan(one, one, into, log_gate=logit, normalise=True)

    keys = pooled(mixer.pool_key, key, key.shape[-1]).run(key.repeat_interleave(slots, 1))
    logits = torch.einsum("bhnd,bhrnd->bhrn", query, keys.unflatten(1, (-1, slots)))
    weights = (logits * query.shape[-1] ** -0.5).softmax(2)
    wide = with_bias(mixer.value, mixer.heads).repeat_interleave(slots, 0)
    system = pooled(mixer.pool_value, value, wide)
    # The slots of a head are one state, read with the weights of the query.
    lam, into, read = (
        part.unflatten(1, (-1, slots)).movedim(2, 3) for part in (system.Lam, system.B, system.C)
    )
    read = (read * weights.mT[..., None, None]).movedim(3, 4).flatten(4)
    return behind(LTV(lam.flatten(3), into.flatten(3, 4), read), mixer.out, x)


@realises(BaseConv)
def _base_conv(mixer: BaseConv, x: Tensor) -> Realised:
    """The gate is held; the convolution is the same at all times."""
    conv, gate = mixer.conv, mixer.linear(x)
    if isinstance(conv, ImplicitConv):
        taps, bias = conv.filter(conv.features[: x.shape[1]]), None
        taps = taps + functional.pad(torch.ones_like(taps[:1]), (0, 0, 0, len(taps) - 1))  # its own skip
    elif conv.activation is not None:
        raise TypeError("the convolution of a BaseConv must be without activation to be linear")
    else:
        taps, bias = conv.weight.mT.flip(0), conv.bias
    system = convolution(taps, x.shape[1])
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    through = one.expand(*x.shape, -1)
    constant = torch.zeros_like(x) if bias is None else gate * bias
    return Realised(
        LTV(
            system.Lam.expand(len(x), -1, -1),
            functional.pad(system.B, (0, 1)).expand(len(x), -1, -1, -1),
            gate.unsqueeze(-1) * system.C,
            torch.cat([through, constant.unsqueeze(-1)], -1),
        ),
        torch.cat([x, torch.ones_like(x[..., :1])], -1),
        ones=True,
    )
