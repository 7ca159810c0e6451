"""A network whose later layers read, besides their own inputs, hidden states kept from earlier segments."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attlas.layers.cmr import Rank, Reweaving, normal
from attlas.models.recall_net import RecallNet

__all__ = ["ReweavingNet", "where_to_weave"]

AUXILIARY = 0.1


def where_to_weave(layers: int) -> tuple[tuple[int, ...], int]:
    """(captured, woven): hidden states after layers floor(L / 3) and floor(2 L / 3), and the next layer."""
    if layers < 4:
        raise ValueError(
            f"reweaving needs at least 4 layers, to capture two and weave in later; got {layers}"
        )
    return (layers // 3, 2 * layers // 3), 2 * layers // 3 + 1


class ReweavingNet(RecallNet):
    """`RecallNet` with `Reweaving` on the stream that enters layer `woven`, of what `captured` layers gave.

    Args:
        mixer, vocabulary, width, layers, length: of `RecallNet`. heads, items, segment, reconstruction, rank,
            explore, detach: of `Reweaving`. captured, woven: layers counted from 0, all captured ones before
            the woven one; default `where_to_weave`. auxiliary_weight: mu of the reconstruction loss.

    `auxiliary()` adds mu * mean((n(z_j) - sg(n(h_j)))^2) over tokens and channels, h the last layer's output,
    sg without gradient and n RMSNorm: z is part of what it is drawn to, through the memory, and without n
    both grow without bound. Before training the outputs are bitwise those of the same net without memory.
    Source: definition of ours after the abstract of arXiv 2502.02046.
    """

    def __init__(
        self,
        mixer: Callable[[int], nn.Module],
        *,
        vocabulary: int,
        width: int,
        layers: int = 4,
        length: int | None = None,
        heads: int = 1,
        items: int = 32,
        segment: int = 64,
        captured: tuple[int, ...] | None = None,
        woven: int | None = None,
        reconstruction: nn.Module | None = None,
        rank: Rank | None = None,
        explore: float = 0.0,
        detach: bool = False,
        auxiliary_weight: float = AUXILIARY,
    ) -> None:
        super().__init__(mixer, vocabulary=vocabulary, width=width, layers=layers, length=length)
        if captured is None or woven is None:
            captured, woven = where_to_weave(layers)
        if not captured or sorted(set(captured)) != list(captured) or not captured[-1] < woven < layers:
            raise ValueError(
                f"captured layers must rise and lie before the woven one, itself below {layers}; got "
                f"{captured} and {woven}"
            )
        self.captured, self.woven, self.auxiliary_weight = captured, woven, auxiliary_weight
        self.reweaving = Reweaving(
            width, heads, len(captured), items=items, segment=segment, reconstruction=reconstruction,
            rank=rank, explore=explore, detach=detach,
        )  # fmt: skip
        self._missed = torch.zeros(())

    def hidden(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """What the logits are made of."""
        x = self.embedded(ids)
        latents: list[Tensor] = []
        for index in range(len(self.mixers)):
            if index == self.woven:
                x = self.reweaving(x, latents)
            x = self.layer(index, x)
            if index in self.captured:
                latents.append(x)
        if self.training and self.auxiliary_weight:
            found = self.reweaving.reconstruction(latents)
            self._missed = (normal(found) - normal(x.detach())).square().mean()
        return self.norm(x)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no reconstruction loss: that of the last call hangs on the graph of its gradients."""
        return self.__dict__ | {"_missed": torch.zeros(())}

    def auxiliary(self) -> Tensor:
        """mu times the reconstruction loss of the last call in training mode, and what mixers add."""
        return super().auxiliary() + self.auxiliary_weight * self._missed
