"""BASED, the language model: convolutions, with linear attention and windows at a few layers.

Source: Arora et al. 2024, arXiv 2402.18668; HazyResearch/based. Legend: B batch, N tokens, C width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.attention import SelfAttention
from attlas.layers.based import FEATURE, PREVIOUS, GatedConv, TaylorAttention, sliding_window
from attlas.scan import State

__all__ = ["BASEDS", "Based", "BasedConfig"]

Mixer = TaylorAttention | SelfAttention | GatedConv


@dataclass(frozen=True)
class BasedConfig:
    """Sizes of a BASED model: which layers are linear attention and which a window, convolutions elsewhere.

    feature: width of queries and keys of the linear layers; previous: tokens before its own that a window
    sees; taps of the convolutions; inner: width of the SwiGLU MLP over that of the model; base: of the
    windows' rotary positions, None: none.
    """

    width: int
    layers: int
    heads: int
    linear: tuple[int, ...]
    window: tuple[int, ...]
    feature: int = FEATURE
    previous: int = PREVIOUS
    taps: int = 3
    inner: int = 2
    base: float | None = 10000.0

    def __post_init__(self) -> None:
        wrong = sorted(layer for layer in (*self.linear, *self.window) if not 0 <= layer < self.layers)
        if wrong:
            raise ValueError(
                f"Based: layers {wrong} are not among the {self.layers} layers 0 .. {self.layers - 1}"
            )
        both = sorted(set(self.linear) & set(self.window))
        if both:
            raise ValueError(f"Based: layers {both} cannot be both linear attention and a window")

    def mixer(self, layer: int) -> Mixer:
        """A new mixer of the kind that stands at `layer`."""
        if layer in self.linear:
            return TaylorAttention(self.width, self.heads, feature=self.feature)
        if layer in self.window:
            return sliding_window(self.width, self.heads, previous=self.previous, base=self.base)
        return GatedConv(self.width, taps=self.taps)


BASEDS = {
    "360m": BasedConfig(1024, 27, 16, linear=(1, 6, 11, 16, 21), window=(2, 7, 12, 17, 22)),
    "1.3b": BasedConfig(1792, 36, 16, linear=(1, 6, 11, 16, 21, 27, 33), window=(2, 7, 12, 17, 22, 28, 34)),
}
"""The published models, as their training configurations list the layers."""


class BasedBlock(nn.Module):
    """x + mixer(norm x), then x + W_down(SiLU(W_gate n) * W_up n), n = norm x; no biases in the MLP."""

    def __init__(self, width: int, mixer: Mixer, inner: int) -> None:
        super().__init__()
        self.mixer: Mixer = mixer
        self.before_mixer, self.before_mlp = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def feed(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The MLP's residual step."""
        norm = self.before_mlp(x)
        out: Tensor = x + self.down(functional.silu(self.gate(norm)) * self.up(norm))
        return out

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Both residual steps over a whole sequence."""
        return self.feed(x + self.mixer(self.before_mixer(x)))

    def advance(self, x: Float[Tensor, "B N C"], state: State) -> tuple[Float[Tensor, "B N C"], State]:
        """Both steps over the next tokens."""
        mixed, after = self.mixer.advance(self.before_mixer(x), state)
        return self.feed(x + mixed), after


class Based(nn.Module):
    """ids (B, N) -> logits (B, N, vocabulary): pre-norm blocks with RMSNorm, tied embeddings.

    Args:
        config: `BASEDS["360m"]`, `BASEDS["1.3b"]`, or sizes of your own. vocabulary: 50257 of GPT-2 filled up
            to a multiple of 8, unless given.

    Embeddings start with standard deviation 0.02. State of a decoded row: per head and linear layer F (E + 1)
    numbers, per window `previous` keys and values, per convolution taps - 1 inputs: constant in the length.
    """

    def __init__(self, config: BasedConfig, *, vocabulary: int = 50264) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            BasedBlock(config.width, config.mixer(layer), config.inner * config.width)
            for layer in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.width, eps=1e-5)

    def forward(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N vocabulary"]:
        """Logits of the next token at every place."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self._logits(x)

    def start(self, batch: int) -> State:
        """Before the first token: the states of all layers."""
        states = {str(layer): block.mixer.start(batch) for layer, block in enumerate(self._typed())}
        return State(states, states["0"].position)

    def advance(self, ids: Int[Tensor, "B N"], state: State) -> tuple[Float[Tensor, "B N vocabulary"], State]:
        """Logits at the next N tokens, and the state behind them."""
        x, after = self.embedding(ids), {}
        for layer, block in enumerate(self._typed()):
            x, after[str(layer)] = block.advance(x, state.nested(str(layer)))
        return self._logits(x), State(after, after["0"].position)

    @torch.no_grad()
    def generate(self, ids: Int[Tensor, "B N"], count: int) -> Int[Tensor, "B M"]:
        """ids and `count` more tokens, each the most likely one."""
        logits, state = self.advance(ids, self.start(ids.shape[0]))
        for step in range(count):
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            if step < count - 1:
                logits, state = self.advance(ids[:, -1:], state)
        return ids

    def _typed(self) -> list[BasedBlock]:
        return cast(list[BasedBlock], list(self.blocks))

    def _logits(self, x: Tensor) -> Tensor:
        return functional.linear(self.norm(x), self.embedding.weight)
