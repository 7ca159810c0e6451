"""Batch normalisation over the nodes, edges or pairs of a batch of graphs, however few there are."""

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RaggedBatchNorm"]


class RaggedBatchNorm(nn.BatchNorm1d):
    """(x - mean) / sqrt(variance + eps) * weight + bias with the statistics of all rows, not per graph.

    Rows come from all graphs, one behind the other, so there is no padding to leave out. A single row has no
    variance: it is normalised by the running statistics in training too, where torch would raise; no rows
    give none. Shapes: (rows, C) -> the same.
    """

    def forward(self, input: Float[Tensor, "rows C"]) -> Float[Tensor, "rows C"]:
        """Normalised rows; in training the running statistics move."""
        mean, variance = self.running_mean, self.running_var
        if not self.training or len(input) > 1 or mean is None or variance is None:
            return super().forward(input)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (input - mean) * scale + self.bias
