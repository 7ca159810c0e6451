"""The mesh transformer: encode, attend along the links of a mesh, decode; and MeshGraphNet beside it.

Source: Garnier et al. 2025, arXiv 2508.18051; DonsetPG/graph-physics. Legend: n nodes, E links, C width.
"""

from jaxtyping import Float
from torch import Tensor, nn

from attlas.graph import Graph, kept, with_self_loops
from attlas.layers.mesh_graph_net import relu_mlp
from attlas.layers.mesh_transformer import MeshTransformerLayer

__all__ = ["MeshTransformer"]


class MeshTransformer(nn.Module):
    """Features of the nodes -> MLP with RMSNorm -> blocks of attention along the links -> MLP: their outputs.

    Args:
        inputs, outputs: channels of nodes. width, heads, layers, expansion: of the blocks.
        ends: linear maps in encoder and decoder: 2 in the paper, 4 in the released code.
        base: of rotary angles, where positions are given. self_loops: every node also sees itself.

    Called as net(features (n, inputs), graph, positions=None) -> (n, outputs). The links are the graph's:
    those of the mesh, or `k_hop`, `at_distances`, `random_links`, `global_links` of it. Coordinates and
    Laplacian or random-walk encodings are features like others: put them beside the fields.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 10,
        expansion: int = 3,
        ends: int = 2,
        base: float = 10000.0,
        self_loops: bool = False,
    ) -> None:
        super().__init__()
        self.self_loops = self_loops
        self.encoder = relu_mlp(inputs, width, width, layers=ends)
        blocks = (MeshTransformerLayer(width, heads, expansion=expansion, base=base) for _ in range(layers))
        self.blocks = nn.ModuleList(blocks)
        self.decoder = relu_mlp(width, width, outputs, layers=ends, norm=False)

    def forward(
        self, features: Float[Tensor, "n p"], graph: Graph, *, positions: Float[Tensor, "n A"] | None = None
    ) -> Float[Tensor, "n o"]:
        """All nodes of all graphs of the batch."""
        links = _looped(graph) if self.self_loops else graph
        x = self.encoder(features)
        for block in self.blocks:
            x = block(x, links, positions=positions)
        out: Tensor = self.decoder(x)
        return out


@kept
def _looped(graph: Graph) -> Graph:
    """The graph with loops, made once and kept with it, so that its edges are sorted once."""
    return with_self_loops(graph.replace(edge_attr=None, edge_type=None))
