"""The minimal transformer as an image classifier: with and without MLPs, on any of its attentions.

Source: Bermeitinger et al. 2024, arXiv 2410.13732. Legend: B batch, N tokens, C width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import (
    Carried,
    MinimalAttention,
    OneMap,
    SharedMap,
    Similarity,
    TwoMaps,
    Untouched,
    ValueAndOut,
)
from attlas.models.vit import Patches

__all__ = ["MINIMALS", "MinimalLayer", "MinimalViT", "Parts", "layer_parameters", "overdetermination"]

Part = TypeVar("Part", Similarity, Carried)


@dataclass(frozen=True)
class Parts:
    """A layer's similarity and carried, made of (width, heads), and the hidden width of its MLP over its own.

    ratio 0: no MLP.
    """

    similarity: Callable[[int, int], Similarity]
    carried: Callable[[int, int], Carried]
    ratio: int = 0

    def layer(self, width: int, heads: int = 1) -> "MinimalLayer":
        """A pre-norm residual layer."""
        attention = MinimalAttention(self.similarity(width, heads), self.carried(width, heads))
        return MinimalLayer(attention, ratio=self.ratio)


def _one(kind: Callable[[int], Part]) -> Callable[[int, int], Part]:
    def make(width: int, heads: int) -> Part:
        if heads != 1:
            raise ValueError(
                f"{kind.__name__} has one head, got heads={heads}; its matrix has no parts for more"
            )
        return kind(width)

    return make


MINIMALS: Mapping[str, Parts] = {
    "full": Parts(TwoMaps, ValueAndOut, ratio=4),
    "noMLP": Parts(TwoMaps, ValueAndOut),
    "noMLP+symmetric": Parts(SharedMap, ValueAndOut),
    "noMLP+Wqk": Parts(_one(OneMap), _one(ValueAndOut)),
    "noMLP+Wqk+noVO": Parts(_one(OneMap), _one(Untouched)),
}
"""The layers that the source compares, by its names."""


class MinimalLayer(nn.Module):
    """x -> x + attention(norm x), then, with ratio h > 0, x + mlp(norm x); mlp = Linear to h C, GELU, Linear.

    LayerNorms before each; the source does not say where its norms and residuals stand. With the residual
    outputs are no convex combinations of tokens any more, whatever the attention carries.
    """

    def __init__(self, attention: MinimalAttention, *, ratio: int = 0) -> None:
        super().__init__()
        width = attention.similarity.width
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.mlp: nn.Sequential | None = None
        if ratio:
            self.mlp_norm = nn.LayerNorm(width)
            self.mlp = nn.Sequential(
                nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
            )

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """One or two residual steps."""
        x = x + self.attention(self.norm(x))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


class MinimalViT(nn.Module):
    """Patches with learned places -> layers -> LayerNorm -> mean of the tokens -> linear classes.

    Args:
        layer: `layer(index)` makes each of `layers` layers, (B, N, C) -> the same: `MINIMALS[name].layer`.
        side, patch, channels: of the images; classes: of the answer.
    """

    def __init__(
        self,
        layer: Callable[[int], nn.Module],
        *,
        side: int,
        patch: int,
        classes: int,
        width: int,
        layers: int,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.patches = Patches(side=side, patch=patch, channels=channels, width=width)
        self.layers = nn.ModuleList(layer(index) for index in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes."""
        x = self.patches(images)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))

    def parameters_by_part(self) -> dict[str, int]:
        """Parameters of patches, similarities, carried, MLPs, norms and head.

        "layers": similarities, carried and MLPs, which the source's formulas count; "total": all.
        """
        named = {"patches": self.patches, "head": self.head}
        found = {name: sum(p.numel() for p in part.parameters()) for name, part in named.items()}
        marks = {"similarities": ".similarity.", "carried": ".carried.", "MLPs": ".mlp."}
        for name, mark in marks.items():
            found[name] = sum(
                p.numel() for path, p in self.layers.named_parameters(".") if mark in f".{path}"
            )
        found["layers"] = sum(found[name] for name in marks)
        found["total"] = sum(p.numel() for p in self.parameters())
        found["norms"] = found["total"] - found["layers"] - found["patches"] - found["head"]
        return found


def layer_parameters(width: int, *, ratio: int = 0) -> int:
    """4 N^2 of the four matrices and, for ratio h, 2 h N^2 + h N + N of an MLP with biases."""
    mlp = 2 * ratio * width**2 + ratio * width + width if ratio else 0
    return 4 * width**2 + mlp


def overdetermination(samples: int, outputs: int, parameters: int) -> float:
    """Qd = K M / P: numbers to be met per parameter; above 1 a model cannot learn all of them by heart.

    samples K, outputs M of each, parameters P. ValueError: parameters below 1.
    """
    if parameters < 1:
        raise ValueError(f"overdetermination: parameters must be at least 1, got {parameters}")
    return samples * outputs / parameters
