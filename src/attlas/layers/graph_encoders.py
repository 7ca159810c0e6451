"""The learned parts of encodings of nodes: what a graph gives becomes columns beside the embedded input.

Each is a module(encoding, graph) -> (n, width) with an attribute `width`, as `GraphNet(extra=...)` takes it;
`Together` joins several. Source: Rampasek et al. 2022, arXiv 2205.12454. Legend: n nodes, k eigenvectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attlas.graph import Graph, flip_signs
from attlas.graph.neighbours import neighbour_sum
from attlas.layers.ragged_norm import RaggedBatchNorm

__all__ = [
    "DegreeEncoder",
    "EigenDeepSet",
    "EigenTransformer",
    "NormLinear",
    "RoleEncoder",
    "SignNet",
    "SignedPositions",
    "Together",
]

Eigen = tuple[Tensor, Tensor]


class NormLinear(nn.Module):
    """W norm(x) + b: for RWSE, HKdiagSE and ElstaticSE, whose columns have very different sizes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.norm, self.linear = RaggedBatchNorm(inputs), nn.Linear(inputs, width)

    def forward(self, encoding: Tensor, graph: Graph) -> Tensor:
        """(n, inputs) -> (n, width)."""
        found: Tensor = self.linear(self.norm(encoding))
        return found


