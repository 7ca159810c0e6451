"""Message passing with a virtual node: one more node for each graph, which hears all of its nodes and tells
them.

Sources: Gilmer et al. 2017, arXiv 1704.01212; Cai et al. 2023, arXiv 2301.11956 (the layer); the stack is
that of the OGB baselines (arXiv 2005.00687).
Legend: n nodes, G graphs, E edges, C width, S width of the state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.graph import Graph, kept, neighbour_mean, neighbour_sum
from attlas.layers.gin import GIN
from attlas.layers.graph_layers import GraphEntry, GraphSetting, graph_of, register_graph_layer
from attlas.layers.ragged_norm import RaggedBatchNorm
from attlas.score import Edge, PairResult, Score

__all__ = ["GATv2Gather", "VirtualNodeLayer", "VirtualNodeStack", "star_of"]

Map = Callable[..., Tensor]
GATHERS = {"sum": neighbour_sum, "mean": neighbour_mean}


@kept
def star_of(graph: Graph) -> Graph:
    """The edges from every node to its graph's virtual node: n senders, G receivers; made once per graph."""
    nodes = torch.arange(graph.nodes, device=graph.device)
    return Graph(nodes, graph.graph_of, graph.nodes, graph.graphs, bipartite=True)


class VirtualNodeLayer(nn.Module):
    """One round between the nodes and the virtual node of each graph, given its maps.

        s'   = update_virtual(s, gather_j to_virtual(x_j, s))
        x_i' = update_node(x_i, from_virtual(s) [, near_{j in N(i)} between(x_j)])

    Both read the old x and s, so what a node hears is one round old. Args: the maps, modules or functions,
    row by row; to_virtual: x_j itself unless given; from_virtual: s itself; between: None leaves the
    neighbours out (the paper's simplified layer). gather: "sum", "mean" or a module such as `GATv2Gather`,
    called with (messages, states, edges); near the same over the graph's edges, called with the messages of
    both sides.

    Shapes: x (n, C), state (G, S) -> the same; a batch has one virtual node per graph. Cost: n messages to
    G nodes and back. Source: arXiv 2301.11956, definitions 3.1 and 3.2. ValueError: an unknown gather.
    """

    def __init__(
        self,
        update_virtual: Map,
        update_node: Map,
        *,
        to_virtual: Map | None = None,
        from_virtual: Map | None = None,
        between: Map | None = None,
        gather: str | nn.Module = "sum",
        near: str | nn.Module = "sum",
    ) -> None:
        super().__init__()
        for name, given in (("gather", gather), ("near", near)):
            if isinstance(given, str) and given not in GATHERS:
                raise ValueError(f"VirtualNodeLayer: {name} must be 'sum', 'mean' or a module, got {given!r}")
        self.update_virtual, self.update_node = update_virtual, update_node
        self.to_virtual, self.from_virtual, self.between = to_virtual, from_virtual, between
        self.gather, self.near = gather, near

    def forward(
        self, x: Float[Tensor, "n C"], state: Float[Tensor, "G S"], graph: Graph
    ) -> tuple[Tensor, Tensor]:
        """The nodes and the virtual nodes after the round."""
        if state.shape[0] != graph.graphs:
            raise ValueError(
                f"VirtualNodeLayer: state must have one row for each of {graph.graphs} graphs, got "
                f"{tuple(state.shape)}"
            )
        star = star_of(graph)
        sent = x if self.to_virtual is None else self.to_virtual(x, state[graph.graph_of])
        if isinstance(self.gather, str):
            gathered = GATHERS[self.gather](sent, star)
        else:
            gathered = self.gather(sent, state, star)
        told = state if self.from_virtual is None else self.from_virtual(state)
        heard = [told[graph.graph_of]]
        if self.between is not None:
            message = self.between(x)
            heard.append(
                GATHERS[self.near](message, graph)
                if isinstance(self.near, str)
                else self.near(message, message, graph)
            )
        return self.update_node(x, *heard), self.update_virtual(state, gathered)


