"""FlashSigmoid as a token mixer: sigmoid attention with normalised queries and keys.

Source: Ramapuram et al. 2024, arXiv 2409.04431.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from attlas.attend import flash_sigmoid
from attlas.layers.attention import SelfAttention
from attlas.layers.mixers import MixerEntry, Setting, register_mixer
from attlas.pattern import causal

__all__ = ["TRAINED_LENGTH", "FlashSigmoid", "HeadNorm"]

TRAINED_LENGTH = 1024
"""The length of training that the registered mixer is made for where its setting names none."""


class HeadNorm(nn.RMSNorm):
    """RMSNorm of a head's width, in the dtype of its weights and back: under autocast they are float32."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Every row divided by the root of its mean square, times the weights."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class FlashSigmoid(SelfAttention):
    """Self-attention by sigmoid(q . k / sqrt(D) - log trained_length), queries and keys normalised per head.

    The bias is that of training at every later length, and in decoding. norm: `HeadNorm` unless given
    (QK-norm, on in the paper's language models). All else as in `SelfAttention`. The paper's other
    stabilisers compose: ALiBi as score=Dot() + DistanceBias(slopes) with base=None; LayerScale belongs to the
    residual branch.
    """

    def __init__(self, width: int, heads: int, *, trained_length: int, **named: Any) -> None:
        named.setdefault("norm", HeadNorm)
        super().__init__(width, heads, normaliser=flash_sigmoid(trained_length), **named)
        self.trained_length = trained_length


def _make(setting: Setting) -> nn.Module:
    causal_self = setting.causal and not setting.cross
    return FlashSigmoid(
        setting.width,
        setting.heads,
        trained_length=setting.length or TRAINED_LENGTH,
        pattern=causal() if causal_self else None,
        base=10000.0 if causal_self else None,
    )


register_mixer(
    MixerEntry(
        "sigmoid", _make, frozenset({"NS", "CS", "NC", "CC"}), stateful=True, padding=True, permutes=True
    )
)
