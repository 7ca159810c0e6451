"""Small encoder-decoders with pluggable mixers: across sequences, and for series to forecast."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attlas.layers import Block

__all__ = ["CrossBlock", "EncoderDecoder", "NoMixing", "Placed", "SeriesTransformer"]


class NoMixing(nn.Module):
    """A mixer that gives 0: tokens stay on their own. What it is given beside x is not looked at."""

    def forward(self, x: Float[Tensor, "B N C"], *given: object, **named: object) -> Float[Tensor, "B N C"]:
        """Zeros like x."""
        return torch.zeros_like(x)


class Placed(nn.Module):
    """embedding(x) + a learned vector per position, drawn from N(0, 1); at most `length` tokens."""

    def __init__(self, embedding: nn.Module, length: int, width: int) -> None:
        super().__init__()
        self.embedding, self.places = embedding, nn.Parameter(torch.randn(length, width))

    def forward(self, inputs: Tensor) -> Float[Tensor, "B N C"]:
        """ValueError: more tokens than positions."""
        x = self.embedding(inputs)
        if x.shape[1] > len(self.places):
            raise ValueError(f"positions were made for {len(self.places)} tokens, got {x.shape[1]}")
        return x + self.places[: x.shape[1]]


class CrossBlock(nn.Module):
    """x <- x + mixer(norm x); x <- x + cross(norm x, context); x <- x + mlp(norm x). LayerNorm, GELU."""

    def __init__(self, width: int, mixer: nn.Module, cross: nn.Module, *, ratio: float = 4.0) -> None:
        super().__init__()
        self.before_mixer, self.mixer = nn.LayerNorm(width), mixer
        # The cross step and the MLP are a block around a mixer with a context.
        self.rest = Block(width, cross, ratio=ratio)

    def forward(self, x: Float[Tensor, "B N C"], context: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """All three residual steps."""
        x = x + self.mixer(self.before_mixer(x))
        return self.rest(x, context)


class EncoderDecoder(nn.Module):
    """source -> encoder blocks -> norm = context; target -> decoder blocks that read it -> norm -> head.

    Args:
        source, target: embeddings to (B, M, width) and (B, N, width); head: (B, N, width) -> the output.
        encoder: mixers of the encoder's blocks; decoder: pairs (mixer, cross mixer) of the decoder's.

    forward(source input, target input). Source: the reference model of this library's comparisons, of no
    paper.
    """

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module,
        head: nn.Module,
        *,
        width: int,
        encoder: Iterable[nn.Module],
        decoder: Iterable[tuple[nn.Module, nn.Module]],
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.source, self.target, self.head = source, target, head
        self.encoder = nn.ModuleList(Block(width, mixer, ratio=ratio) for mixer in encoder)
        self.decoder = nn.ModuleList(CrossBlock(width, mixer, cross, ratio=ratio) for mixer, cross in decoder)
        self.context_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The head's output at every token of the target."""
        context = self.source(source)
        for block in self.encoder:
            context = block(context)
        context = self.context_norm(context)
        x = self.target(target)
        for block in self.decoder:
            x = block(x, context)
        return self.head(self.norm(x))


class SeriesTransformer(nn.Module):
    """The vanilla forecaster: `EncoderDecoder` on values, time features and learned positions.

    The decoder starts from the last `label` inputs and zeros over the horizon, and gives all steps at once.

    Args: channels, marks, horizon, label: as in `Autoformer`; length: of the input; encoder, decoder: mixers,
    as in `EncoderDecoder`. forward(values (B, length, channels), marks (B, length + horizon, marks)) ->
    (B, horizon, channels). The decoder mixes without a mask unless its mixers are causal.
    """

    def __init__(
        self,
        channels: int,
        marks: int,
        horizon: int,
        *,
        length: int,
        label: int,
        width: int,
        encoder: Iterable[nn.Module],
        decoder: Iterable[tuple[nn.Module, nn.Module]],
    ) -> None:
        super().__init__()
        if not 0 <= label <= length:
            raise ValueError(f"label must be between 0 and the length, got {label} and {length}")
        self.horizon, self.label = horizon, label

        def embedding(tokens: int) -> nn.Module:
            return Placed(nn.Linear(channels + marks, width), tokens, width)

        self.net = EncoderDecoder(
            embedding(length), embedding(label + horizon), nn.Linear(width, channels),
            width=width, encoder=encoder, decoder=decoder,
        )  # fmt: skip

    def forward(
        self, values: Float[Tensor, "B L channels"], marks: Float[Tensor, "B T marks"]
    ) -> Float[Tensor, "B horizon channels"]:
        """The next `horizon` steps."""
        length = values.shape[1]
        ahead = values.new_zeros(len(values), self.horizon, values.shape[2])
        begun = torch.cat([values[:, length - self.label :], ahead], 1)
        source = torch.cat([values, marks[:, :length]], -1)
        target = torch.cat([begun, marks[:, length - self.label :]], -1)
        return self.net(source, target)[:, -self.horizon :]