@dataclass(frozen=True, eq=False)
class _GATv2Score(Score):
    """logit_ij = a . leaky_relu(q_i + k_j), a (H, D)."""

    weight: Tensor
    slope: float = 0.2

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight[None, :, None, None],)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        inner = functional.leaky_relu(query + key, self.slope)
        return PairResult((inner * tensors[0]).sum(-1), value)


class GATv2Gather(nn.Module):
    """out_i = Σ_j softmax_j(a . leaky_relu(W_l x_j + W_r y_i)) W_l x_j over the edges j -> i.

    Args: width: of the senders x; receivers: of y; out: of the result, all heads; heads. Shapes:
    x (senders, width), y (receivers, receivers' width), graph -> (receivers, out). Source: Brody et al. 2022,
    arXiv 2105.14491. Cost: that of `attend` over the edges.
    """

    def __init__(self, width: int, receivers: int, out: int, *, heads: int = 1, slope: float = 0.2) -> None:
        super().__init__()
        if out % heads:
            raise ValueError(f"GATv2Gather: out must be a multiple of heads, got {out} and {heads}")
        self.heads, self.slope = heads, slope
        self.send, self.receive = nn.Linear(width, out), nn.Linear(receivers, out)
        self.weight = nn.Parameter(torch.empty(heads, out // heads))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, y: Tensor, graph: Graph) -> Tensor:
        """The gathered messages."""
        key, query = (self._by_head(part) for part in (self.send(x), self.receive(y)))
        score = _GATv2Score(self.weight, self.slope)
        found: Tensor = attend(query, key, key, pattern=graph, score=score)
        return found[0].transpose(0, 1).flatten(1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]


class VirtualNodeStack(nn.Module):
    """Graph layers with a virtual node between them, as a graph layer of its own: the baseline family.

        h = x + s_g;  x = layer(h);  before the next layer s_g <- [s_g +] dropout(MLP(Σ_{i in g} h_i + s_g))

    with s_g = a learned vector that starts at 0, and MLP = Linear, norm, ReLU twice (2 C wide inside).

    Args:
        layers: modules of PyG's calling convention; width: C.
        gathers: "input" sums h, what the layer read (OGB and the paper's climate nets), "output" sums what
            it gave (the paper's copy of GraphGPS).
        residual: the s_g in brackets, off in that copy. dropout: behind the MLP. norm: of the MLP.

    Shapes: (n, C), edge_index (2, E) or a Graph -> (n, C), with layers that have an edge state (x, state).
    Cost: the layers', and 2 n C and an MLP of G rows between them. LRGB's form, a node of the graph itself,
    is `graph.with_virtual_nodes`. ValueError: no layer, an unknown gathers.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        width: int,
        *,
        gathers: str = "input",
        residual: bool = False,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = RaggedBatchNorm,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("VirtualNodeStack: layers must hold at least one layer, got none")
        if gathers not in ("input", "output"):
            raise ValueError(f"VirtualNodeStack: gathers must be 'input' or 'output', got {gathers!r}")
        self.layers = nn.ModuleList(layers)
        self.start = nn.Parameter(torch.zeros(width))
        self.updates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 2 * width), norm(2 * width), nn.ReLU(),
                nn.Linear(2 * width, width), norm(width), nn.ReLU(), nn.Dropout(dropout),
            )
            for _ in layers[1:]
        )  # fmt: skip
        self.gathers, self.residual = gathers, residual

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """All layers."""
        graph, edge_state = graph_of(
            "VirtualNodeStack", x, edge_index, edge_attr, batch, width=len(self.start), layer=self
        )
        state, returned = self.start.expand(graph.graphs, -1), False
        for number, layer in enumerate(self.layers):
            told = x + state[graph.graph_of]
            found = layer(told, graph, edge_state)
            returned = isinstance(found, tuple)
            x, edge_state = found if returned else (found, edge_state)
            if number < len(self.updates):
                total = neighbour_sum(told if self.gathers == "input" else x, star_of(graph))
                new = self.updates[number](total + state)
                state = state + new if self.residual else new
        return (x, edge_state) if returned else x  # type: ignore[return-value]


def _make(setting: GraphSetting) -> nn.Module:
    layers = [GIN(setting.width) for _ in range(2)]
    return VirtualNodeStack(layers, setting.width)


register_graph_layer(GraphEntry("virtual_node", _make))
