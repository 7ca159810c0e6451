"""TANGNN and its variants as networks for nodes (arXiv 2411.15458)."""

import torch
from torch import Tensor, nn

from attlas.graph import Graph
from attlas.layers.graph_layers import graph_of
from attlas.layers.sage import SAGE
from attlas.layers.tangnn import PooledLayer, TANGNNLayer, TiledLayer, TopAttention, told_all

__all__ = ["TANGNN", "TANGNNFLC"]

FORMS = ("main", "lc", "nai", "tai")


class TANGNN(nn.Module):
    """`depth` layers [messages || attention], then an answer for every node: logits.

    Args:
        features: of x; width: of each half of a layer; classes; depth.
        form: "main": an MLP reads the last layer; "lc": it reads the attention halves of all layers side by
            side, of which the last has no other half; "nai", "tai": the attention half is the mean of what
            the picked nodes, picked from the messages, tell each other, and an MLP ("nai") or a linear map
            ("tai") reads the last layer.
        heads, picked, sampled: of the layers. official: the layers of the released main file, which tile
            the picked rows over the nodes (`TiledLayer`); form "main" alone.

    Shapes: x (n, features), edge_index (2, E) or a Graph -> (n, classes). ValueError: an unknown form.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        width: int = 32,
        depth: int = 2,
        form: str = "main",
        heads: int = 1,
        picked: int = 20,
        sampled: int | None = 5,
        official: bool = False,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"TANGNN: form must be one of {', '.join(FORMS)}, got {form!r}")
        if official and form != "main":
            raise ValueError(f"TANGNN: official is that of the main file; form must be 'main', got {form!r}")
        self.form, self.width = form, width
        widths = [features] + [2 * width] * (depth - 1)
        options = {"picked": picked, "sampled": sampled}
        make = TiledLayer if official else PooledLayer if form in ("nai", "tai") else TANGNNLayer
        if not official:
            options["heads"] = heads
        layers: list[nn.Module] = [make(one, width, **options) for one in widths]  # type: ignore[arg-type]
        if form == "lc":
            layers[-1] = _AttentionHalf(widths[-1], TopAttention(width, heads=heads, picked=picked))
        self.layers = nn.ModuleList(layers)
        read = depth * width if form == "lc" else 2 * width
        mlp = nn.Sequential(nn.Linear(read, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))
        self.head = nn.Linear(read, classes) if form == "tai" else mlp

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """The logits."""
        graph, _ = graph_of("TANGNN", x, edge_index, edge_attr, batch)
        told = []
        for layer in self.layers:
            x = layer(x, graph)
            told.append(x[:, -self.width :])
        found: Tensor = self.head(torch.cat(told, 1) if self.form == "lc" else x)
        return found


class _AttentionHalf(nn.Module):
    """TopAttention(W x): a `TANGNNLayer` whose messages nobody reads."""

    def __init__(self, features: int, attention: TopAttention) -> None:
        super().__init__()
        self.into = nn.Linear(features, attention.wanted.shape[0])
        self.attention = attention

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        found: Tensor = self.attention(self.into(x), graph)
        return found


class TANGNNFLC(nn.Module):
    """-FLC: one attention among the nodes picked from the raw features, its mean beside SAGE's output.

    logits = MLP([SAGE(ReLU(SAGE(x))) || mean over S of TopAttention among S of W x]); arguments as `TANGNN`.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        width: int = 32,
        heads: int = 1,
        picked: int = 20,
        sampled: int | None = 5,
    ) -> None:
        super().__init__()
        self.near = nn.ModuleList(
            [SAGE(features, width, sampled=sampled), SAGE(width, width, sampled=sampled)]
        )
        self.into = nn.Linear(features, width)
        self.attention = TopAttention(width, heads=heads, picked=picked)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """The logits."""
        graph, _ = graph_of("TANGNNFLC", x, edge_index, edge_attr, batch)
        z = self.near[1](self.near[0](x, graph).relu(), graph)
        told = told_all(*self.attention.among(self.into(x), graph), graph)
        found: Tensor = self.head(torch.cat([z, told], 1))
        return found
