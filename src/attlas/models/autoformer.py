"""Autoformer: long-term forecasts of series by auto-correlation and progressive decomposition."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers.autoformer import (
    AutoCorrelation,
    AutoformerDecoderLayer,
    AutoformerEncoderLayer,
    Decomposition,
    SeasonalNorm,
)

__all__ = ["Autoformer", "SeriesEmbedding"]


class SeriesEmbedding(nn.Module):
    """Circular convolution of 3 steps + a linear map of the time features, both without bias; no positions.

    (B, L, channels), (B, L, marks) -> (B, L, width). The convolution starts as Kaiming normal.
    """

    def __init__(self, channels: int, marks: int, width: int, dropout: float = 0.05) -> None:
        super().__init__()
        self.values = nn.Conv1d(channels, width, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.values.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.marks = nn.Linear(marks, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, values: Float[Tensor, "B L channels"], marks: Float[Tensor, "B L marks"]
    ) -> Float[Tensor, "B L width"]:
        """Both summed."""
        return self.dropout(self.values(values.transpose(1, 2)).transpose(1, 2) + self.marks(marks))


class Autoformer(nn.Module):
    """Encoder and decoder that carry a seasonal part, and a trend that the decoder adds up.

    Args:
        channels, marks: of the series and of its time features; horizon: steps to forecast.
        label: last steps of the input that the decoder starts from, 48 in the source.
        width, heads, encoder_layers, decoder_layers, inner, kernel, dropout: the source's defaults.
        factor, aligned: of the auto-correlation (`auto_correlation`).

    forward(values (B, L, channels), marks (B, L + horizon, marks)) -> (B, horizon, channels). The decoder
    gets the seasonal part of the last `label` inputs and zeros, and their trend and the input's mean. Raises
    ValueError where L is below `label` or marks do not reach over the horizon.

    Source: arXiv 2106.13008, thuml/Autoformer. Cost: O(L log L) per layer.
    """

    def __init__(
        self,
        channels: int,
        marks: int,
        horizon: int,
        *,
        label: int = 48,
        width: int = 512,
        heads: int = 8,
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        inner: int | None = None,
        factor: float = 1.0,
        aligned: bool = False,
        kernel: int = 25,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if horizon < 1 or label < 0:
            raise ValueError(f"horizon must be at least 1 and label at least 0, got {horizon} and {label}")
        self.horizon, self.label = horizon, label

        def mixer() -> nn.Module:
            return AutoCorrelation(width, heads, factor=factor, aligned=aligned)

        self.encoder_embedding, self.decoder_embedding = (
            SeriesEmbedding(channels, marks, width, dropout) for _ in range(2)
        )
        self.encoder = nn.ModuleList(
            AutoformerEncoderLayer(width, mixer(), inner=inner, kernel=kernel, dropout=dropout)
            for _ in range(encoder_layers)
        )
        self.decoder = nn.ModuleList(
            AutoformerDecoderLayer(
                width, mixer(), mixer(), channels=channels, inner=inner, kernel=kernel, dropout=dropout
            )
            for _ in range(decoder_layers)
        )
        self.encoder_norm, self.decoder_norm = SeasonalNorm(width), SeasonalNorm(width)
        self.decompose = Decomposition(kernel)
        self.head = nn.Linear(width, channels)

    def encode(
        self, values: Float[Tensor, "B L channels"], marks: Float[Tensor, "B L marks"]
    ) -> Float[Tensor, "B L width"]:
        """The seasonal context that the decoder reads."""
        x = self.encoder_embedding(values, marks)
        for layer in self.encoder:
            x = layer(x)
        return self.encoder_norm(x)

    def forward(
        self, values: Float[Tensor, "B L channels"], marks: Float[Tensor, "B T marks"]
    ) -> Float[Tensor, "B horizon channels"]:
        """The next `horizon` steps."""
        length = values.shape[1]
        if length < self.label or marks.shape[1] != length + self.horizon:
            raise ValueError(
                f"values must have at least the label's {self.label} steps and marks {self.horizon} more "
                f"than values, got {length} and {marks.shape[1]}"
            )
        context = self.encode(values, marks[:, :length])
        begun = length - self.label
        seasonal, trend = (part[:, begun:] for part in self.decompose(values))
        ahead = values.mean(1, keepdim=True).expand(-1, self.horizon, -1)
        trend = torch.cat([trend, ahead], 1)
        x = self.decoder_embedding(torch.cat([seasonal, torch.zeros_like(ahead)], 1), marks[:, begun:])
        for layer in self.decoder:
            x, gained = layer(x, context)
            trend = trend + gained
        return (trend + self.head(self.decoder_norm(x)))[:, -self.horizon :]
