"""Attention to a codebook that stands for all nodes of a graph, and the running averages that keep it.

Legend: N nodes of a batch, n nodes of the graph, B rows of the codebook, H heads, D width, V value width,
Z width of a row, P width of a position.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from attlas.attend import attend
from attlas.score import Dot, EdgeBias

__all__ = ["CodebookAttention", "EMACodebook", "codebook_attention"]

SMOOTHING = 1e-5  # of the rows' sizes, as the official code has it
UNASSIGNED = -1


def codebook_attention(
    query: Float[Tensor, "1 H N D"],
    keys: Float[Tensor, "1 H B D"],
    values: Float[Tensor, "1 H B V"],
    counts: Int64[Tensor, "B"],
) -> Float[Tensor, "1 H N V"]:
    """softmax_b(q . k_b / sqrt(D) + log c_b) v_b: each row counts as often as nodes are assigned to it.

    It is softmax attention over all nodes, exactly, where every node's key and value are those of its row. A
    row of no nodes has weight 0; if all have none the result is 0. Cost: 2 N B H (D + V) FLOPs.
    """
    used = counts.nonzero()[:, 0]  # log 0 = -inf: an absent edge, left out
    logarithms = counts[used].to(query.dtype).log()
    found = attend(
        query, keys[:, :, used], values[:, :, used], score=Dot() + EdgeBias(logarithms.unsqueeze(0))
    )
    return torch.as_tensor(found)


class EMACodebook(nn.Module):
    """Running averages of groups of vectors, and the row that each node was assigned to last.

    `update(z, nodes)`, with zn = z normalised over the batch (no scale or shift): the row of a vector is the
    nearest one to zn; then, with n_b vectors and sums s_b per row,

        N_b <- g N_b + (1 - g) n_b,  N_b <- (N_b + 1e-5) / (N + 1e-5 B) N with N = sum N_b,
        w_b <- g w_b + (1 - g) s_b,  mu^n_b = w_b / N_b

    `rows` = mu^n * running standard deviation + running mean. Buffers only; no gradient reaches them.

    Args:
        rows: B. width: of z. nodes: of the graph, whose assignments (int64) are kept. decay: g.

    The first batch's vectors are the first rows (drawn from N(0, 1) where the batch has fewer), with N_b = 1
    and w_b = mu^n_b: a row that nothing is ever assigned to fades to the mean, it is not thrown away. Nodes
    that no batch held are assigned to no row. Source: van den Oord et al. 2017, arXiv 1711.00937, appendix A;
    as in LargeGT, arXiv 2312.11109. Cost: 2 N B width FLOPs an update.
    """

    normal: Tensor
    sizes: Tensor
    sums: Tensor
    row_of: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, rows: int, width: int, nodes: int, *, decay: float = 0.99) -> None:
        super().__init__()
        if rows < 1 or nodes < 0 or not 0 < decay < 1:
            raise ValueError(
                "EMACodebook: rows must be 1 or more, nodes 0 or more and decay between 0 and 1, got "
                f"rows={rows}, nodes={nodes}, decay={decay}"
            )
        self.decay = decay
        self.norm = nn.BatchNorm1d(width, affine=False)
        normal = torch.randn(rows, width)
        self.register_buffer("normal", normal)
        self.register_buffer("sizes", torch.ones(rows))
        self.register_buffer("sums", normal.clone())
        self.register_buffer("row_of", torch.full((nodes,), UNASSIGNED))
        self.register_buffer("counts", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("started", torch.tensor(False))

    @property
    def rows(self) -> Float[Tensor, "B Z"]:
        """The codebook in the vectors' own units."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        if mean is None or variance is None:
            raise ValueError("EMACodebook: norm must keep running statistics")
        return self.normal * (variance + self.norm.eps).sqrt() + mean

    def nearest(self, normalised: Float[Tensor, "N Z"]) -> Int64[Tensor, "N"]:
        """The nearest row to each normalised vector."""
        return ((self.normal**2).sum(1) - 2 * normalised @ self.normal.T).argmin(1)

    @torch.no_grad()
    def update(self, z: Float[Tensor, "N Z"], nodes: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
        """Average a batch's vectors in, note the rows of its nodes, and return them.

        ValueError: nodes that the table has no place for, or a single vector, which cannot be normalised.
        """
        if len(z) < 2:
            raise ValueError(f"EMACodebook: a batch needs 2 vectors or more to be normalised, got {len(z)}")
        if int(nodes.min()) < 0 or int(nodes.max()) >= len(self.row_of):
            raise ValueError(
                f"EMACodebook: nodes must be in 0 .. {len(self.row_of) - 1}, got {int(nodes.min())} .. "
                f"{int(nodes.max())}"
            )
        normalised = nn.functional.batch_norm(
            z.detach(), self.norm.running_mean, self.norm.running_var, None, None, True,
            self.norm.momentum or 0.0, self.norm.eps,
        )  # fmt: skip
        if not self.started:
            self.normal[: len(z)] = normalised[: len(self.normal)]
            self.sums.copy_(self.normal)
            self.started.fill_(True)
        row = self.nearest(normalised)
        size, rows = torch.bincount(row, minlength=len(self.sizes)), len(self.sizes)
        self.sizes.mul_(self.decay).add_(size, alpha=1 - self.decay)
        total = self.sizes.sum()
        self.sizes.add_(SMOOTHING).mul_(total / (total + rows * SMOOTHING))
        sums = torch.zeros_like(self.sums).index_add_(0, row, normalised)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.normal.copy_(self.sums / self.sizes[:, None])
        self._assign(row, nodes)
        return row

    def _assign(self, row: Tensor, nodes: Tensor) -> None:
        once = nodes.unique()
        before = self.row_of[once]
        self.row_of[nodes] = row
        rows = len(self.counts)
        self.counts -= torch.bincount(before[before >= 0], minlength=rows)
        self.counts += torch.bincount(self.row_of[once], minlength=rows)


class CodebookAttention(nn.Module):
    """Attention of a batch's nodes to the whole graph through a codebook: (N, inputs) -> (N, H D).

        z_i = [W_g h_i, position_i],  q_i = W_Q z_i,  k_b = W_K mu_b,  v_b = W_V mu_b[: position]
        out_i = softmax_b(q_i . k_b / sqrt(D) + log c_b) v_b

    In training the codebook is updated after the attention, with the batch's z.

    Args:
        inputs: width of h. width: D of each head. heads: H. position: width of position_i and of W_g h_i.
        rows, nodes, decay: of `EMACodebook`, `codebook`.

    ValueError: training without nodes. Source: GOAT, Kong et al. 2023, as in LargeGT, arXiv 2312.11109.
    Cost: O(N B H D), whatever the size of the graph.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        position: int,
        *,
        rows: int,
        nodes: int,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.heads, self.position = heads, position
        self.codebook = EMACodebook(rows, 2 * position, nodes, decay=decay)
        self.inner = nn.Linear(inputs, position)
        self.query = nn.Linear(2 * position, heads * width)
        self.key = nn.Linear(2 * position, heads * width)
        self.value = nn.Linear(position, heads * width)

    def forward(
        self,
        hidden: Float[Tensor, "N inputs"],
        position: Float[Tensor, "N P"],
        nodes: Int64[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N HD"]:
        """nodes: the numbers of the batch's nodes, needed in training alone."""
        if position.shape[1] != self.position:
            raise ValueError(
                f"position must be (nodes, {self.position}), as the module was made for, got "
                f"{tuple(position.shape)}"
            )
        if self.training and nodes is None:
            raise ValueError("nodes must be given in training: the codebook notes which rows they belong to")
        z = torch.cat([self.inner(hidden), position], 1)
        rows = self.codebook.rows.to(hidden.dtype)
        query, key, value = (
            part.unflatten(1, (self.heads, -1)).transpose(0, 1).unsqueeze(0)
            for part in (self.query(z), self.key(rows), self.value(rows[:, : self.position]))
        )
        out = codebook_attention(query, key, value, self.codebook.counts)
        if self.training and nodes is not None:
            self.codebook.update(z, nodes)
        return out[0].transpose(0, 1).flatten(1)
