"""PPGN: layers on tensors of all pairs of nodes, whose messages are matrix products, and one product more.

Sources: Maron et al. 2019, arXiv 1905.11136; the product over two vertices: Puny et al. 2023, arXiv
2302.11556. Legend: n nodes, P pairs (the sum of squares of the graphs' sizes), C channels.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attlas.graph import Graph, PairGraph, pairs_of
from attlas.layers.graph_layers import GraphEntry, graph_of, register_graph_layer

__all__ = ["PPGN", "PPGNBlock", "Product", "matrix_product", "pair_product"]

Product = Callable[..., Tensor]
"""product(*operands) of (graphs, C, m, m) each."""


def matrix_product(one: Tensor, other: Tensor) -> Tensor:
    """Z_ab = sum_c Y1_ac Y2_cb: with it alone a net computes the polynomials of treewidth 2 at most."""
    return one @ other


def pair_product(y1: Tensor, y2: Tensor, y3: Tensor, y4: Tensor, y5: Tensor) -> Tensor:
    """Z_ab = sum_cd Y1_ac Y2_ad Y3_bc Y4_bd Y5_cd: with it also K4, and K4 without the edge of a and b.

    Cost: O(m^4) time, row by row; O(m^2) memory, also for the gradient: rows are computed again.
    """

    def row(a1: Tensor, a2: Tensor, y3: Tensor, y4: Tensor, y5: Tensor) -> Tensor:
        return (((y3 * a1.unsqueeze(-2)) @ y5) * y4 * a2.unsqueeze(-2)).sum(-1)

    rows = []
    for a in range(y1.shape[-2]):
        given = y1[..., a, :], y2[..., a, :], y3, y4, y5
        again = torch.is_grad_enabled() and any(one.requires_grad for one in given)
        rows.append(checkpoint(row, *given, use_reentrant=False) if again else row(*given))
    return torch.stack(rows, -2)


OPERANDS: dict[Product, int] = {matrix_product: 2, pair_product: 5}


class PPGNBlock(nn.Module):
    """e -> MLP([e, products of MLPs of e]), at every pair: (P, C) -> (P, out).

    Args:
        width: C; out (C). inner: channels of each product (out). products: `matrix_product` (PPGN), with
            `pair_product` beside it PPGN++ (a sufficient product: the paper's own could not be checked).

    Graphs of one size are multiplied at once; nothing is padded. Cost: O(inner n^3) a graph, O(P C) memory.
    """

    def __init__(
        self,
        width: int,
        out: int | None = None,
        *,
        inner: int | None = None,
        products: Sequence[Product] = (matrix_product,),
    ) -> None:
        super().__init__()
        out = width if out is None else out
        inner = out if inner is None else inner
        unknown = [one for one in products if one not in OPERANDS]
        if unknown or not products:
            raise ValueError("PPGNBlock: products must be some of matrix_product and pair_product")
        self.products = tuple(products)
        count = sum(OPERANDS[one] for one in products)
        self.operands = nn.ModuleList(_mlp(width, inner) for _ in range(count))
        self.leave = _mlp(width + inner * len(products), out)

    def forward(self, e: Float[Tensor, "P C"], pairs: PairGraph) -> Float[Tensor, "P out"]:
        """New features of the pairs."""
        operands = [operand(e) for operand in self.operands]
        found = [e]
        for product in self.products:
            own, operands = operands[: OPERANDS[product]], operands[OPERANDS[product] :]
            found.append(_multiplied(product, own, pairs))
        made: Tensor = self.leave(torch.cat(found, -1))
        return made


def _mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, out))


def _multiplied(product: Product, operands: Sequence[Tensor], pairs: PairGraph) -> Tensor:
    """The product in every graph, those of one size at once."""
    rows, parts = [], []
    for block in pairs.blocks:
        found = product(*(one[block].movedim(-1, 1) for one in operands))
        parts.append(found.movedim(1, -1).reshape(-1, found.shape[1]))
        rows.append(block.reshape(-1))
    if not parts:
        return operands[0]
    back = torch.empty_like(pairs.graph.sender)
    back[torch.cat(rows)] = torch.arange(pairs.pairs, device=back.device)
    return torch.cat(parts)[back]


class PPGN(nn.Module):
    """Pairs from nodes and edges, `layers` times `PPGNBlock`, nodes from pairs; PyG's calling convention.

        e_ij = W_A [A_ij, A_ji] + W_E [edge features at ij and at ji] + [i = j] W_x x_i
        x'_i = W [e_ii, sum_j e_ij, sum_j e_ji]

    A counts the edges j -> i; with its transpose among the inputs, products of transposes are products too.

    Args: width of the nodes; inner: channels of the pairs (width); layers; edge_width: of the edges'
        features, None for none; products as in `PPGNBlock`. ValueError: edge features given or missing,
        against edge_width.
    """

    def __init__(
        self,
        width: int,
        *,
        inner: int | None = None,
        layers: int = 2,
        edge_width: int | None = None,
        products: Sequence[Product] = (matrix_product,),
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"PPGN: layers must be at least 1, got {layers}")
        inner = width if inner is None else inner
        self.edge_width = edge_width
        self.node, self.joined = nn.Linear(width, inner), nn.Linear(2, inner)
        self.edge = None if edge_width is None else nn.Linear(2 * edge_width, inner, bias=False)
        self.blocks = nn.ModuleList(PPGNBlock(inner, products=products) for _ in range(layers))
        self.leave = nn.Linear(3 * inner, width)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Float[Tensor, "n C"]:
        """New features of the nodes."""
        graph, edge_attr = graph_of(
            "ppgn", x, edge_index, edge_attr, batch,
            width=self.node.in_features, edge_width=self.edge_width, layer=self,
        )  # fmt: skip
        if edge_attr is not None and self.edge is None:
            got = tuple(edge_attr.shape)
            raise ValueError(f"ppgn: edge_attr must be none, as edge_width says, got {got}")
        pairs = pairs_of(graph)
        e = self.pairs(x, pairs, edge_attr)
        for block in self.blocks:
            e = block(e, pairs)
        received = x.new_zeros(graph.nodes, e.shape[1])
        sums = [received.index_add(0, end, e) for end in (pairs.graph.receiver, pairs.graph.sender)]
        out: Tensor = self.leave(torch.cat([e[pairs.diagonal], *sums], -1))
        return out

    def pairs(self, x: Tensor, pairs: PairGraph, edge_attr: Tensor | None) -> Tensor:
        """(P, inner) where the blocks begin."""
        count = pairs.at_pairs(x.new_ones(pairs.place.numel(), 1))
        e = self.joined(torch.cat([count, count[pairs.opposite]], -1))
        if self.edge is not None and edge_attr is not None:
            features = pairs.at_pairs(edge_attr)
            e = e + self.edge(torch.cat([features, features[pairs.opposite]], -1))
        found: Tensor = e.index_add(0, pairs.diagonal, self.node(x))
        return found


register_graph_layer(
    GraphEntry(
        name="ppgn",
        make=lambda setting: PPGN(setting.width, edge_width=setting.edge_width),
        edges="features",
    )
)
