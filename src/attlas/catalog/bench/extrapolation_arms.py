"""The mixers of the comparison of length extrapolation: attention by other normalisers, or with a gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attlas.attend import L1, ShiftPower, Sigmoid, Softmax
from attlas.layers import FlashSigmoid, LssarAttention, MixerEntry, SelfAttention, Setting, mixer_entry
from attlas.pattern import causal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARMS", "Arm", "entry_of"]

PLACED: dict[str, Any] = {"pattern": causal(), "base": 10_000.0}


@dataclass(frozen=True)
class Arm:
    """make(setting, trained): the mixer, `trained` the tokens that it is trained with. usual: by default."""

    says: str
    make: Callable[[Setting, int], nn.Module]
    usual: bool = True


def _softmax(setting: Setting, trained: int) -> nn.Module:
    return SelfAttention(setting.width, setting.heads, **PLACED)


# The bias of both sigmoids stays that of training at every length (arXiv 2409.04431).
def _sigmoid(setting: Setting, trained: int) -> nn.Module:
    return FlashSigmoid(setting.width, setting.heads, trained_length=trained, **PLACED)


def _bare_sigmoid(setting: Setting, trained: int) -> nn.Module:
    normaliser = Sigmoid(-math.log(trained))
    return SelfAttention(setting.width, setting.heads, normaliser=normaliser, **PLACED)


def _lssar(power: float | None) -> Callable[[Setting, int], nn.Module]:
    def make(setting: Setting, trained: int) -> nn.Module:
        return LssarAttention(setting.width, setting.heads, power=power, **PLACED)

    return make


def _reweighted(setting: Setting, trained: int) -> nn.Module:
    normaliser = Softmax() >> ShiftPower(15) >> L1()
    return SelfAttention(setting.width, setting.heads, normaliser=normaliser, **PLACED)


def _gated(setting: Setting, trained: int) -> nn.Module:
    return mixer_entry("gated_g1").build(setting)


ARMS: dict[str, Arm] = {
    "softmax": Arm("softmax", _softmax),
    "flashsigmoid": Arm("FlashSigmoid, with normalised queries and keys", _sigmoid),
    "sigmoid_bare": Arm("sigmoid(s - log n) alone, n the length of training", _bare_sigmoid),
    "lssa": Arm("LSSA", _lssar(None)),
    "lssar3": Arm("LSSAR, p = 3", _lssar(3)),
    "lssar15": Arm("LSSAR, p = 15", _lssar(15)),
    "gated": Arm("softmax with an elementwise gate G1 on the heads' outputs", _gated),
    "softmax_reweighted": Arm("softmax, then LSSAR's re-weighting with p = 15", _reweighted, usual=False),
}
"""The bench's own arms by name; all causal, with rotary positions, without biases. None but softmax, which is
the registered one, has the name of a registered mixer."""


def entry_of(name: str, trained: int) -> MixerEntry:
    """The causal mixer of an arm, a registered name or "package.module:Class"; ValueError: an unknown one."""
    arm = ARMS.get(name)
    if arm is None:
        return mixer_entry(name)
    return MixerEntry(
        name,
        lambda setting: arm.make(setting, trained),
        frozenset({"CS"}),
        why_not="this comparison is of causal language models",
    )
