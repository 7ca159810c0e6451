"""LSSA and LSSAR as token mixers: softplus attention inside a layer with rotary positions.

Source: Gao et al. 2025, arXiv 2501.13428.
"""

from typing import Any

from torch import nn

from attlas.attend import lssa, lssar
from attlas.layers.attention import SelfAttention
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.pattern import causal

__all__ = ["POWER", "LssarAttention"]

POWER = 3.0
"""Of the registered mixer "lssar": the paper's best at the trained length."""


class LssarAttention(SelfAttention):
    """`SelfAttention` by `lssar(head width, power)`, or by `lssa` where power is None."""

    def __init__(self, width: int, heads: int, *, power: float | None = POWER, **named: Any) -> None:
        head = named.get("head_width") or max(2, width // heads)
        super().__init__(width, heads, **(lssa(head) if power is None else lssar(head, power)), **named)


def _made(setting: Setting, power: float | None) -> nn.Module:
    causal_self = setting.causal and not setting.cross
    return LssarAttention(
        setting.width,
        setting.heads,
        power=power,
        pattern=causal() if causal_self else None,
        base=10000.0 if causal_self else None,
    )


def _lssa(setting: Setting) -> nn.Module:
    return _made(setting, None)


def _lssar(setting: Setting) -> nn.Module:
    return _made(setting, POWER)


_FORMS = frozenset({"NS", "CS", "NC", "CC"})

register_mixer(MixerEntry("lssa", _lssa, _FORMS, stateful=True, padding=True, permutes=True))
register_mixer(
    MixerEntry("lssar", _lssar, _FORMS, stateful=True, padding=True, permutes=True, differentiable="almost")
)
