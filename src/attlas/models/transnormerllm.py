"""TransNormerLLM: a decoder on decayed linear attention whose state does not grow with the text.

Legend: B batch, N tokens.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.layers.lightning import alibi_by_layer
from attlas.layers.transnormer import SGLU, SRMSNorm, TransNormerBlock, TransNormerMixer
from attlas.scan import State

__all__ = ["TRANSNORMERS", "TransNormerConfig", "TransNormerLLM"]

Slopes = Callable[[int, int, int], Sequence[float]]


@dataclass(frozen=True)
class TransNormerConfig:
    """Sizes of a TransNormerLLM.

    hidden: channels of the mixers, `width` unless given; inner: of the gated units, 8 width / 3 rounded
    unless given. lrpe: layers with learned positions. slopes(heads, layer, layers): `alibi_by_layer` (the
    released code) or `linear_by_layer` (the paper). scale: of the embeddings, sqrt(width) unless given.
    spread: standard deviation of all weights at the start.
    """

    vocabulary: int
    width: int
    heads: int
    layers: int
    hidden: int | None = None
    inner: int | None = None
    lrpe: Collection[int] = (0,)
    slopes: Slopes = alibi_by_layer
    scale: float | None = None
    spread: float = 0.02

    def __post_init__(self) -> None:
        wrong = sorted(layer for layer in self.lrpe if not 0 <= layer < self.layers)
        if wrong:
            raise ValueError(f"lrpe must name layers from 0 to {self.layers - 1}, got {wrong}")


TRANSNORMERS: Mapping[str, TransNormerConfig] = {
    "385M": TransNormerConfig(vocabulary=64000, width=1024, heads=8, layers=24, inner=2816),
}
"""Released sizes that could be checked (the default of the official configuration)."""


class TransNormerLLM(nn.Module):
    """Embedding times sqrt(width), blocks of mixer and gated unit, a last SRMSNorm, and an untied head.

    Args:
        config: the sizes.
        mixer: `mixer(layer)` makes the token mixer of a layer in place of `TransNormerMixer`: a module with
            start and advance.

    Cost: O(width^2) per token and layer, and
    that of `attlas.scan`; a decoded token costs the same after any number of tokens. Source: Qin et al. 2023,
    arXiv 2307.14995.
    """

    def __init__(self, config: TransNormerConfig, *, mixer: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.scale = sqrt(width) if config.scale is None else config.scale
        self.embedding = nn.Embedding(config.vocabulary, width)
        make = self._mixer if mixer is None else mixer
        self.blocks = nn.ModuleList(
            TransNormerBlock(width, make(layer), SGLU(width, config.inner)) for layer in range(config.layers)
        )
        self.norm = SRMSNorm(width)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.spread)

    def _mixer(self, layer: int) -> nn.Module:
        given = self.config
        slopes = given.slopes(given.heads, layer, given.layers)
        lrpe = layer in given.lrpe
        return TransNormerMixer(given.width, given.heads, hidden=given.hidden, slopes=slopes, lrpe=lrpe)

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.blocks)

    def forward(
        self, ids: Int[Tensor, "B N"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N vocabulary"]:
        """Logits of the next token at every place; tokens where `valid` is False are padding."""
        x = self.embedding(ids) * self.scale
        for block in self.blocks:
            x = block(x, valid=valid)
        return self.head(self.norm(x))

    def start(self, batch: int) -> State:
        """The state before the first token: of every block, and the position."""
        parts = {f"block {index}": block.mixer.start(batch) for index, block in self._numbered()}
        return State(parts, torch.zeros(batch, dtype=torch.int64, device=self.head.weight.device))

    def advance(
        self, ids: Int[Tensor, "B N"], state: State, **named: Any
    ) -> tuple[Float[Tensor, "B N vocabulary"], State]:
        """Logits of the next N tokens (a prompt, or one that was decoded), and the state after them.

        named: `valid` (B, N) for prompts of unequal length, and `sweep`: `attlas.scan` (robust inference) or
        `attlas.layers.transnormer.origin`, which overflows.
        """
        x = self.embedding(ids) * self.scale
        parts = {}
        for index, block in self._numbered():
            name = f"block {index}"
            x, parts[name] = block.advance(x, state.nested(name), **named)
        valid = named.get("valid")
        seen = ids.shape[1] if valid is None else valid.sum(1)
        return self.head(self.norm(x)), State(parts, state.position + seen)
