"""Language models whose layers give up one principle of attention each, all of them or some.

Source: Xue, Moosavi and Aletras 2025, arXiv 2510.11602. Legend: B batch, N tokens, C width.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attlas.layers.deconstructing import Approximate, Asked, GatedMLP, NonApproximate, SourcedAttention
from attlas.models.small_lm import SmallLM

__all__ = ["KINDS", "MASKS", "TOLERANCE", "DeconstructedLM", "hybrid", "standard_layers"]

KINDS = ("standard", "mlp", "approximate", "non_approximate", "random", "fixed", "static")
"""Standard attention and its six variants: MLP, Approximate, Non-approximate, RndEmbQK, FixedSeqQK,
StaticEmbQK."""
STREAMED = ("random", "fixed")
TOLERANCE = 0.01
"""By how much the parameters of a layer's mixer may differ from the 4 C^2 of attention, relatively."""

MASKS: dict[str, Callable[[int], set[int]]] = {
    "even": lambda n: set(range(2, n + 1, 2)),
    "odd": lambda n: set(range(1, n + 1, 2)),
    "top": lambda n: set(range(1, n // 2 + 1)),
    "middle": lambda n: {*range(1, n // 4 + 1), *range(n - n // 4 + 1, n + 1)},
    "bottom": lambda n: set(range(n // 2 + 1, n + 1)),
    "quarter": lambda n: set(range(4, n + 1, 4)),
    "first": lambda n: {1},
    "last": lambda n: {n},
    "bilateral": lambda n: {1, n},
}
"""The published hybrids: which of n layers, numbered from 1, stay standard."""


def standard_layers(mask: str, layers: int) -> tuple[int, ...]:
    """The layers that stay standard, numbered from 1; ValueError: an unknown mask, layers that do not divide.

    "middle" replaces the middle half, "top" keeps the half next to the input, as the paper counts.
    """
    if mask not in MASKS:
        raise ValueError(f"hybrid mask must be one of {', '.join(MASKS)}, got {mask!r}")
    parts = {"top": 2, "bottom": 2, "middle": 4, "quarter": 4}.get(mask, 1)
    if layers < 1 or layers % parts:
        raise ValueError(f"hybrid mask {mask} needs a multiple of {parts} layers, got {layers}")
    return tuple(sorted(MASKS[mask](layers)))


def hybrid(kind: str, layers: int, mask: str = "even") -> tuple[str, ...]:
    """The kinds of `layers` layers: standard where `mask` says so, else `kind`."""
    kept = standard_layers(mask, layers)
    return tuple("standard" if layer in kept else kind for layer in range(1, layers + 1))


class DeconstructedLM(SmallLM):
    """`SmallLM` with one of KINDS per layer, all of (nearly) equal parameters.

    Args:
        kinds: of the layers, the first next to the input: ("static",) * 4, or `hybrid("static", 4)`.
        length: the longest sequence of a "random" stream. sigma: standard deviation of its embeddings.
        sequence: int64 tokens, of a "fixed" stream (the paper: the first of the corpus).
        base: of rotary positions; None: none.

    "random" and "fixed" layers take their maps from a stream X: embeddings of its own, one per position,
    drawn once, or of the fixed sequence, run through the same blocks, in which every layer of attention looks
    at X itself. The stream has batch 1 and runs once per call, or once per length with `stream`. "static"
    layers take theirs from the embeddings of the input. Every source passes the norm of its block.
    ValueError: an unknown kind, both streams in one model, a stream shorter than the input.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        vocabulary: int = 256,
        width: int = 64,
        heads: int = 4,
        base: float | None = 10000.0,
        length: int = 2048,
        sigma: float = 0.02,
        sequence: Int[Tensor, "M"] | None = None,
    ) -> None:
        kinds = tuple(kinds)
        _check(kinds, sequence)
        make: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: GatedMLP(width),
            "approximate": lambda: Approximate(width, heads, base=base),
            "non_approximate": lambda: NonApproximate(width, heads),
        }
        super().__init__(
            mixer=lambda layer: make.get(kinds[layer], lambda: SourcedAttention(width, heads, base=base))(),
            vocabulary=vocabulary,
            layers=len(kinds),
            width=width,
            heads=heads,
        )
        self.kinds, self.width = kinds, width
        # Buffers: a model that is loaded again has the maps that it was trained with.
        if "random" in kinds:
            self.register_buffer("places", sigma * torch.randn(length, width))
        if "fixed" in kinds:
            self.register_buffer("sequence", torch.as_tensor(sequence).clone())

    def forward(
        self,
        inputs: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"] | None = None,
        *,
        stream: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "*places vocabulary"]:
        """Logits as of `SmallLM`; `stream`: what `stream` gave for this length or a longer one."""
        if stream is None:
            stream = self.stream(inputs.shape[1])
        x = embedded = self.embedding(inputs)
        for layer, block in enumerate(self._layers):
            source = self._source(layer, embedded, stream)
            x = block(x) if source is None else block(x, source)
        found: Tensor = self.head(self.norm(x if where is None else x[where]))
        return found

    def stream(self, length: int) -> tuple[Float[Tensor, "1 N C"], ...]:
        """X behind the norm of every layer up to the last that takes its map from it; () if none does.

        Depends on the weights and the length alone: once is enough while the model is only evaluated.
        """
        taken = [layer for layer, kind in enumerate(self.kinds) if kind in STREAMED]
        if not taken:
            return ()
        start = self.get_buffer("places" if "random" in self.kinds else "sequence")
        if length > len(start):
            raise ValueError(f"the stream has {len(start)} positions, got an input of {length} tokens")
        x = (start[:length] if "random" in self.kinds else self.embedding(start[:length]))[None]
        found: list[Tensor] = []
        for block in self._layers[: taken[-1] + 1]:
            found.append(block.before_mixer(x))
            if len(found) <= taken[-1]:
                x = block(x)
        return tuple(found)

    @torch.no_grad()
    def maps(self, inputs: Int[Tensor, "B N"]) -> list[Asked | None]:
        """The map of every layer on these tokens, in attend's terms; None of an MLP."""
        stream = self.stream(inputs.shape[1])
        x = embedded = self.embedding(inputs)
        found: list[Asked | None] = []
        for layer, block in enumerate(self._layers):
            source = self._source(layer, embedded, stream)
            here = block.before_mixer(x) if source is None else source
            found.append(None if self.kinds[layer] == "mlp" else block.mixer.asked(here))
            x = block(x) if source is None else block(x, source)
        return found

    def without_replaced(self) -> "DeconstructedLM":
        """The hybrid-skip control: a copy without the blocks that are not standard, not trained again."""
        kept = [layer for layer, kind in enumerate(self.kinds) if kind == "standard"]
        if not kept:
            raise ValueError("without_replaced: no layer is standard, there would be none left")
        found = copy.deepcopy(self)
        found.blocks = nn.ModuleList(found.blocks[layer] for layer in kept)
        found.kinds = ("standard",) * len(kept)
        return found

    def parameter_gaps(self) -> tuple[float, ...]:
        """Of every layer's mixer: its parameters over the 4 C^2 of attention, minus 1; within TOLERANCE."""
        sizes = [sum(weight.numel() for weight in block.mixer.parameters()) for block in self._layers]
        return tuple(size / (4 * self.width**2) - 1 for size in sizes)

    @property
    def _layers(self) -> list[Any]:
        return list(self.blocks)

    def _source(self, layer: int, embedded: Tensor, stream: Sequence[Tensor]) -> Tensor | None:
        """Where the layer's map comes from, behind the norm of its block; None: from the layer's input."""
        kind, length = self.kinds[layer], embedded.shape[1]
        if kind == "static":
            source: Tensor = self._layers[layer].before_mixer(embedded)
            return source
        if kind not in STREAMED:
            return None
        if stream[layer].shape[1] < length:
            raise ValueError(
                f"the stream has {stream[layer].shape[1]} positions, got an input of {length} tokens"
            )
        return stream[layer][:, :length]


def _check(kinds: tuple[str, ...], sequence: Tensor | None) -> None:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds must be of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
    if set(STREAMED) <= set(kinds):
        raise ValueError("kinds: random and fixed would need two streams; take one of them")
    if ("fixed" in kinds) != (sequence is not None):
        raise ValueError("give sequence, the tokens of the fixed stream, with layers of the kind fixed alone")
