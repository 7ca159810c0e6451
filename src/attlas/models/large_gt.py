"""LargeGT: nodes of one large graph classified out of a local sample and a codebook of the whole graph."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from attlas.layers.codebook import CodebookAttention
from attlas.layers.large_gt import TokenAttention, token_mlp
from attlas.layers.ragged_norm import RaggedBatchNorm

__all__ = ["LargeGT"]


class LargeGT(nn.Module):
    """logits_i = Linear(FFN([local_i ; global_i])) of the tokens of node i.

    local: `TokenAttention` over its 3 K tokens. global: `CodebookAttention` of f(x_i) beside the node's
    position to all nodes, f a network of its own, like the one of the tokens. FFN = Linear(2 H D -> H D) - BN
    - ReLU - dropout - Linear(H D -> D) - BN - ReLU - dropout.

    Args:
        features: F, channels of a node. classes: of the answer. width: D. heads: H, each of width D.
        nodes: of the graph, for the codebook's table. rows: of the codebook; None: no global part.
        position: width of a node's position (node2vec in the paper). decay: of the codebook.
        dropout: of f, f_s and FFN. local_dropout: of the tokens' attention.

    Sizes that are not given are those of the paper's code. Source: Dwivedi, Liu, Luu, Bresson, Shah and Zhao
    2023, arXiv 2312.11109. Cost: O((3 K)^2 H D + B H D) a node, whatever the size of the graph.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        nodes: int = 0,
        width: int = 256,
        heads: int = 2,
        rows: int | None = 4096,
        position: int = 64,
        decay: float = 0.99,
        dropout: float = 0.5,
        local_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.local = TokenAttention(features, width, heads, dropout=local_dropout, input_dropout=dropout)
        self.inputs: nn.Module | None = None
        self.whole: CodebookAttention | None = None
        if rows is not None:
            self.inputs = token_mlp(features, width, dropout)
            self.whole = CodebookAttention(width, width, heads, position, rows=rows, nodes=nodes, decay=decay)
        both = heads * width * (1 if rows is None else 2)
        self.ffn = nn.Sequential(
            nn.Linear(both, heads * width), RaggedBatchNorm(heads * width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(heads * width, width), RaggedBatchNorm(width), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(
        self,
        tokens: Float[Tensor, "N T F"],
        position: Float[Tensor, "N P"] | None = None,
        nodes: Int64[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N classes"]:
        """tokens: of `HopTokens`. position: of the same nodes; nodes: their numbers, needed in training.

        ValueError: no position, or in training no nodes, for a model with a global part.
        """
        hidden = self.local(tokens)
        if self.whole is not None and self.inputs is not None:
            if position is None:
                raise ValueError("LargeGT: position must be given (rows=None makes a model without)")
            hidden = torch.cat([hidden, self.whole(self.inputs(tokens[:, 0]), position, nodes)], 1)
        return self.head(self.ffn(hidden))
