"""Gated attention: y * sigmoid(x W_g) at one of five places of an attention layer.

G1: the heads' outputs, before they are joined. G2: values. G3: keys. G4: queries. G5: the layer's output.
Source: Qiu et al. 2025, arXiv 2505.06708; code: qiuzh20/gated_attention (G1 alone).
Legend: B batch, H heads of a place, N tokens, E head width, C width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.attention import SelfAttention
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.pattern import causal

__all__ = [
    "GATE_FORMS",
    "KINDS",
    "PLACES",
    "Gate",
    "GateForm",
    "GatedAttention",
    "LearnedGate",
    "gate_for",
    "gate_size",
]

PLACES = {"G1": "head outputs", "G2": "values", "G3": "keys", "G4": "queries", "G5": "output"}
"""The five places. G1 and G4 have the query heads, G2 and G3 the KV heads, G5 one head of the full width."""

_OF_PART = {"query": "G4", "key": "G3", "value": "G2"}

KINDS = {
    "elementwise": (True, True),
    "headwise": (True, False),
    "shared elementwise": (False, True),
    "shared": (False, False),
}
"""Whether each head, and whether each channel of it, has a gate of its own."""


@dataclass(frozen=True)
class GateForm:
    """join(y, act(z)) of a part y and the gate's logits z; `inverse` of act: the logit of a wanted gate."""

    act: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    inverse: Callable[[float], float]


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share) if 0 < share < 1 else math.nan


def _silu_inverse(value: float) -> float:
    return 0.0 if value == 0 else math.nan


GATE_FORMS = {
    "sigmoid": GateForm(torch.sigmoid, torch.mul, _logit),
    "ns-sigmoid": GateForm(lambda z: 0.5 + 0.5 * torch.sigmoid(z), torch.mul, lambda v: _logit(2 * v - 1)),
    "2-sigmoid": GateForm(lambda z: 2 * torch.sigmoid(z), torch.mul, lambda v: _logit(v / 2)),
    "add-silu": GateForm(functional.silu, torch.add, _silu_inverse),
    "add-identity": GateForm(lambda z: z, torch.add, lambda v: v),
}
"""How a gate acts. "sigmoid" is the paper's; "ns-sigmoid", 0.5 + 0.5 sigmoid, is its control that cannot be
sparse; "add-silu" and "add-identity" are additive; "2-sigmoid", twice a sigmoid, is ours: it is 1 at z = 0,
so that a pretrained model starts unchanged."""


class _AnyGate(nn.Module):
    """The shape and the form of a gate, and how it acts on a part."""

    def __init__(self, heads: int, head_width: int, kind: str, form: str) -> None:
        super().__init__()
        for name, given, known in (("kind", kind, KINDS), ("form", form, GATE_FORMS)):
            if given not in known:
                raise ValueError(f"gate {name} must be one of {', '.join(known)}, got {given!r}")
        if heads < 1 or head_width < 1:
            raise ValueError(f"a gate needs at least one head of width 1, got {heads} and {head_width}")
        self.heads, self.head_width, self.kind, self.form = heads, head_width, kind, form
        of_head, of_channel = KINDS[kind]
        self.size = (heads if of_head else 1, head_width if of_channel else 1)

    def logits(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "_ h n e"]:
        """z: (B, H or 1, N, E or 1)."""
        raise NotImplementedError

    def values(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "_ h n e"]:
        """act(z) for the tokens x, float32 at least: what the part is multiplied by, or what is added."""
        z = self.logits(x)
        return GATE_FORMS[self.form].act(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z)

    def forward(self, part: Float[Tensor, "B *H N E"], x: Float[Tensor, "B N C"]) -> Tensor:
        """The gated part, (B, H, N, E), or (B, N, E) of one head; x: the layer's input, of the same tokens.

        ValueError for another number of heads or another width.
        """
        heads = part.shape[1] if part.dim() == 4 else 1
        if part.dim() not in (3, 4) or (heads, part.shape[-1]) != (self.heads, self.head_width):
            raise ValueError(
                f"this gate is for {self.heads} heads of width {self.head_width}, got a part of {heads} "
                f"heads of width {part.shape[-1]}: G1 and G4 have the query heads, G2 and G3 the key-value "
                "heads, G5 one head of the layer's width"
            )
        gate = self.values(x).to(part.dtype)
        return GATE_FORMS[self.form].join(part, gate if part.dim() == 4 else gate.squeeze(1))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, head_width={self.head_width}, kind={self.kind!r}, form={self.form!r}"

    def _start(self, start: float) -> float:
        """The logit of a gate of this value."""
        try:
            logit = GATE_FORMS[self.form].inverse(start)
        except ValueError:
            logit = math.nan
        if not math.isfinite(logit):
            raise ValueError(f"gate start: no logit gives a {self.form} gate the value {start}")
        return logit


