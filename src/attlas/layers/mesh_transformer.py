"""The block of the mesh transformer: attention along the links of a mesh, and a gated feed-forward.

Source: Garnier et al. 2025, arXiv 2508.18051; DonsetPG/graph-physics.
Legend: n nodes, C width, H heads, D head width, A axes of the coordinates.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.graph import Graph
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer

__all__ = ["GatedGELU", "MeshTransformerLayer", "RootMeanSquare", "rotary_axes"]


class RootMeanSquare(nn.Module):
    """g * u / (rms(u) + 1e-8): the epsilon is added to the root, unlike torch's RMSNorm."""

    def __init__(self, width: int, *, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.scale, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        """Along the last axis; a row of zeros stays zeros, with a gradient of 0 through its root."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return self.scale * x / (root + self.epsilon)


class GatedGELU(nn.Module):
    """W3(gelu(W1 u) * W2 u), `expansion` times as wide inside; gelu is the exact one."""

    def __init__(self, width: int, expansion: int = 3) -> None:
        super().__init__()
        inner = expansion * width
        self.gate, self.value = nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        """Node by node."""
        found: Tensor = self.out(functional.gelu(self.gate(x)) * self.value(x))
        return found


def rotary_axes(
    x: Float[Tensor, "*H n D"], positions: Float[Tensor, "n A"], *, base: float = 10000.0
) -> Float[Tensor, "*H n D"]:
    """Rotate pairs of channels by coordinates: m = D // (2 A) pairs for each axis, angle = x_a base^(-k / m).

    Neighbouring channels 2c, 2c + 1 are a pair, axis after axis; channels left over stay as they are.
    Products of two rotated rows depend on differences of coordinates only. ValueError: no channels for a pair
    of each axis.
    """
    width, axes = x.shape[-1], positions.shape[1]
    pairs = width // (2 * axes)
    if not pairs:
        raise ValueError(
            f"rotary_axes: a head needs at least {2 * axes} channels for {axes} axes, got {width}"
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rates = base ** (-torch.arange(pairs, dtype=wide, device=x.device) / pairs)
    angle = (positions.to(wide)[:, :, None] * rates).flatten(1)
    cos, sin = angle.cos(), angle.sin()
    turned = x[..., : 2 * pairs * axes].to(wide).unflatten(-1, (-1, 2))
    even, odd = turned.unbind(-1)
    found = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return torch.cat([found.to(x.dtype), x[..., 2 * pairs * axes :]], -1)


class MeshTransformerLayer(nn.Module):
    """z + W_o attend(RMSNorm z along the links), then z + gated MLP(RMSNorm z).

    s_ij = q_i . k_j / sqrt(D) for every link j -> i, a softmax over the links of i. Links without loops: a
    node does not see itself (the residual carries it), and a node without links gets attention 0; give a
    graph `with_self_loops` for the other choice.

    Args:
        width, heads; expansion: of the MLP. base: of rotary angles where positions are given.

    Called as layer(x, edge_index, edge_attr=None, batch=None); edge_attr is not read. Shapes: (n, C) ->
    (n, C). Cost: O(E C + 13 n C^2), nothing of the size of the links times the width.
    """

    def __init__(self, width: int, heads: int = 4, *, expansion: int = 3, base: float = 10000.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"MeshTransformerLayer: width must be a multiple of heads, got {width} and {heads}"
            )
        self.heads, self.base = heads, base
        self.before_attention, self.before_mlp = RootMeanSquare(width), RootMeanSquare(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = GatedGELU(width, expansion)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        positions: Float[Tensor, "n A"] | None = None,
    ) -> Float[Tensor, "n C"]:
        """positions: coordinates that turn queries and keys; None: they stay as they are."""
        graph, _ = graph_of(
            "MeshTransformerLayer", x, edge_index, edge_attr, batch, width=self.query.in_features, layer=self
        )
        x = x + self.out(self._attended(self.before_attention(x), graph, positions))
        return x + self.mlp(self.before_mlp(x))

    def _attended(self, z: Tensor, graph: Graph, positions: Tensor | None) -> Tensor:
        query, key, value = (
            make(z).unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
            for make in (self.query, self.key, self.value)
        )
        if positions is not None:
            query, key = (rotary_axes(part, positions, base=self.base) for part in (query, key))
        found = torch.as_tensor(attend(query, key, value, pattern=graph))
        return found[0].transpose(0, 1).flatten(1)


def _make(setting: GraphSetting) -> nn.Module:
    return MeshTransformerLayer(setting.width, setting.heads)


register_graph_layer(GraphEntry("mesht", _make, reach=1))
