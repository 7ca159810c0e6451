"""The network that claims about associative recall share: mixers alone, with tied embeddings."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["RecallNet"]

SPREAD = 0.02


class RecallNet(nn.Module):
    """Embedding -> x + mixer(norm x) for each layer -> norm -> logits by the same embedding; no MLP.

    Args:
        mixer: `mixer(layer)` makes the causal token mixer of a layer, (B, N, width) -> (B, N, width).
        vocabulary, width, layers. length: of learned positions at the input (for attention); None: none.

    Source: the MQAR model of Zoology, arXiv 2312.04927 (LayerNorm, pre-norm, MLP = identity). Departure: the
    official identity in the MLP's place adds a second norm's output to the residual; here it adds nothing.
    """

    def __init__(
        self,
        mixer: Callable[[int], nn.Module],
        *,
        vocabulary: int,
        width: int,
        layers: int = 2,
        length: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.places = None if length is None else nn.Parameter(SPREAD * torch.randn(length, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.mixers = nn.ModuleList(mixer(layer) for layer in range(layers))
        self.norm = nn.LayerNorm(width)

    def embedded(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """What the first layer gets."""
        x = self.embedding(ids)
        return x if self.places is None else x + self.places[: ids.shape[1]]

    def layer(self, index: int, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """x + mixer(norm x) of one layer."""
        return x + self.mixers[index](self.norms[index](x))

    def hidden(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """What the logits are made of."""
        x = self.embedded(ids)
        for index in range(len(self.mixers)):
            x = self.layer(index, x)
        return self.norm(x)

    def forward(
        self, ids: Int[Tensor, "B N"], where: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "*places vocabulary"]:
        """Logits of all places, or (places, vocabulary) of those in `where` alone, in row-major order."""
        x = self.hidden(ids)
        return (x if where is None else x[where]) @ self.embedding.weight.T

    def auxiliary(self) -> Tensor:
        """The sum of what mixers (such as `SparseHybrid`) want added to the loss of the last call."""
        asked = (getattr(mixer, "auxiliary", None) for mixer in self.mixers)
        wanted = [loss for loss in asked if isinstance(loss, Tensor)]
        return torch.stack(wanted).sum() if wanted else self.embedding.weight.new_zeros(())