class Gate(_AnyGate):
    """y -> y * sigmoid(x W_g), x the layer's input (behind its norm).

    Args:
        width: of x. heads, head_width: of the part that is gated (`gate_for` finds them for a place).
        kind: "elementwise", a gate for each head and channel; "headwise", one for each head; "shared
            elementwise" and "shared": the same for all heads. form: of GATE_FORMS.
        bias: of W_g (the paper has none). start: W_g = 0 and every gate has this value, by a bias where it is
            not that of a logit of 0; default: W_g as `nn.Linear` draws it.

    Cost: 2 C H E N (elementwise) or 2 C H N. The paper's initial weights are not known to us.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        kind: str = "elementwise",
        form: str = "sigmoid",
        bias: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__(heads, head_width, kind, form)
        logit = None if start is None else self._start(start)
        self.width = width
        self.weight = nn.Linear(width, self.size[0] * self.size[1], bias=bias or bool(logit))
        if logit is not None:
            nn.init.zeros_(self.weight.weight)
            if self.weight.bias is not None:
                nn.init.constant_(self.weight.bias, logit)

    def logits(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "_ h n e"]:
        """x W_g."""
        return self.weight(x).unflatten(-1, self.size).transpose(1, 2)

    def spec(self) -> dict[str, Any]:
        """The arguments that make a gate of this shape."""
        return {
            "width": self.width, "heads": self.heads, "head_width": self.head_width, "kind": self.kind,
            "form": self.form, "bias": self.weight.bias is not None,
        }  # fmt: skip


class LearnedGate(_AnyGate):
    """y -> y * sigmoid(theta), theta learned and the same for every token: the paper's control.

    Arguments as for `Gate`, without a width; start: the gates' first value (that of theta = 0 unless given).
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        kind: str = "elementwise",
        form: str = "sigmoid",
        start: float | None = None,
    ) -> None:
        super().__init__(heads, head_width, kind, form)
        logit = 0.0 if start is None else self._start(start)
        self.theta = nn.Parameter(torch.full((1, self.size[0], 1, self.size[1]), logit))

    def logits(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "_ h n e"]:
        """theta, whatever x is."""
        return self.theta

    def spec(self) -> dict[str, Any]:
        """The arguments that make a gate of this shape."""
        names = ("heads", "head_width", "kind", "form")
        return {name: getattr(self, name) for name in names}


def gate_size(place: str, width: int, heads: int, kv_heads: int, head_width: int) -> tuple[int, int]:
    """(heads, head width) of what stands at a place of PLACES; ValueError for an unknown one."""
    if place not in PLACES:
        known = ", ".join(f"{name} ({what})" for name, what in PLACES.items())
        raise ValueError(f"a gate's place must be one of {known}, got {place!r}")
    if place == "G5":
        return 1, width
    return (heads if place in ("G1", "G4") else kv_heads), head_width


def gate_for(
    place: str,
    width: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_width: int | None = None,
    **options: Any,
) -> Gate:
    """The `Gate` for a place of an attention layer of these sizes; options: kind, form, bias, start."""
    size = gate_size(place, width, heads, kv_heads or heads, head_width or width // heads)
    return Gate(width, *size, **options)


class GatedAttention(SelfAttention):
    """`SelfAttention` with gates at some of the five places, `gates={"G1": gate, "G3": other}`.

        q, k, v = G4(norm W_q x), G3(norm W_k x), G2(W_v x)      rotary positions after G4 and G3
        y = G5(W_o G1(attend(q, k, v)))

    A gate is a module (part (B, heads, N, E), x (B, N, C)) -> part; G2 and G3 depend on the token that sends,
    the others on the one that receives. G3 and G4 stand behind the norm of keys and queries, which would
    cancel a factor per head, and before the rotation, with which a factor per channel does not commute.
    Other arguments as for `SelfAttention`.

    Decoding keeps gated keys and values and nothing else. Cost: `SelfAttention` plus its gates.
    """

    def __init__(self, width: int, heads: int, *, gates: Mapping[str, nn.Module], **options: Any) -> None:
        super().__init__(width, heads, **options)
        head = self.query.out_features // heads
        for place, gate in gates.items():
            wanted = gate_size(place, width, heads, self.kv_heads, head)
            if isinstance(gate, _AnyGate) and (gate.heads, gate.head_width) != wanted:
                raise ValueError(
                    f"the gate at {place} must have (heads, head width) {wanted}, that of the "
                    f"{PLACES[place]}, got {(gate.heads, gate.head_width)}; gate_for({place!r}, ...) makes "
                    "one that fits"
                )
        self.gates = nn.ModuleDict(dict(gates))

    def part(self, name: str, x: Tensor) -> Tensor:
        """Gated query, key or value before rotary positions."""
        return self._gated(_OF_PART[name], super().part(name, x), x)

    def _output(self, heads: Tensor, x: Tensor) -> Tensor:
        return self._gated("G5", super()._output(self._gated("G1", heads, x), x), x)

    def _gated(self, place: str, part: Tensor, x: Tensor) -> Tensor:
        gated: Tensor = self.gates[place](part, x) if place in self.gates else part
        return gated


def _mixer(place: str) -> Callable[[Setting], nn.Module]:
    def make(setting: Setting) -> nn.Module:
        causal_self = setting.causal and not setting.cross
        gate = gate_for(place, setting.width, setting.heads)
        return GatedAttention(
            setting.width, setting.heads, gates={place: gate}, pattern=causal() if causal_self else None,
            base=10000.0 if causal_self else None,
        )  # fmt: skip

    return make


_ALL = frozenset({"NS", "CS", "NC", "CC"})
for _place in ("G1", "G2"):
    register_mixer(
        MixerEntry(
            f"gated_{_place.lower()}", _mixer(_place), _ALL, stateful=True, padding=True, permutes=True
        )
    )
