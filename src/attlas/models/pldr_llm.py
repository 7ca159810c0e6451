"""PLDR-LLM: a decoder of power law decoder representations, with a KV-cache and a G-cache.

Source: Gokden 2025, arXiv 2502.13502 (base model 2410.16703); burcgokden/PLDR-LLM-with-KVG-cache,
pldr_model_v510.py. Legend: B batch, N tokens, H heads, h head width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.layers.plga import PLGA
from attlas.layers.plga_metric import GLU, Deduced, MetricLearner, dag_penalty
from attlas.scan import State

__all__ = ["PLDRLLM", "PLDRS", "PLDRConfig"]

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class PLDRConfig:
    """Sizes of a PLDR-LLM.

    units (R), depth (D), metric_inner: of the metric learner, 8 h / 3 rounded down unless given; inner: of
    the feed-forward GLU, 8 width / 3 rounded down unless given. official: as the released code starts (see
    `PLGA`). ValueError: a vocabulary, width, heads or layers below 1.
    """

    vocabulary: int
    width: int
    heads: int
    layers: int
    units: int = 8
    depth: int = 2
    metric_inner: int | None = None
    inner: int | None = None
    base: float = 10000.0
    official: bool = False

    def __post_init__(self) -> None:
        sizes = self.vocabulary, self.width, self.heads, self.layers
        if min(sizes) < 1:
            raise ValueError(
                "PLDRConfig: vocabulary, width, heads and layers must be at least 1, got "
                f"{', '.join(map(str, sizes))}"
            )


PLDRS: Mapping[str, PLDRConfig] = {
    "110M": PLDRConfig(vocabulary=32000, width=896, heads=14, layers=5, metric_inner=170),
}
"""The paper's sizes; 250k steps of 1024 tokens, learning rate 1e-3 after 2000 steps of warm-up."""


class PLDRBlock(nn.Module):
    """u = LN(x + attention(x)), y = LN(u + GLU(u))."""

    def __init__(self, width: int, attention: nn.Module, inner: int) -> None:
        super().__init__()
        self.attention, self.mlp = attention, GLU(width, inner)
        self.after_attention, self.after_mlp = (nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(2))

    def forward(self, x: Float[Tensor, "B N C"], attended: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """y, of x and what attention made of it."""
        u = self.after_attention(x + attended)
        y: Tensor = self.after_mlp(u + self.mlp(u))
        return y


class PLDRLLM(nn.Module):
    """Embedding times sqrt(width), LayerNorm, post-norm blocks of `PLGA` and a GLU, an untied head with bias.

    Args:
        config: the sizes.
        attention: `attention(layer)` makes the attention of a layer in place of `PLGA`: the same with a
            `FixedCurvature` (the ablation), or `PrefixPLGA`, with which `curvatures`, `deduced` and
            `dag_penalty` raise a ValueError: it has not one G for a text.

    `forward` is the training form, **in which the logits of a token depend on later tokens, through G**;
    with given curvatures, and in `begin` and `advance`, they do not. Cost: that of a Transformer, two
    products with h x h matrices per token and head, and the metric learner once per row of the batch.
    """

    def __init__(self, config: PLDRConfig, *, attention: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        make = self._attention if attention is None else attention
        inner = 8 * width // 3 if config.inner is None else config.inner
        self.blocks: Any = nn.ModuleList(
            PLDRBlock(width, make(layer), inner) for layer in range(config.layers)
        )
        self.head = nn.Linear(width, config.vocabulary)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _attention(self, layer: int) -> nn.Module:
        given = self.config
        metric = MetricLearner(
            given.width // given.heads, given.heads,
            units=given.units, depth=given.depth, inner=given.metric_inner,
        )  # fmt: skip
        return PLGA(given.width, given.heads, metric=metric, base=given.base, official=given.official)

    def forward(
        self,
        ids: Int[Tensor, "B N"],
        *,
        curvatures: Sequence[Tensor] | None = None,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N vocabulary"]:
        """Logits of the next token at every place.

        curvatures: G of every layer, (H, h, h) or (B, H, h, h), in place of those of these tokens.
        """
        given = [None] * len(self.blocks) if curvatures is None else list(curvatures)
        if len(given) != len(self.blocks):
            raise ValueError(f"curvatures must be one per layer, {len(self.blocks)}, got {len(given)}")
        x = self._embedded(ids)
        for block, curvature in zip(self.blocks, given, strict=True):
            x = block(x, block.attention(x, curvature=curvature, valid=valid))
        return self.head(x)

    def begin(self, ids: Int[Tensor, "B N"]) -> tuple[Float[Tensor, "B N vocabulary"], State]:
        """Logits of a prompt, and the state of every layer: keys, values, A, and the G-cache (A_LM, G_LM).

        `attlas.layers.kv_cache_only(state)` drops the G-cache. Prompts have no padding: the rows of a state
        stand at one position.
        """
        return self._in_turn(ids, lambda layer, attention, x: attention.begin(x))

    def advance(self, ids: Int[Tensor, "B N"], state: State) -> tuple[Float[Tensor, "B N vocabulary"], State]:
        """Logits of the next tokens, with A of the prompt, and the state behind them."""
        return self._in_turn(ids, lambda layer, attention, x: attention.advance(x, state.nested(layer)))

    def curvatures(
        self, ids: Int[Tensor, "B N"], *, valid: Bool[Tensor, "B N"] | None = None
    ) -> list[Float[Tensor, "B H h h"]]:
        """G of every layer that this text gives: what the G-cache of another text may be replaced by."""
        return [one.curvature for one in self.deduced(ids, valid=valid)]

    def deduced(self, ids: Int[Tensor, "B N"], *, valid: Bool[Tensor, "B N"] | None = None) -> list[Deduced]:
        """A_LM, A_P and G_LM of every layer, with gradients; `valid` False marks padding, as in `forward`."""
        x, found = self._embedded(ids), []
        for block in self.blocks:
            attended, learnt = block.attention.traced(x, valid=valid)
            found.append(block.attention.metric.deduce(learnt))
            x = block(x, attended)
        return found

    def dag_penalty(
        self,
        ids: Int[Tensor, "B N"],
        weights: tuple[float, float, float],
        *,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, ""]:
        """To be added to the loss: weights of the penalties of A_LM, A_P and G_LM, means over the layers.

        `valid` as in `forward`. Cost: a second pass over the tokens beside that of the loss.
        """
        total = torch.zeros((), device=ids.device)
        found = self.deduced(ids, valid=valid)
        for number, weight in enumerate(weights):
            if weight:
                total = total + weight * dag_penalty(torch.stack([one[number] for one in found]))
        return total

    def _embedded(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.embedding(ids) * sqrt(self.config.width))
        return embedded

    def _in_turn(
        self, ids: Tensor, run: Callable[[str, Any, Tensor], tuple[Tensor, State]]
    ) -> tuple[Tensor, State]:
        x, parts = self._embedded(ids), {}
        for layer, block in enumerate(self.blocks):
            attended, parts[_name(layer)] = run(_name(layer), block.attention, x)
            x = block(x, attended)
        return self.head(x), State(parts, parts[_name(0)].position)


def _name(layer: int) -> str:
    return f"block {layer}"