class EigenDeepSet(nn.Module):
    """LapPE: sum over k of relu(W_2 relu(W_1 (U_ik, lambda_k))), W_1: 2 -> 2 width, W_2: -> width.

    Takes `laplacian_eigenvectors(graph, k, skip=0, fill=nan)`; NaN, in graphs of fewer than k nodes, is left
    out. In training each graph's eigenvectors get random signs, from torch's generator.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.net = nn.Sequential(nn.Linear(2, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())

    def forward(self, encoding: Eigen, graph: Graph) -> Tensor:
        """(eigenvalues (n, k), eigenvectors (n, k)) -> (n, width)."""
        pairs, there = _pairs(encoding, graph, self.training)
        return (self.net(pairs) * there[..., None]).sum(1)


class EigenTransformer(nn.Module):
    """LapPE by a small transformer over the k pairs (U_ik, lambda_k) of each node, summed over k.

    As `EigenDeepSet` otherwise; layers are post-norm with 2 width hidden. Cost: O(n k (k + width) width).
    """

    def __init__(self, width: int, *, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(2, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.net = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, encoding: Eigen, graph: Graph) -> Tensor:
        """(eigenvalues (n, k), eigenvectors (n, k)) -> (n, width)."""
        pairs, there = _pairs(encoding, graph, self.training)
        if not pairs.numel():
            return pairs.new_zeros(len(pairs), self.width)
        # Masked keys alone would give NaN: a node without any eigenvector reads zeros, and counts none.
        masked = ~there & there.any(1, keepdim=True)
        found = self.net(self.linear(pairs), src_key_padding_mask=masked)
        return (found * there[..., None]).sum(1)


def _pairs(encoding: Eigen, graph: Graph, flip: bool) -> tuple[Tensor, Tensor]:
    """(U_ik, lambda_k) as (n, k, 2) with 0 for NaN, and which are there."""
    values, vectors = encoding
    there = ~(values.isnan() | vectors.isnan())
    signed = flip_signs(vectors, graph) if flip else vectors
    return torch.stack([signed, values], -1).nan_to_num(0.0), there


class SignNet(nn.Module):
    """rho of phi(u_k) + phi(-u_k) of each eigenvector u_k: the same for any signs.

    phi: two GIN rounds on the graph, 1 -> hidden -> out channels, applied to each eigenvector alone; rho: an
    MLP over all k side by side (count given) or, count=None, over their sum, so that any k will do. Takes
    eigenvectors (n, k), NaN where a graph has none. Source: Lim et al. 2022, arXiv 2202.13013. Cost:
    O(k (E + n hidden)).
    """

    def __init__(self, width: int, count: int | None, *, hidden: int = 32, out: int = 4) -> None:
        super().__init__()
        self.width, self.count = width, count
        self.phi = nn.ModuleList(_Sum(inner, hidden, outer) for inner, outer in ((1, hidden), (hidden, out)))
        inputs = out if count is None else count * out
        self.rho = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, encoding: Tensor, graph: Graph) -> Tensor:
        """(n, k) -> (n, width). ValueError: another k than rho was made for."""
        if self.count is not None and encoding.shape[1] != self.count:
            raise ValueError(f"SignNet was made for {self.count} eigenvectors, got {tuple(encoding.shape)}")
        there = ~encoding.isnan()
        x = encoding.nan_to_num(0.0)[..., None]
        found = (self._phi(x, graph, there) + self._phi(-x, graph, there)) * there[..., None]
        rho: Tensor = self.rho(found.sum(1) if self.count is None else found.flatten(1))
        return rho

    def _phi(self, x: Tensor, graph: Graph, there: Tensor) -> Tensor:
        for layer in self.phi:
            x = layer(x, graph, there)
        return x


class _Sum(nn.Module):
    """MLP(x_i + sum of its senders), for (n, k, channels), the norm over the eigenvectors that are there."""

    def __init__(self, inputs: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Linear(inputs, hidden),
            RaggedBatchNorm(hidden),
            nn.Linear(hidden, out),
        )

    def forward(self, x: Tensor, graph: Graph, there: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x + neighbour_sum(x, graph)))
        normed = self.norm(hidden[there])
        found: Tensor = self.second(normed.new_zeros(hidden.shape).index_put((there,), normed))
        return found


class SignedPositions(nn.Module):
    """W_0 lambda_i + b of each node's entries in the eigenvectors (GT): added to the embedding.

    In training each graph's eigenvectors get random signs, from torch's generator. Source: Dwivedi and
    Bresson 2020, arXiv 2012.09699, whose released code draws one sign per column for the whole batch.
    """

    def __init__(self, count: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(count, out)

    def forward(self, encoding: Tensor, graph: Graph) -> Tensor:
        """(n, count) -> (n, out)."""
        found: Tensor = self.linear(flip_signs(encoding, graph) if self.training else encoding)
        return found


class RoleEncoder(nn.Module):
    """A learned vector for each of `wl_roles`, added to the embedding; from `most` on they share the last."""

    def __init__(self, most: int, out: int) -> None:
        super().__init__()
        self.table = nn.Embedding(most, out)

    def forward(self, encoding: Tensor, graph: Graph) -> Tensor:
        """(n,) int64 -> (n, out)."""
        found: Tensor = self.table(encoding.clamp(max=self.table.num_embeddings - 1))
        return found


class DegreeEncoder(nn.Module):
    """A learned vector for each in-degree of the graph itself; degrees from `most` on share the last."""

    def __init__(self, most: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(most + 1, width)

    def forward(self, encoding: object, graph: Graph) -> Tensor:
        """Anything -> (n, width)."""
        found: Tensor = self.table(graph.in_degree.clamp(max=self.table.num_embeddings - 1))
        return found


class Together(nn.Module):
    """Several encoders side by side; it takes a sequence of their encodings, in their order."""

    def __init__(self, *encoders: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        widths: list[int] = [int(encoder.width) for encoder in encoders]  # type: ignore[arg-type]
        self.width = sum(widths)

    def forward(self, encoding: Sequence[object], graph: Graph) -> Tensor:
        """(n, sum of the widths). ValueError: another number of encodings."""
        if len(encoding) != len(self.encoders):
            raise ValueError(f"Together has {len(self.encoders)} encoders, got {len(encoding)} encodings")
        pairs = zip(self.encoders, encoding, strict=True)
        return torch.cat([encoder(given, graph) for encoder, given in pairs], -1)
