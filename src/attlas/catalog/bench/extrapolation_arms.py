"""The mixers of the comparison of length extrapolation: attention that differs in its normaliser or its gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attlas.attend import L1, ShiftPower, Sigmoid, Softmax, lssa, lssar
from attlas.layers import MixerEntry, SelfAttention, Setting, mixer_entry
from attlas.pattern import causal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARMS", "Arm", "entry_of"]

BASE = 10_000.0  # of rotary positions, in all arms


@dataclass(frozen=True)
class Arm:
    """make(setting, trained): the mixer, `trained` the tokens that it is trained with. usual: by default."""

    says: str
    make: Callable[[Setting, int], nn.Module]
    usual: bool = True


def _attention(setting: Setting, **given: Any) -> nn.Module:
    return SelfAttention(setting.width, setting.heads, pattern=causal(), base=BASE, **given)


def _head(setting: Setting) -> int:
    return setting.width // setting.heads


def _sigmoid(setting: Setting, trained: int) -> nn.Module:
    # The bias stays that of training at every length (FlashSigmoid, arXiv 2409.04431).
    return _attention(setting, normaliser=Sigmoid(-math.log(trained)))


def _reweighted(setting: Setting, trained: int) -> nn.Module:
    return _attention(setting, normaliser=Softmax() >> ShiftPower(15) >> L1())


def _gated(setting: Setting, trained: int) -> nn.Module:
    return mixer_entry("gated").build(setting)


ARMS: dict[str, Arm] = {
    "softmax": Arm("softmax", lambda setting, trained: _attention(setting)),
    "sigmoid": Arm("sigmoid(s - log n), n the length of training", _sigmoid),
    "lssa": Arm("LSSA", lambda setting, trained: _attention(setting, **lssa(_head(setting)))),
    "lssar3": Arm("LSSAR, p = 3", lambda setting, trained: _attention(setting, **lssar(_head(setting), 3))),
    "lssar15": Arm("LSSAR, p = 15", lambda setting, trained: _attention(setting, **lssar(_head(setting), 15))),
    "gated": Arm("softmax with an elementwise gate G1 on the heads' outputs", _gated),
    "softmax_reweighted": Arm("softmax, then LSSAR's re-weighting with p = 15", _reweighted, usual=False),
}
"""The bench's own arms by name; all with rotary positions and without biases."""


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
