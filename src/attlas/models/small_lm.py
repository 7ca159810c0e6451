"""The small language model that all claims about sequences share, with a pluggable token mixer."""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.layers import SelfAttention
from attlas.models.small_net import SmallNet
from attlas.pattern import Pattern, causal

__all__ = ["SmallLM"]


class SmallLM(SmallNet):
    """A decoder: embedding, pre-norm RMSNorm blocks with a GELU MLP of 4 times the width, untied head.

    Args:
        mixer: `mixer(layer)` makes the token mixer of a layer, (B, N, width) -> (B, N, width), causal;
            default: `SelfAttention` with rotary positions on `pattern` (default: causal).
        vocabulary: 256, bytes, unless given.

    Embeddings start with standard deviation 0.02. Source: the reference model of this library's claims, of no
    paper.
    """

    def __init__(
        self,
        *,
        mixer: Callable[[int], nn.Module] | None = None,
        pattern: Pattern | None = None,
        vocabulary: int = 256,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
    ) -> None:
        if mixer is not None and pattern is not None:
            raise ValueError("give the small model either mixer or pattern, not both")
        if mixer is None:
            seen = causal() if pattern is None else pattern

            def mixer(layer: int) -> nn.Module:
                return SelfAttention(width, heads, pattern=seen, base=10000.0)

        embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(embedding.weight, std=0.02)
        super().__init__(
            embedding,
            # Made in turn with the blocks: the weights of a seed are those of earlier results.
            (mixer(layer) for layer in range(layers)),
            lambda: nn.Linear(width, vocabulary, bias=False),
            width=width,
        )

    def forward(
        self, inputs: Int[Tensor, "B N"], where: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "*places vocabulary"]:
        """Logits of the next token at every place, or only at those that `where` marks."""
        return super().forward(inputs, where)
